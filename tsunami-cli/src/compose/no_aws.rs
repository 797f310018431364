//! What stands for EC2 in a program that was built without it.

use std::time::SystemTime;

use tsunami_core::{RunDirectory, RunId, RunRecord, State, Tsunami};
use tsunami_ssh::SshOptions;

use super::Backend;
use crate::args::CloudArgs;
use crate::error::Error;
use tsunami_core::experiment::Experiment;

pub(crate) async fn of(_: &Experiment, _: &State, _: SshOptions) -> Result<Backend, Error> {
    Err(left_out())
}

pub(crate) async fn recorded(_: &RunRecord, _: &State) -> Result<Backend, Error> {
    Err(left_out())
}

pub(crate) fn check_groups(_: &Experiment) -> Result<(), Error> {
    Ok(())
}

/// What would be found by tag.
pub(crate) struct Survey {
    pub(crate) runs: Vec<Found>,
    pub(crate) failures: Vec<String>,
    pub(crate) now: Option<SystemTime>,
}

pub(crate) struct Found {
    pub(crate) run: RunId,
    pub(crate) expires: SystemTime,
    pub(crate) things: Vec<String>,
}

pub(crate) async fn survey(_: &State, _: &CloudArgs, _: bool) -> Result<(Backend, Survey), Error> {
    Err(left_out())
}

pub(crate) async fn unrecorded(_: &RunDirectory, _: &State) -> Result<Tsunami, Error> {
    Err(left_out())
}

pub(crate) fn remains(_: &RunDirectory, _: &State, error: Error) -> Error {
    error
}

fn left_out() -> Error {
    let how = "`cargo install --path tsunami-cli` builds it with EC2";
    Error::Usage(format!("this tsunami was built without the provider \"aws\"; {how}"))
}
