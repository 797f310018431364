//! What machines were busy with.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use super::{Figure, Plots};
use crate::limits::REPORT_TRACE_LIMIT;
use crate::names::is_experiment_name;
use crate::results::built::Source;
use crate::results::files;
use crate::results::html::plots::{self, SINCE_THE_BEGINNING};
use crate::results::side_by_side::by_number;
use crate::text::shorten;

/// How many machines' traces are shown by themselves, and how many points each line has.
const TRACES: usize = 12;
const TRACE_POINTS: usize = 200;

/// What a machine's processors were busy with.
pub(super) struct Busy {
    /// What its file calls that.
    column: String,
    /// By the second since 1970.
    points: Vec<(f64, f64)>,
}

impl Busy {
    /// Reads the trace of a machine, if there is one.
    pub(super) fn read(directory: &Path, machine: &str) -> Option<Self> {
        if !is_experiment_name(machine) {
            return None;
        }
        let (columns, rows) = trace(&directory.join("traces").join(format!("{machine}.csv")))?;
        // The processor, or what comes first.
        let busy = columns.iter().position(|column| column.contains("cpu")).unwrap_or(1);
        let column = columns.get(busy)?.clone();
        let points = rows.iter().filter_map(|row| Some((*row.first()?, *row.get(busy)?)));
        let points: Vec<_> = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        (points.len() > 1).then_some(Self { column, points })
    }

    /// By the second since then, from the beginning to `end`, in so many points or fewer.
    pub(super) fn since(&self, then: SystemTime, end: f64, points: usize) -> Vec<(f64, f64)> {
        let then = then.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let shown = self.points.iter().map(|(x, y)| (x - then, *y)).filter(|(x, _)| (0.0..=end).contains(x));
        thinned(&shown.collect::<Vec<_>>(), points)
    }
}

/// What machines were busy with, a plot each.
pub(super) fn traces(source: &Source<'_>, plots: &mut Plots) -> Vec<Figure> {
    let Source { directory, report, .. } = source;
    let first = report.earlier_sets.first().map_or(report.started, |set| set.started);
    let earlier = report.earlier_sets.iter().flat_map(|set| &set.machines);
    let machines: BTreeSet<_> = earlier.chain(&report.machines).map(|(name, _)| by_number(name)).collect();
    let mut figures = Vec::new();
    let traced = machines.into_iter().filter_map(|(.., name)| Some((name, Busy::read(directory, name)?)));
    for (name, busy) in traced.take(TRACES) {
        let Some(first) = first else { continue };
        let points = busy.since(first, f64::INFINITY, TRACE_POINTS);
        if points.len() < 2 {
            continue;
        }
        let caption = format!("{name}: {}", busy.column);
        let description = "What the machine was busy with over the run, thinned; its file has all.";
        let axes = (SINCE_THE_BEGINNING, busy.column.as_str());
        figures
            .extend(plots.figure(caption, description, None, |about| plots::lines(about, &[points], axes)));
    }
    figures
}

/// The columns of a trace and its rows.
fn trace(path: &Path) -> Option<(Vec<String>, Vec<Vec<f64>>)> {
    let mut text = String::new();
    files::open(path).ok()?.take(REPORT_TRACE_LIMIT).read_to_string(&mut text).ok()?;
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<String> = lines.next()?.split(',').map(|name| shorten(name, 40).into_owned()).collect();
    let row =
        |line: &str| line.split(',').map(|field| field.parse().unwrap_or(f64::NAN)).collect::<Vec<f64>>();
    Some((columns, lines.map(row).collect()))
}

/// The means of stretches of points, so many or fewer.
fn thinned(points: &[(f64, f64)], wanted: usize) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(wanted).max(1);
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count, sum.1 / count)
    };
    points.chunks(stretch).map(mean).collect()
}
