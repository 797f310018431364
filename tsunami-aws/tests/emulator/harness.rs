//! The emulator, for the tests of more than one crate: each test has one of its own.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A running emulator. Ends with its machines when dropped, or with the test's process.
#[derive(Debug)]
pub(crate) struct Emulator {
    process: Child,
    address: String,
    /// Where it listens with TLS, if it does.
    secure: Option<String>,
    _directory: TempDir,
}

/// One request that the emulator was sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) service: String,
    pub(crate) action: String,
    pub(crate) region: String,
    /// What went wrong with it, on purpose.
    pub(crate) fault: Option<String>,
    pub(crate) params: Value,
    /// Whose access key it was signed with.
    pub(crate) caller: String,
    /// The runs whose things it names, if it changes something.
    pub(crate) runs: Vec<String>,
}

impl Emulator {
    /// An emulator whose instances are real machines: an sshd each, on loopback.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// An emulator whose instances are entries in a list.
    pub(crate) fn without_machines() -> Self {
        Self::start_with(&["--no-machines"])
    }

    /// One that also listens with TLS, by a certificate of its own.
    pub(crate) fn with_tls() -> Self {
        Self::start_with(&["--no-machines", "--tls"])
    }

    fn start_with(options: &[&str]) -> Self {
        let python = Self::python();
        assert!(python.exists(), "the emulator is not installed: run `cargo xtask setup --tests`");
        let directory = tempfile::Builder::new().prefix("tsunami-emulator-").tempdir().unwrap();
        let mut command = Command::new(python);
        command.arg(Self::root().join("tsunami-aws/tests/emulator/emulator.py")).args([
            "--port",
            "0",
            "--until-eof",
            "--directory",
        ]);
        command.arg(directory.path().join("machines")).args(options);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut address = |scheme: &str| {
            let line = lines.next().expect("the emulator's address").unwrap();
            line.strip_prefix("listening on ").and_then(|url| url.strip_prefix(scheme)).unwrap().to_owned()
        };
        let plain = address("http://");
        let secure = options.contains(&"--tls").then(|| address("https://"));
        Self { address: plain, secure, process, _directory: directory }
    }

    /// The Python that has what it needs.
    pub(crate) fn python() -> PathBuf {
        Self::root().join("target/emulator/bin/python")
    }

    /// The repository, as seen from each of its packages.
    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// Where AWS's tools may talk to it with TLS.
    pub(crate) fn secure_endpoint(&self) -> String {
        format!("https://{}", self.secure.as_deref().expect("it listens with TLS"))
    }

    /// The certificate by which it is known there.
    pub(crate) fn certificate(&self) -> PathBuf {
        self._directory.path().join("machines.pem")
    }

    /// What AWS's tools are to talk to.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment in which AWS's tools find it and nothing else.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let missing = || self._directory.path().join("none").display().to_string();
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", missing()),
            ("AWS_SHARED_CREDENTIALS_FILE", missing()),
            ("TSUNAMI_ADDRESS_SERVICE", format!("{}/_sim/ip", self.endpoint())),
        ]
    }

    /// Asks its control path.
    pub(crate) fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.request("GET", path, "")).unwrap()
    }

    /// Tells its control path.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        serde_json::from_str(&self.request("POST", path, &body.to_string())).unwrap()
    }

    /// Asks EC2 itself, as a user of this account would, for an action with these parameters. What it answers, in XML.
    pub(crate) fn ec2(&self, region: &str, parameters: &[(&str, &str)]) -> String {
        let form: Vec<_> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let scope = format!(
            "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{region}/ec2/aws4_request, x=x"
        );
        let kind = "Content-Type: application/x-www-form-urlencoded";
        self.send("POST", "/", &format!("{scope}\r\n{kind}\r\n"), &form.join("&"))
    }

    /// A network of its own with a subnet for IPv6 only, and a way to the internet if it has one.
    pub(crate) fn ipv6_subnet(&self, region: &str, leads_out: bool) -> String {
        let ask = |parameters: &[(&str, &str)], name: &str| {
            let answer = self.ec2(region, parameters);
            let mut words = answer.split(['<', '>']);
            words.find(|word| *word == name).unwrap_or_else(|| panic!("no {name} in {answer}"));
            words.next().unwrap_or_default().to_owned()
        };
        let network =
            [("Action", "CreateVpc"), ("CidrBlock", "10.91.0.0/16"), ("AmazonProvidedIpv6CidrBlock", "true")];
        let network = ask(&network, "vpcId");
        let block = ask(&[("Action", "DescribeVpcs"), ("VpcId.1", &network)], "ipv6CidrBlock");
        let zone = format!("{region}a");
        let subnet = [
            ("Action", "CreateSubnet"),
            ("VpcId", &*network),
            ("Ipv6Native", "true"),
            ("Ipv6CidrBlock", &*block.replace("/56", "/64")),
            ("AvailabilityZone", &*zone),
        ];
        let subnet = ask(&subnet, "subnetId");
        if leads_out {
            let gateway = ask(&[("Action", "CreateInternetGateway")], "internetGatewayId");
            let attach =
                [("Action", "AttachInternetGateway"), ("VpcId", &*network), ("InternetGatewayId", &*gateway)];
            self.ec2(region, &attach);
            let tables = [
                ("Action", "DescribeRouteTables"),
                ("Filter.1.Name", "vpc-id"),
                ("Filter.1.Value.1", &*network),
            ];
            let table = ask(&tables, "routeTableId");
            let route = [
                ("Action", "CreateRoute"),
                ("RouteTableId", &*table),
                ("DestinationIpv6CidrBlock", "::/0"),
                ("GatewayId", &*gateway),
            ];
            self.ec2(region, &route);
        }
        subnet
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let answer = self.send(method, &format!("/_sim/{path}"), "", body);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{method} {path}: {answer}");
        body.to_owned()
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (host, length) = (&self.address, body.len());
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Makes something go wrong with calls.
    pub(crate) fn fault(&self, rule: Value) {
        self.post("faults", &json!([rule]));
    }

    /// Changes how it behaves.
    pub(crate) fn configure(&self, settings: Value) {
        self.post("config", &settings);
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let log = self.get("log");
        let call = |entry: &Value| Call {
            service: entry["service"].as_str().unwrap_or_default().to_owned(),
            action: entry["action"].as_str().unwrap_or_default().to_owned(),
            region: entry["region"].as_str().unwrap_or_default().to_owned(),
            fault: entry["fault"].as_str().map(str::to_owned),
            params: entry["params"].clone(),
            caller: entry["caller"].as_str().unwrap_or_default().to_owned(),
            runs: serde_json::from_value(entry["runs"].clone()).unwrap_or_default(),
        };
        log.as_array().unwrap().iter().map(call).collect()
    }

    /// How often an action of EC2 was asked for.
    pub(crate) fn count(&self, action: &str) -> usize {
        self.calls().iter().filter(|call| call.service == "ec2" && call.action == action).count()
    }

    /// All instances that ever were.
    pub(crate) fn instances(&self) -> Vec<Value> {
        self.get("instances").as_array().unwrap().clone()
    }

    /// Those that are not gone.
    pub(crate) fn living(&self) -> Vec<Value> {
        let mut instances = self.instances();
        instances.retain(|instance| instance["state"] != "terminated");
        instances
    }

    /// All that carries the tag of a run and is not gone, by the emulator's own account.
    pub(crate) fn remaining(&self) -> Vec<String> {
        let remaining = self.get("remaining");
        let kinds = remaining.as_object().unwrap().iter();
        kinds
            .flat_map(|(kind, things)| {
                things.as_array().unwrap().iter().map(move |it| format!("{kind}: {it}"))
            })
            .collect()
    }

    /// Nothing is left of any run.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        let remaining = self.remaining();
        let mut text = String::new();
        remaining.iter().for_each(|thing| writeln!(text, "{thing}").unwrap());
        assert!(remaining.is_empty(), "left behind:\n{text}");
    }

    /// Where its machines are.
    pub(crate) fn machines(&self) -> PathBuf {
        self._directory.path().join("machines")
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // The end of its input ends it, and its machines.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}
