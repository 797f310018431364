//! Machines handed to an engine of somebody else's.

use std::fs;
use std::process::Command;

use crate::world::{Ended, World, example};

#[test]
fn open_mpi_starts_its_ranks_through_the_runs_ssh_config() {
    let world = World::new();
    let up = world.tsunami(["up", example("mpi/experiment.toml").to_str().unwrap()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let machine =
        |index: u32| world.path("state/tsunami/runs").join(&run).join(format!("local/node-{index}"));
    let logins = |index: u32| {
        let log = fs::read_to_string(machine(index).join("sshd.log")).unwrap();
        log.matches("Accepted publickey").count()
    };
    let before = [0, 1, 2].map(logins);

    // An engine that hangs is to fail this test and no other.
    let mut ranks = Command::new("timeout");
    ranks
        .arg("120")
        .arg(example("mpi/ranks"))
        .arg(&run)
        .current_dir(world.path("work"))
        .env("TSUNAMI", crate::world::binary());
    ranks.env("XDG_STATE_HOME", world.path("state")).env("TMPDIR", world.path("tmp"));
    let ended = Ended::from(ranks.output().unwrap());
    let said = ended.assert_status(0).stdout.clone();

    assert_eq!(
        [0, 1, 2].map(logins),
        before.map(|logins| logins + 1),
        "each host's own log knows of one more"
    );
    for index in 0..3 {
        let home = machine(index).join("home");
        let line = format!("rank {index} of 3 in {}: the sum is 6", home.display());
        assert!(said.lines().any(|said| said == line), "{line}\n{said}");
    }
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}
