//! Which trials there are, and in which order: parameters, repeats, rounds and their places.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::metrics::MetricPlan;

/// What a parameter is in one trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ParameterValue {
    /// True or false.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(String),
}

impl fmt::Display for ParameterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(value) => f.write_str(value),
        }
    }
}

impl From<&str> for ParameterValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for ParameterValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<i64> for ParameterValue {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for ParameterValue {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for ParameterValue {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

/// What all parameters are in one trial, by their names.
pub type Parameters = BTreeMap<String, ParameterValue>;

/// A parameter and all that it is to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its values, none of them twice, in the order of whoever wrote them.
    pub values: Vec<ParameterValue>,
}

impl Parameter {
    /// A parameter with these values.
    pub fn new<V: Into<ParameterValue>>(
        name: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        Self { name: name.into(), values: values.into_iter().map(Into::into).collect() }
    }
}

/// In which order trials are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Order {
    /// In rounds whose places are balanced by Williams squares.
    #[default]
    Balanced,
    /// In rounds, each in an order drawn by lot.
    Random,
}

/// What happens with a machine that differs from the others of its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OddMachines {
    /// It is named.
    #[default]
    Warn,
    /// It is named, and its trials don't count.
    Void,
}

/// Which values of a parameter are compared, and with which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Compare {
    /// The parameter. A round is one trial of each of its values.
    pub by: String,
    /// The value that the others are compared with.
    pub baseline: ParameterValue,
    /// Relative differences up to this don't matter: 0.03 is 3 %.
    pub margin: f64,
    /// Ratios to the baseline with which the experiment fails, such as `rps < 0.95`.
    #[serde(default)]
    pub fail_if: Vec<String>,
}

impl Compare {
    /// What differences don't matter unless somebody says so.
    pub const DEFAULT_MARGIN: f64 = 0.03;

    /// Compares the values of a parameter with one of them.
    pub fn new(by: impl Into<String>, baseline: impl Into<ParameterValue>) -> Self {
        Self { by: by.into(), baseline: baseline.into(), margin: Self::DEFAULT_MARGIN, fail_if: Vec::new() }
    }
}

/// What trials are wanted: every combination of the parameters, so often.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "trials do nothing until they are run"]
#[non_exhaustive]
pub struct Trials {
    /// The parameters.
    pub parameters: Vec<Parameter>,
    /// How often each combination is measured.
    pub repeat: u32,
    /// How often each value of the compared parameter is tried on each set of machines before that counts.
    pub warmup: u32,
    /// In which order.
    pub order: Order,
    /// By what the order is drawn; `None` for a new one.
    pub seed: Option<u64>,
    /// Whether machines are measured by themselves, before the first and after the last round of a set.
    pub canary: bool,
    /// What happens with machines that differ from their group.
    pub odd: OddMachines,
    /// What is compared.
    pub compare: Option<Compare>,
    /// What is measured.
    pub metrics: Vec<MetricPlan>,
}

impl Default for Trials {
    fn default() -> Self {
        Self {
            parameters: Vec::new(),
            repeat: 1,
            warmup: 0,
            order: Order::default(),
            seed: None,
            canary: false,
            odd: OddMachines::default(),
            compare: None,
            metrics: Vec::new(),
        }
    }
}

/// All trials in their order, as they are recorded before the first begins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SweepPlan {
    /// By what the order was drawn.
    pub seed: u64,
    /// How.
    pub order: Order,
    /// How often each combination is measured.
    pub repeat: u32,
    /// The parameters, in the order of whoever wrote them.
    pub parameters: Vec<Parameter>,
    /// What is compared.
    #[serde(default)]
    pub compare: Option<Compare>,
    /// What is measured.
    #[serde(default)]
    pub metrics: Vec<MetricPlan>,
    /// The trials, in the order in which they are to be done.
    pub trials: Vec<PlannedTrial>,
}

/// A trial of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlannedTrial {
    /// Its name: its number from 1, or `w1` and so on if it is a warm-up, which doesn't count.
    pub name: String,
    /// Whether it is a warm-up.
    #[serde(default)]
    pub warmup: bool,
    /// The number of its set of machines, from 1.
    pub set: u32,
    /// The number of its round, from 1; 0 for a warm-up.
    pub round: u32,
    /// Its place in the round, from 0.
    pub place: u32,
    /// What the parameters are.
    pub parameters: Parameters,
}

/// Why a trial doesn't count, for a cause outside of the experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VoidReason {
    /// A provider took a machine back.
    Interrupted,
    /// Contact with a machine was lost.
    Lost,
    /// A machine differs from its group.
    Odd,
    /// Something else kept a machine busy.
    Disturbed,
    /// The lifetime was over, or the run was ended from outside.
    Cut,
    /// Another trial of its round doesn't count, and the round is done again whole.
    Round,
}
