//! What is read from what trials print and bring home.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::statistics::Direction;

/// A number to be read of each trial.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// The collected file that it is in; `None` for what the step wrote to its standard output.
    pub file: Option<String>,
    /// How it is found there.
    pub source: Source,
    /// What other columns or fields hold in the rows that count.
    pub select: BTreeMap<String, String>,
    /// How several values on one machine become one; `None` if that is an error.
    pub reduce: Option<Reduce>,
    /// How those of several machines become one; `None` if there is one machine.
    pub across: Option<Across>,
    /// Which direction is better.
    pub better: Option<Direction>,
    /// Its unit.
    pub unit: Option<String>,
}

/// How a number is found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A column of CSV with a header.
    Csv(String),
    /// A JSON pointer, into each line where there are several.
    Json(String),
    /// A regular expression with one group.
    Regex(String),
    /// A percentile or statistic of a HdrHistogram log, such as `p99`.
    Hdr(String),
}

/// How several values become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it")]
pub enum Reduce {
    Mean,
    Median,
    Sum,
    Min,
    Max,
    Last,
}

/// How the values of several machines become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it")]
pub enum Across {
    Sum,
    Mean,
    Median,
    Max,
    Min,
    /// Histograms are put together before a percentile is read from them.
    Merge,
}

/// What a plan says of a metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MetricPlan {
    /// Its name.
    pub name: String,
    /// The step that it is of; empty where a program measures by itself.
    #[serde(default)]
    pub step: String,
    /// Which direction is better.
    #[serde(default)]
    pub better: Option<Direction>,
    /// Its unit.
    #[serde(default)]
    pub unit: Option<String>,
}

/// A number that was read, or why it was not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Measured {
    /// The step; empty where a program measured by itself.
    #[serde(default)]
    pub step: String,
    /// The metric.
    pub metric: String,
    /// The machine; `None` for what stands for the whole trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The number.
    pub value: Option<f64>,
    /// Why there is none, with what was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}
