//! What machines were busy with.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::{Figure, Plots};
use crate::limits::REPORT_TRACE_LIMIT;
use crate::results::files;
use crate::results::html::plots;
use crate::text::shorten;

/// How many machines' traces are shown, and how many points each line has.
const TRACES: usize = 12;
const TRACE_POINTS: usize = 200;

/// What machines were busy with, once a second, thinned.
pub(super) fn traces(directory: &Path, plots: &mut Plots) -> Vec<Figure> {
    let mut names: Vec<String> = fs::read_dir(directory.join("traces"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok()?.strip_suffix(".csv").map(str::to_owned))
        .collect();
    names.sort_unstable();
    let mut figures = Vec::new();
    for name in names.into_iter().take(TRACES) {
        let Some((columns, rows)) = trace(&directory.join("traces").join(format!("{name}.csv"))) else {
            continue;
        };
        // The processor, or what comes first.
        let busy = columns.iter().position(|column| column.contains("cpu")).unwrap_or(1);
        let Some(column) = columns.get(busy) else { continue };
        let points = thinned(&rows, busy);
        if points.len() < 2 {
            continue;
        }
        let caption = format!("{name}: {column}");
        let description = "What the machine was busy with over the run, thinned; its file has all.";
        let axes = ("seconds", column.as_str());
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

/// The means of stretches of a column, by the first column.
fn thinned(rows: &[Vec<f64>], column: usize) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|row| Some((*row.first()?, *row.get(column)?)))
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .collect();
    let start = points.first().map_or(0.0, |(x, _)| *x);
    let stretch = points.len().div_ceil(TRACE_POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count - start, sum.1 / count)
    };
    points.chunks(stretch).map(mean).collect()
}
