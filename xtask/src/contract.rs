//! Whether EC2 is what the tests take it to be, asked of a real account.

use std::io::{self, IsTerminal, Write};
use std::process::Command;

use crate::emulator::{self, home};
use crate::{Failure, Result, root, succeeds};

/// What it may cost at the most: some thirty-five machines of the smallest types, for a minute or two each, and for seven
/// those of the images, with their disks and addresses.
const MAX_CENTS: u32 = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Contract {
    /// The region to ask in [default: AWS_REGION]
    #[arg(long)]
    region: Option<String>,
    /// Go on without asking.
    #[arg(long)]
    yes: bool,
}

/// Says what is about to happen and what it costs, asks, and runs the tests that the emulator passes, too.
pub(crate) fn contract(contract: &Contract) -> Result {
    let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // Whatever else AWS's tools would find is nobody's wish.
    let Some(who) = given("AWS_PROFILE").or(given("AWS_ACCESS_KEY_ID")) else {
        return Err(Failure::new(
            "this runs in an AWS account, and in none that is not named: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY",
        ));
    };
    let region = contract.region.clone().or(given("AWS_REGION")).or(given("AWS_DEFAULT_REGION"));
    let Some(region) = region else {
        return Err(Failure::new("say where: `--region REGION`, or AWS_REGION"));
    };
    let endpoint = given("AWS_ENDPOINT_URL").map(|url| format!(" at {url}")).unwrap_or_default();
    eprintln!(
        "xtask: as {who} in {region}{endpoint}: launches about thirty-five t3.nano, t3.micro and t2.nano machines, at \
         most eight at a time and for a few minutes, and makes security groups, launch templates and a placement group.\n\
         xtask: that costs a few cents, {MAX_CENTS} at the most. All of it carries the tag `tsunami:contract` and is \
         removed at the end; what can't be is named."
    );
    if !contract.yes && !agreed()? {
        return Err(Failure::new("nothing was asked for"));
    }
    emulator::install()?;
    let mut tests = Command::new(home().join("bin/python"));
    tests.arg("-B").arg(root().join("tsunami-aws/tests/emulator/contract.py"));
    match succeeds(tests.env("AWS_DEFAULT_REGION", &region))? {
        true => {
            eprintln!(
                "xtask: EC2 is what the tests take it to be: say so in ASSUMPTIONS.md, with date and region"
            );
            Ok(())
        }
        false => {
            Err(Failure::new("EC2 is not what the tests take it to be, or could not be asked: see above"))
        }
    }
}

fn agreed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new("say `--yes` to go on"));
    }
    eprint!("xtask: go on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "yes"))
}
