//! Reading metrics from texts that machines printed or that were brought home. The texts may be anything.

use std::fmt::Write as _;
use std::io::Read;

use data_encoding::BASE64;
use flate2::read::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::metrics::{Across, Measured, Metric, Reduce, Source};
use crate::limits::{HISTOGRAM_LIMIT, METRIC_VALUES_LIMIT, REGEX_LIMIT};
use crate::text::harmless;

/// How much of what was there is said of a text that can't be read, in characters.
const EXCERPT: usize = 160;

/// How many names or values are listed of those that were there.
const LISTED: usize = 8;

/// The first bytes of a compressed histogram of the second form, and how many they are with the length behind them.
const COMPRESSED: [u8; 4] = [0x1c, 0x84, 0x93, 0x14];
const HEADER: usize = 8;

/// What one machine has of the text that a metric is in.
#[derive(Clone, Debug)]
pub(crate) struct MachineText {
    /// The machine.
    pub(crate) machine: String,
    /// The text, or why it isn't there.
    pub(crate) text: Result<Vec<u8>, String>,
}

/// What is found in one text.
enum Found {
    Values(Vec<f64>),
    Histogram(Box<Histogram<u64>>),
}

impl Metric {
    /// Reads it from what its step's machines printed or brought home: the value of each, then that of the trial. If one
    /// machine's is missing, so is the trial's.
    pub(crate) fn read(&self, step: &str, texts: &[MachineText]) -> Vec<Measured> {
        let found = texts
            .iter()
            .map(|text| text.text.as_deref().map_err(Clone::clone).and_then(|text| self.find(text)));
        let found: Vec<Result<Found, String>> = found.collect();
        let own: Vec<Result<f64, String>> = found
            .iter()
            .map(|found| found.as_ref().map_err(Clone::clone).and_then(|found| self.own(found)))
            .collect();
        let measured = |machine: Option<&String>, value: Result<f64, String>| Measured {
            step: step.to_owned(),
            metric: self.name.clone(),
            machine: machine.cloned(),
            value: value.as_ref().ok().copied(),
            missing: value.err(),
        };
        let all = self.across(texts, &own, &found);
        let machines = texts.iter().zip(own).map(|(text, value)| measured(Some(&text.machine), value));
        machines.chain([measured(None, all)]).collect()
    }

    /// What stands for the whole trial.
    fn across(
        &self,
        texts: &[MachineText],
        own: &[Result<f64, String>],
        found: &[Result<Found, String>],
    ) -> Result<f64, String> {
        for (text, value) in texts.iter().zip(own) {
            if let Err(missing) = value {
                return Err(format!("{}: {missing}", text.machine));
            }
        }
        let values: Vec<f64> = own.iter().filter_map(|value| value.as_ref().ok().copied()).collect();
        let value = match (&values[..], self.across) {
            ([], _) => return Err("it was measured on no machine".to_owned()),
            ([only], _) => *only,
            (_, Some(Across::Merge)) => {
                let histograms = found.iter().filter_map(|found| match found {
                    Ok(Found::Histogram(histogram)) => Some(&**histogram),
                    _ => None,
                });
                return statistic(self.source.hdr().unwrap_or_default(), &merged(histograms)?);
            }
            (values, Some(Across::Sum)) => sum(values),
            (values, Some(Across::Mean)) => mean(values),
            (values, Some(Across::Median)) => median(values),
            (values, Some(Across::Max)) => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            (values, Some(Across::Min)) => values.iter().copied().fold(f64::INFINITY, f64::min),
            (values, None) => {
                return Err(format!(
                    "it has {} machines, and `across` doesn't say how they become one",
                    values.len()
                ));
            }
        };
        finite(value)
    }

    /// One machine's value.
    fn own(&self, found: &Found) -> Result<f64, String> {
        let values = match found {
            Found::Histogram(histogram) => {
                return statistic(self.source.hdr().unwrap_or_default(), histogram);
            }
            Found::Values(values) => &values[..],
        };
        let value = match (values, self.reduce) {
            ([], _) => return Err("there is no value".to_owned()),
            ([only], _) => *only,
            (values, None) => {
                let said = listed(values.iter().map(f64::to_string));
                return Err(format!(
                    "there are {} values, and `reduce` doesn't say which counts: {said}",
                    values.len()
                ));
            }
            (values, Some(Reduce::Mean)) => mean(values),
            (values, Some(Reduce::Median)) => median(values),
            (values, Some(Reduce::Sum)) => sum(values),
            (values, Some(Reduce::Min)) => values.iter().copied().fold(f64::INFINITY, f64::min),
            (values, Some(Reduce::Max)) => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ([.., last], Some(Reduce::Last)) => *last,
        };
        finite(value)
    }

    fn find(&self, text: &[u8]) -> Result<Found, String> {
        if text.trim_ascii().is_empty() {
            return Err("the text is empty".to_owned());
        }
        let values = match &self.source {
            Source::Csv(column) => self.csv(column, text)?,
            Source::Json(pointer) => self.json(pointer, text)?,
            Source::Regex(pattern) => matches(pattern, text)?,
            Source::Hdr(_) => return logged(text).map(Box::new).map(Found::Histogram),
        };
        Ok(Found::Values(values))
    }

    /// The values of a column, in the rows that count. The header is the first row that has all the columns: programs say
    /// other things before it.
    fn csv(&self, column: &str, text: &[u8]) -> Result<Vec<f64>, String> {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(text);
        let wanted = [column].into_iter().chain(self.select.keys().map(String::as_str));
        let mut rows = reader.byte_records();
        let (mut first, mut header) = (None, None);
        for row in rows.by_ref() {
            let row: Vec<String> = row.map_err(|error| error.to_string())?.iter().map(plain).collect();
            if wanted.clone().all(|column| row.iter().any(|name| name == column)) {
                header = Some(row);
                break;
            }
            first.get_or_insert(row);
        }
        let Some(header) = header else {
            let absent =
                |column: &&str| first.as_ref().is_none_or(|row| row.iter().all(|name| name != column));
            let absent = wanted.clone().find(absent).unwrap_or(column);
            let first = first.unwrap_or_default();
            return Err(format!(
                "there is no column `{absent}`; the first line has {}",
                listed(first.iter().cloned())
            ));
        };
        let place = |column: &str| header.iter().position(|name| name == column).unwrap_or_default();
        let (at, select): (_, Vec<(usize, &String)>) =
            (place(column), self.select.iter().map(|(column, value)| (place(column), value)).collect());
        let (mut values, mut seen) = (Vec::new(), 0_usize);
        for row in rows {
            let row = row.map_err(|error| error.to_string())?;
            let field = |at: usize| row.get(at).map(plain).unwrap_or_default();
            seen += 1;
            if select.iter().all(|(at, value)| same(&field(*at), value)) {
                push(
                    &mut values,
                    number(&field(at)).map_err(|error| format!("row {seen}, column `{column}`: {error}"))?,
                )?;
            }
        }
        match (values.is_empty(), seen) {
            (false, _) => Ok(values),
            (true, 0) => Err("there are no rows below the header".to_owned()),
            (true, _) => Err(format!("none of {seen} rows has {}", self.selection())),
        }
    }

    /// What a pointer points to, in each document that counts. Lines that can't begin one are what programs say beside it.
    fn json(&self, pointer: &str, text: &[u8]) -> Result<Vec<f64>, String> {
        let whole: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(text).into_iter().collect();
        let documents = match whole {
            Ok(documents) => documents,
            Err(_) => {
                let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
                let lines =
                    (1..).zip(lines).filter(|(_, line)| line.starts_with(b"{") || line.starts_with(b"["));
                let parse = |(number, line): (usize, &[u8])| {
                    serde_json::from_slice(line)
                        .map_err(|error| format!("line {number} isn't JSON ({error}): {}", excerpt(line)))
                };
                lines.map(parse).collect::<Result<_, _>>()?
            }
        };
        if documents.is_empty() {
            return Err(format!("there is no JSON: {}", excerpt(text)));
        }
        let counts = |document: &&Value| {
            self.select.iter().all(|(name, wanted)| {
                let field = if name.starts_with('/') { document.pointer(name) } else { document.get(name) };
                field.is_some_and(|field| match field {
                    Value::String(text) => same(text, wanted),
                    other => same(&other.to_string(), wanted),
                })
            })
        };
        let (mut values, mut seen) = (Vec::new(), 0_usize);
        for document in documents.iter().filter(counts) {
            seen += 1;
            match document.pointer(pointer) {
                None => {}
                Some(Value::Number(value)) => push(&mut values, finite(value.as_f64().unwrap_or(f64::NAN))?)?,
                Some(Value::String(text)) => push(&mut values, number(text)?)?,
                Some(other) => {
                    return Err(format!(
                        "`{pointer}` is no number: {}",
                        excerpt(other.to_string().as_bytes())
                    ));
                }
            }
        }
        match (values.is_empty(), seen) {
            (false, _) => Ok(values),
            (true, 0) => Err(format!("none of {} documents has {}", documents.len(), self.selection())),
            (true, _) => Err(format!("there is nothing at `{pointer}`: {}", excerpt(text))),
        }
    }

    /// What rows have that count, in words.
    fn selection(&self) -> String {
        let parts: Vec<_> = self.select.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        parts.join(" and ")
    }
}

impl Source {
    /// The statistic of a histogram.
    fn hdr(&self) -> Option<&str> {
        match self {
            Self::Hdr(statistic) => Some(statistic),
            _ => None,
        }
    }
}

/// The regular expression of a metric. `^` and `$` are the ends of lines.
pub(crate) fn regex(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).multi_line(true).size_limit(REGEX_LIMIT).build()
}

/// The numbers that a pattern's group matches.
fn matches(pattern: &str, text: &[u8]) -> Result<Vec<f64>, String> {
    let pattern = regex(pattern).map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(text);
    let mut values = Vec::new();
    for found in pattern.captures_iter(&text) {
        if let Some(group) = found.get(1) {
            push(&mut values, number(group.as_str())?)?;
        }
    }
    if values.is_empty() {
        return Err(format!("nothing matches `{pattern}` in {}", excerpt(text.trim().as_bytes())));
    }
    Ok(values)
}

/// All histograms of a log, as one.
fn logged(text: &[u8]) -> Result<Histogram<u64>, String> {
    let mut histograms = Vec::new();
    for entry in IntervalLogIterator::new(text) {
        let entry = entry.map_err(|_| format!("this is no HdrHistogram log: {}", excerpt(text)))?;
        if let LogEntry::Interval(interval) = entry {
            histograms.push(decoded(interval.encoded_histogram())?);
            if histograms.len() == LISTED {
                // A long log is not held as a whole.
                histograms = vec![merged(&histograms)?];
            }
        }
    }
    if histograms.is_empty() {
        return Err(format!("there is no histogram in the log: {}", excerpt(text)));
    }
    merged(&histograms)
}

/// A histogram as logs have it. What its header says of its size is checked before it is believed.
fn decoded(text: &str) -> Result<Histogram<u64>, String> {
    let wrong = |what: &str| format!("a histogram of the log can't be read: {what}");
    let bytes = BASE64.decode(text.as_bytes()).map_err(|_| wrong("it isn't base64"))?;
    let plain = match bytes.strip_prefix(&COMPRESSED) {
        None => bytes,
        Some(rest) => {
            let mut plain = Vec::new();
            let rest = rest.get(4..).unwrap_or_default();
            let mut inflated = ZlibDecoder::new(rest).take(HISTOGRAM_LIMIT + 1);
            inflated.read_to_end(&mut plain).map_err(|error| wrong(&error.to_string()))?;
            plain
        }
    };
    let length = plain.get(4..HEADER).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let fits = length.is_some_and(|length| u64::from(length) <= plain.len() as u64);
    if plain.len() as u64 > HISTOGRAM_LIMIT || !fits {
        return Err(wrong("it is not as long as it says, or far too long"));
    }
    Deserializer::new().deserialize(&mut &plain[..]).map_err(|error| wrong(&error.to_string()))
}

fn merged<'h>(histograms: impl IntoIterator<Item = &'h Histogram<u64>>) -> Result<Histogram<u64>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("the histograms can't be put together: {error}");
    let mut sum: Option<Histogram<u64>> = None;
    for histogram in histograms {
        match &mut sum {
            None => {
                let mut first = histogram.clone();
                first.auto(true);
                sum = Some(first);
            }
            Some(sum) => sum.add(histogram).map_err(|error| failed(&error))?,
        }
    }
    sum.ok_or_else(|| "there is no histogram".to_owned())
}

/// Which number of a histogram a name such as `p99.9` means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum HdrStatistic {
    Percentile(f64),
    Mean,
    Min,
    Max,
    Count,
}

impl HdrStatistic {
    /// What it is called: `p50`, `p99.9`, `mean`, `min`, `max` or `count`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "mean" => Self::Mean,
            "min" => Self::Min,
            "max" => Self::Max,
            "count" => Self::Count,
            _ => {
                let digits =
                    name.strip_prefix('p').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))?;
                Self::Percentile(digits.parse().ok().filter(|percent| (0.0..=100.0).contains(percent))?)
            }
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "what a histogram holds is no more exact")]
fn statistic(name: &str, histogram: &Histogram<u64>) -> Result<f64, String> {
    let statistic =
        HdrStatistic::parse(name).ok_or_else(|| format!("`{name}` is nothing that a histogram has"))?;
    match statistic {
        HdrStatistic::Count => Ok(histogram.len() as f64),
        _ if histogram.is_empty() => Err("the histogram is empty".to_owned()),
        HdrStatistic::Mean => finite(histogram.mean()),
        HdrStatistic::Min => Ok(histogram.min() as f64),
        HdrStatistic::Max => Ok(histogram.max() as f64),
        HdrStatistic::Percentile(percent) => Ok(histogram.value_at_percentile(percent) as f64),
    }
}

fn push(values: &mut Vec<f64>, value: f64) -> Result<(), String> {
    if values.len() == METRIC_VALUES_LIMIT {
        return Err(format!("there are more than {METRIC_VALUES_LIMIT} values"));
    }
    values.push(value);
    Ok(())
}

fn number(text: &str) -> Result<f64, String> {
    let value =
        text.trim().parse::<f64>().map_err(|_| format!("this is no number: {}", excerpt(text.as_bytes())))?;
    finite(value)
}

/// Without the digits that come of adding in binary: `0.1 + 0.2` is `0.3`.
fn sum(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum.fract() == 0.0 { sum } else { format!("{sum:.14e}").parse().unwrap_or(sum) }
}

fn finite(value: f64) -> Result<f64, String> {
    if value.is_finite() { Ok(value) } else { Err(format!("{value} is no finite number")) }
}

/// Whether a field is what was asked for; numbers may be written in several ways.
fn same(field: &str, wanted: &str) -> bool {
    let as_number = |text: &str| text.trim().parse::<f64>().ok();
    field == wanted || as_number(field).zip(as_number(wanted)).is_some_and(|(field, wanted)| field == wanted)
}

#[expect(clippy::cast_precision_loss, reason = "there are few values")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

/// A field as it can be compared: files may begin with a byte order mark.
fn plain(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim_start_matches('\u{feff}').to_owned()
}

/// The beginning of a text, harmless and in quotes.
fn excerpt(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(4 * EXCERPT)]).into_owned();
    let start: String = text.chars().map(|c| if harmless(c) { c } else { ' ' }).take(EXCERPT).collect();
    let more = if text.chars().nth(EXCERPT).is_some() { "…" } else { "" };
    format!("{start:?}{more}")
}

/// Some things, as many as one wants to read.
fn listed(all: impl Iterator<Item = String>) -> String {
    let (mut text, mut left) = (String::new(), 0_usize);
    for (number, one) in all.enumerate() {
        match number {
            0 => text.push_str(excerpt(one.as_bytes()).trim_matches('"')),
            1..LISTED => {
                let _ = write!(text, ", {}", excerpt(one.as_bytes()).trim_matches('"'));
            }
            _ => left += 1,
        }
    }
    if left > 0 {
        let _ = write!(text, " and {left} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hdrhistogram::serialization::{Serializer, V2Serializer};
    use proptest::prelude::*;

    use super::*;

    /// What Python's `hdrhistogram` writes of 1 to 1,000, and of 1,001 to 2,000.
    const LOGS: [&str; 2] = [
        "#[Histogram log format version 1.2]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n\
         1700000000.000000,1.000000,0.000000,\
         HISTFAAAACd4nJNpmSzMwMD8kgECmKE0I5g0e9dg/wEqwDQKRsEoGPYAAGjeDNs=\n",
        "#[Histogram log format version 1.2]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n\
         1700000000.000000,1.000000,0.000000,\
         HISTFAAAACl4nJNpmSzMwMD8igECmKE0I5g0e9dg/wEicJGfaRSMglEw7AEA2ugNuw==\n",
    ];

    fn metric(source: Source) -> Metric {
        let name = "rps".to_owned();
        let select = BTreeMap::new();
        Metric { name, file: None, source, select, reduce: None, across: None, better: None, unit: None }
    }

    fn csv(column: &str) -> Metric {
        metric(Source::Csv(column.to_owned()))
    }

    fn json(pointer: &str) -> Metric {
        metric(Source::Json(pointer.to_owned()))
    }

    fn matching(pattern: &str) -> Metric {
        metric(Source::Regex(pattern.to_owned()))
    }

    fn hdr(statistic: &str) -> Metric {
        metric(Source::Hdr(statistic.to_owned()))
    }

    /// What is read of one machine's text.
    fn of(metric: &Metric, text: impl AsRef<[u8]>) -> Result<f64, String> {
        let all = on(metric, &[text.as_ref()]);
        assert_eq!(all.len(), 2, "the machine's, and the trial's");
        all[0].clone()
    }

    /// What is read of several machines' texts: each one's value, then the trial's.
    fn on(metric: &Metric, texts: &[&[u8]]) -> Vec<Result<f64, String>> {
        let text = |(number, text): (usize, &&[u8])| MachineText {
            machine: format!("client-{number}"),
            text: Ok(text.to_vec()),
        };
        let texts: Vec<_> = texts.iter().enumerate().map(text).collect();
        let read = metric.read("load", &texts);
        assert!(read.last().is_some_and(|all| all.machine.is_none()));
        read.into_iter().map(|one| one.value.ok_or_else(|| one.missing.unwrap_or_default())).collect()
    }

    #[test]
    fn a_column_is_read_from_the_rows_that_count() {
        let text = "\u{feff}====== start ======\n\"test\",\"rps\",\"p99\"\r\n\"SET\",\"1e3\",\"1\"\r\n\"GET\", 250.5 ,\"2\"\r\n";
        let mut metric = csv("rps");
        metric.select.insert("test".into(), "GET".into());
        assert_eq!(of(&metric, text), Ok(250.5));
        metric.select.insert("test".into(), "PING".into());
        assert_eq!(of(&metric, text).unwrap_err(), "none of 2 rows has test = \"PING\"");
        let several = of(&csv("rps"), text).unwrap_err();
        assert_eq!(several, "there are 2 values, and `reduce` doesn't say which counts: 1000, 250.5");
        let absent = of(&csv("rpm"), "test,rps\nGET,1\n").unwrap_err();
        assert_eq!(absent, "there is no column `rpm`; the first line has test, rps");
        assert_eq!(of(&csv("rps"), "test,rps\n").unwrap_err(), "there are no rows below the header");
        assert_eq!(
            of(&csv("rps"), "test,rps\nGET,many\n").unwrap_err(),
            "row 1, column `rps`: this is no number: \"many\""
        );
        // A row that ends early has nothing there.
        assert!(of(&csv("rps"), "test,rps\nGET\n").unwrap_err().contains("no number"));
    }

    #[test]
    fn numbers_that_select_may_be_written_in_several_ways() {
        let mut metric = csv("rps");
        metric.select.insert("size".into(), "1e3".into());
        assert_eq!(of(&metric, "size,rps\n1000,7\n100,8\n"), Ok(7.0));
    }

    #[test]
    fn a_pointer_is_followed_in_each_document_that_counts() {
        assert_eq!(of(&json("/latency/p99"), "{\n \"latency\": { \"p99\": 1.5 }\n}\n"), Ok(1.5));
        let lines =
            "starting\n{\"kind\":\"a\",\"v\":1}\n{\"kind\":\"b\",\"v\":\"2\"}\n{\"kind\":\"c\"}\ndone [ok]\n";
        let mut metric = Metric { reduce: Some(Reduce::Sum), ..json("/v") };
        assert_eq!(of(&metric, lines), Ok(3.0));
        metric.select.insert("/kind".into(), "b".into());
        assert_eq!(of(&metric, lines), Ok(2.0));
        metric.select.insert("kind".into(), "z".into());
        assert!(of(&metric, lines).unwrap_err().starts_with("none of 3 documents has"));
        assert!(of(&json("/x"), "{\"v\":1}").unwrap_err().starts_with("there is nothing at `/x`"));
        assert!(of(&json("/v"), "{\"v\":[1]}").unwrap_err().contains("`/v` is no number"));
        assert!(of(&json("/v"), "nothing here").unwrap_err().starts_with("there is no JSON"));
        assert!(of(&json("/v"), "x\n{\"v\":1\n").unwrap_err().starts_with("line 2 isn't JSON"));
        assert!(of(&json("/v"), "{\"v\":1e999}").is_err(), "no finite number");
    }

    #[test]
    fn a_pattern_matches_within_lines() {
        let text = "p50=1.0 ms\np99=2.5 ms\n";
        assert_eq!(of(&matching("^p99=([0-9.]+) ?ms$"), text), Ok(2.5));
        let missing = of(&matching("p999=([0-9.]+)"), text).unwrap_err();
        assert_eq!(missing, "nothing matches `p999=([0-9.]+)` in \"p50=1.0 ms p99=2.5 ms\"");
        assert!(of(&matching("p99=([0-9.]+)"), b"\xff\xfep99=3 \x1b[2J").is_ok_and(|value| value == 3.0));
        assert!(of(&matching("(x+)"), "xx").unwrap_err().contains("no number"));
    }

    #[test]
    fn several_values_are_reduced_as_is_said() {
        let text = "v=4\nv=1\nv=3\nv=2\n";
        let reduced = |reduce| of(&Metric { reduce: Some(reduce), ..matching("v=(.*)") }, text);
        let all =
            [Reduce::Mean, Reduce::Median, Reduce::Sum, Reduce::Min, Reduce::Max, Reduce::Last].map(reduced);
        assert_eq!(all, [Ok(2.5), Ok(2.5), Ok(10.0), Ok(1.0), Ok(4.0), Ok(2.0)]);
    }

    #[test]
    fn machines_become_one_number_unless_one_is_missing() {
        let texts: [&[u8]; 3] = [b"v=4", b"v=1", b"v=3"];
        let across = |across| on(&Metric { across, ..matching("v=(.*)") }, &texts).pop().unwrap();
        assert_eq!(across(Some(Across::Sum)), Ok(8.0));
        assert_eq!(sum(&[0.1, 0.2]), 0.3);
        assert_eq!(sum(&[1e16, 2.0]), 1e16 + 2.0, "whole numbers stay as they are");
        assert_eq!(across(Some(Across::Median)), Ok(3.0));
        assert_eq!(across(Some(Across::Max)), Ok(4.0));
        assert_eq!(across(Some(Across::Min)), Ok(1.0));
        assert!(across(None).unwrap_err().contains("`across`"));
        let values = on(&Metric { across: Some(Across::Sum), ..matching("v=(.*)") }, &[b"v=4", b"none"]);
        assert_eq!(values[0], Ok(4.0), "what one machine has stays");
        assert!(values[2].as_ref().unwrap_err().starts_with("client-1: nothing matches"));
        let absent =
            MachineText { machine: "client-0".into(), text: Err("out.csv was not collected".into()) };
        let read = matching("v=(.*)").read("load", &[absent]);
        assert_eq!(read[1].missing.as_deref(), Some("client-0: out.csv was not collected"));
    }

    #[test]
    fn histograms_are_merged_over_intervals_and_machines() {
        assert_eq!(of(&hdr("p99"), LOGS[0]), Ok(990.0));
        assert_eq!(of(&hdr("max"), LOGS[1]), Ok(2000.0));
        assert_eq!(of(&hdr("count"), LOGS[0]), Ok(1000.0));
        assert!(of(&hdr("mean"), LOGS[0]).is_ok_and(|mean| (mean - 500.5).abs() < 0.5));
        // Two intervals of one machine, and the same on two: the 99th percentile of all is no average.
        let both = LOGS.concat();
        assert_eq!(of(&hdr("p50"), &both), Ok(1000.0));
        let merged = Metric { across: Some(Across::Merge), ..hdr("p99") };
        assert_eq!(on(&merged, &[LOGS[0].as_bytes(), LOGS[1].as_bytes()]).pop(), Some(Ok(1980.0)));
        assert!(of(&hdr("p99"), "p99=1").unwrap_err().contains("no HdrHistogram log"));
        assert!(of(&hdr("p99"), "#[nothing]\n").unwrap_err().contains("there is no histogram"));
    }

    #[test]
    fn a_histogram_that_claims_to_be_huge_is_refused() {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&Histogram::<u64>::new(3).unwrap(), &mut bytes).unwrap();
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        let line = format!("0.0,1.0,1.0,{}\n", BASE64.encode(&bytes));
        assert!(of(&hdr("p99"), line).unwrap_err().contains("not as long as it says"));
    }

    #[test]
    fn what_was_there_is_said_in_few_harmless_words() {
        let text = format!("\u{1b}]0;title\u{7}{}", "é".repeat(1000));
        let missing = of(&matching("(x)"), text).unwrap_err();
        assert!(missing.chars().all(harmless) && missing.len() < 600, "{missing}");
    }

    proptest! {
        /// Nothing that a machine says is more than a number or a reason.
        #[test]
        fn any_text_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..300), log in any::<bool>()) {
            let mut text = text;
            if log {
                let mut line = b"0.0,1.0,1.0,HISTFAAA".to_vec();
                line.extend(BASE64.encode(&text).bytes());
                text = line;
            }
            for metric in [csv("a"), json("/a"), matching("([0-9]+)"), hdr("p99")] {
                let all = on(&metric, &[&text]);
                prop_assert!(all.iter().all(|one| one.as_ref().is_ok_and(|value| value.is_finite()) || one.is_err()));
            }
        }
    }
}
