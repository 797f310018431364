//! What stands for EC2 in a program that was built without it.

use tsunami_core::{RunRecord, State};
use tsunami_ssh::SshOptions;

use super::Backend;
use crate::error::Error;
use crate::experiment::Experiment;

pub(crate) async fn of(_: &Experiment, _: &State, _: SshOptions) -> Result<Backend, Error> {
    Err(left_out())
}

pub(crate) async fn recorded(_: &RunRecord, _: &State) -> Result<Backend, Error> {
    Err(left_out())
}

fn left_out() -> Error {
    let how = "`cargo install --path tsunami-cli` builds it with EC2";
    Error::Usage(format!("this tsunami was built without the provider \"aws\"; {how}"))
}
