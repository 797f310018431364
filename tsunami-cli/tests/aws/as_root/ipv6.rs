//! Machines without an address of IPv4, in a network of the test's own.

use std::process::{Command, Stdio};

use crate::cloud::Cloud;

/// Says that this is within the network.
const WITHIN: &str = "TSUNAMI_TEST_NETWORK";

/// Has a test do its work in a network where `lo` has the addresses that the emulator gives to its machines. Whether it
/// is there already.
fn is_within(test: &str) -> bool {
    if std::env::var_os(WITHIN).is_some() {
        return true;
    }
    let network = "ip link set lo up && for n in 1 2 3 4 5 6 7 8; do ip addr add fd00::1:$n/128 dev lo || exit; done && \
                   exec \"$@\"";
    let mut within = Command::new("unshare");
    within.args(["--net", "sh", "-c", network, "sh"]).arg(std::env::current_exe().unwrap());
    within.args(["--exact", test, "--nocapture"]).env(WITHIN, "1").stdin(Stdio::null());
    let output = within.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

#[test]
fn machines_without_ipv4_are_reached_measure_and_go() {
    if !is_within("as_root::ipv6::machines_without_ipv4_are_reached_measure_and_go") {
        return;
    }
    let cloud = Cloud::new();
    for transport in ["openssh", "in-process"] {
        let subnet = cloud.emulator.ipv6_subnet("eu-west-1", true);
        let text = format!(
            r#"
            name = "six"
            provider = "aws"
            [aws]
            region = "eu-west-1"
            instance = "c7g.large"
            user = "root"
            subnet = "{subnet}"
            ssh_from = ["fd00::/16", "192.0.2.0/24"]
            [ssh]
            transport = "{transport}"
            [group.server]
            setup = "echo set up at {{{{ ip }}}} > done"
            [group.client]
            count = 2
            [[step]]
            on = "server"
            start = "exec busybox httpd -f -p {{{{ server.host }}}}:7777"
            ready = {{ port = 7777 }}
            [[step]]
            name = "load"
            on = "client"
            run = "busybox wget -q -O- http://{{{{ server.host }}}}:7777/done | tee out.csv"
            collect = ["out.csv"]
            "#
        );
        let file = cloud.world.write("six.toml", &text);
        let out = format!("out-{transport}");
        cloud.tsunami(["run", file.to_str().unwrap(), "-o", &out]).assert_status(0);
        let found = cloud.world.path("work").join(out).join("trials/1/load/client-1/out.csv");
        let found = std::fs::read_to_string(found).unwrap();
        assert!(found.starts_with("set up at fd00::1:"), "{found}");
    }
    assert_eq!(cloud.emulator.instances().len(), 6);
    cloud.assert_clean();
}
