//! What is measured: the metrics of a step.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::value::entries;
use super::{Pattern, Problem, Reader, Span, Step, Value};
use crate::experiment::keys::{ACROSS, DIRECTIONS, METRIC_KEYS, REDUCE};
use crate::limits::{METRIC_LIMIT, UNIT_LIMIT};
use crate::names;
use crate::trial::{Across, HdrStatistic, Metric, MetricPlan, Source, regex};

/// The keys that say how a number is found.
const SOURCES: [&str; 4] = ["csv", "json", "regex", "hdr"];

/// What a plan says of a step's metrics.
pub(super) fn plans(step: &Step) -> impl Iterator<Item = MetricPlan> {
    step.metrics.iter().map(|metric| {
        let mut plan = MetricPlan::default();
        plan.name.clone_from(&metric.name);
        plan.step.clone_from(&step.name);
        plan.better = metric.better;
        plan.unit.clone_from(&metric.unit);
        plan
    })
}

impl Reader<'_> {
    /// The metrics of a step on so many machines, which collects this, if all of that could be read.
    pub(super) fn metrics(
        &mut self,
        table: &DeTable<'_>,
        step: &str,
        machines: usize,
        collect: Option<&[Pattern]>,
    ) -> Vec<Metric> {
        let Some(value) = table.get("metrics") else { return Vec::new() };
        let Some(metrics) = self.table(value) else {
            self.metrics_are_whole = false;
            return Vec::new();
        };
        let starts = table.get("start").is_some();
        let read = |(name, span, value): (&str, Span, &Value<'_>)| {
            self.metric_name(name, &span, step)?;
            let metric = self.metric(name, value)?;
            let says_across = metric.across.is_some() || value.get_ref().get("across").is_some();
            let prints = starts && metric.file.is_none();
            if machines > 1 && !says_across && !prints {
                let message = format!("`across` is missing here: the step runs on {machines} machines");
                let help = "say how their values become one: `across = \"sum\"`".to_owned();
                self.note(Problem::at(span.clone(), message).help(help));
            }
            match &metric.file {
                None if starts => {
                    let message =
                        "what is started prints until the trial ends: a number of it is read from a file";
                    let help = "let it write one, and name that in `collect` and in `file`".to_owned();
                    self.note(Problem::at(span, message).help(help));
                }
                Some(file)
                    if collect.is_some_and(|collect| {
                        !collect.iter().any(|pattern| may_match(pattern.template.source(), file))
                    }) =>
                {
                    let place = value.get_ref().get("file").map_or(span, toml::Spanned::span);
                    let help = format!("name it there: `collect = [\"{file}\"]`");
                    let message = format!("the step doesn't `collect` a file `{file}`");
                    self.note(Problem::at(place, message).help(help));
                }
                _ => {}
            }
            Some(metric)
        };
        entries(metrics).into_iter().filter_map(read).collect()
    }

    fn metric_name(&mut self, name: &str, span: &Span, step: &str) -> Option<()> {
        let problem = if let Some(wrong) = names::wrong_length(name) {
            Problem::at(span.clone(), wrong)
        } else if !names::is_variable_name(name) {
            Problem::at(span.clone(), format!("`{name}` can't name a metric"))
                .help(names::VARIABLE_NAME.to_owned())
        } else if self.parameters.contains(name) {
            Problem::at(span.clone(), format!("`{name}` can't name a metric: it is a parameter"))
        } else if self.metrics.len() == METRIC_LIMIT {
            Problem::at(span.clone(), format!("an experiment has at most {METRIC_LIMIT} metrics"))
        } else if let Some(other) = self.metrics.insert(name.to_owned(), step.to_owned()) {
            Problem::at(span.clone(), format!("step {other} has a metric `{name}` already"))
        } else {
            return Some(());
        };
        self.metrics_are_whole = false;
        self.note(problem);
        None
    }

    fn metric(&mut self, name: &str, value: &Value<'_>) -> Option<Metric> {
        let table = self.table(value)?;
        self.keys(table, METRIC_KEYS);
        let file = table.get("file").map(|value| self.metric_file(value));
        let sources: Vec<_> = SOURCES.into_iter().filter_map(|key| Some((key, table.get(key)?))).collect();
        let source = match sources[..] {
            [(key, value)] => self.source(key, value),
            // The one that is missing may be that which is written wrong.
            [] if super::has_unknown(table, METRIC_KEYS) => None,
            _ => {
                let message = "a metric has one of `csv`, `json`, `regex` and `hdr`";
                self.note(Problem::at(value.span(), message));
                None
            }
        };
        let choose = |key| table.get(key);
        let reduce = choose("reduce").and_then(|value| self.choice(value, "reduce", &REDUCE));
        if matches!(source, Some(Source::Hdr(_))) {
            let help = "a histogram's intervals are merged before anything is told of them".to_owned();
            self.refuse(table, "reduce", "`reduce` is for `csv`, `json` and `regex`", help);
        }
        let across = choose("across").and_then(|value| self.choice(value, "across", &ACROSS));
        let better = choose("better").and_then(|value| self.choice(value, "better", &DIRECTIONS));
        let unit = choose("unit").and_then(|value| self.unit(value));
        let select = self.selection(table, source.as_ref());
        if let (Some(value), Some(Across::Merge), Some(source)) = (choose("across"), across, &source)
            && !matches!(source, Source::Hdr(_))
        {
            let help = "other numbers are put together by \"sum\", \"mean\", \"median\", \"max\" or \"min\""
                .to_owned();
            self.note(Problem::at(value.span(), "\"merge\" is for histograms, which `hdr` reads").help(help));
        }
        Some(Metric {
            name: name.to_owned(),
            file: file.flatten(),
            source: source?,
            select,
            reduce,
            across,
            better,
            unit,
        })
    }

    /// The name of a collected file.
    fn metric_file(&mut self, value: &Value<'_>) -> Option<String> {
        let file = self.text(value)?;
        let wrong = if file.is_empty() || file.ends_with('/') {
            "this names no file"
        } else if file.starts_with(['/', '~']) {
            "this isn't relative to the step's directory, as what is collected is"
        } else if file.split('/').any(|part| part == "..") {
            "this leaves the step's directory"
        } else if file.contains("{{") {
            "this is no template: the file has the same name in every trial"
        } else {
            return Some(file.strip_prefix("./").unwrap_or(file).to_owned());
        };
        self.note(Problem::at(value.span(), wrong));
        None
    }

    fn source(&mut self, key: &str, value: &Value<'_>) -> Option<Source> {
        let text = self.text(value)?;
        let own = text.to_owned();
        let wrong = match key {
            "csv" if text.is_empty() => "this names no column".to_owned(),
            "csv" => return Some(Source::Csv(own)),
            "json" if is_pointer(text) => return Some(Source::Json(own)),
            "json" => {
                let help = "write it as `/latency/p99`; `~0` stands for `~`, `~1` for `/`".to_owned();
                self.note(Problem::at(value.span(), format!("`{text}` is no JSON pointer")).help(help));
                return None;
            }
            // It was looked at for other machines.
            "regex" if self.again.is_some() => return Some(Source::Regex(own)),
            "regex" => match regex(text) {
                Ok(regex) if regex.captures_len() == 2 => return Some(Source::Regex(own)),
                Ok(regex) => {
                    let count = regex.captures_len() - 1;
                    let help = "the number stands in a group `(…)`; others are written `(?:…)`".to_owned();
                    let count = if count == 0 { "no group".to_owned() } else { format!("{count} groups") };
                    let message = format!("this has {count}, and needs one");
                    self.note(Problem::at(value.span(), message).help(help));
                    return None;
                }
                Err(error) => {
                    // The last line says what is wrong, those before it draw where.
                    let error = error.to_string();
                    let last = error.lines().last().unwrap_or_default();
                    format!("this is no regular expression: {}", last.trim_start_matches("error: "))
                }
            },
            _ if HdrStatistic::parse(text).is_some() => return Some(Source::Hdr(own)),
            _ => {
                let help = "write `p99`, `p99.9`, `max`, `min`, `mean` or `count`".to_owned();
                let message = format!("`{text}` is nothing that a histogram tells");
                self.note(Problem::at(value.span(), message).help(help));
                return None;
            }
        };
        self.note(Problem::at(value.span(), wrong));
        None
    }

    fn unit(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.text(value)?;
        if text.chars().any(char::is_control) || text.len() > UNIT_LIMIT {
            self.note(Problem::at(value.span(), "a unit is a short word"));
            return None;
        }
        Some(text.to_owned())
    }

    /// What other columns or fields hold in the rows that count.
    fn selection(&mut self, table: &DeTable<'_>, source: Option<&Source>) -> BTreeMap<String, String> {
        if matches!(source, Some(Source::Regex(_) | Source::Hdr(_))) {
            let help = "a regular expression or a histogram has no rows".to_owned();
            self.refuse(table, "where", "`where` is for `csv` and `json`", help);
        }
        let Some(table) = table.get("where").and_then(|value| self.table(value)) else {
            return BTreeMap::new();
        };
        let read = |(name, _, value): (&str, Span, &Value<'_>)| {
            Some((name.to_owned(), self.scalar(value, "what rows are chosen by")?.to_string()))
        };
        entries(table).into_iter().filter_map(read).collect()
    }
}

/// Whether a text is a JSON pointer, by RFC 6901.
fn is_pointer(text: &str) -> bool {
    let escapes = || text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    (text.is_empty() || text.starts_with('/')) && escapes()
}

/// Whether a collected pattern may match a file, or a directory that it is in. What templates become can't be told, and
/// neither can all that a shell's brackets match.
fn may_match(pattern: &str, file: &str) -> bool {
    if pattern.contains("{{") || pattern.contains('[') {
        return true;
    }
    let parts: Vec<_> = pattern.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let names: Vec<_> = file.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    parts.len() <= names.len()
        && parts.iter().zip(&names).all(|(part, name)| matches(part.as_bytes(), name.as_bytes()))
}

/// Whether a name matches a glob of `*` and `?`.
fn matches(glob: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star stands, and up to where in the name it reaches.
    let mut star = None;
    while from < name.len() {
        match glob.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[from] => {
                at += 1;
                from += 1;
            }
            _ => match &mut star {
                Some((star, reaches)) => {
                    *reaches += 1;
                    (at, from) = (*star + 1, *reaches);
                }
                None => return false,
            },
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pattern_may_match() {
        for (pattern, file, may) in [
            ("out.csv", "out.csv", true),
            ("./out.csv", "out.csv", true),
            ("*.csv", "out.csv", true),
            ("o*t*v", "out.csv", true),
            ("o?t.csv", "out.csv", true),
            ("out", "out/a/x.csv", true),
            ("out/", "out/x.csv", true),
            ("*", "out/x.csv", true),
            ("*.csv", "out/x.csv", false),
            ("out/x.csv", "x.csv", false),
            ("out.csv", "out.txt", false),
            ("out.[ct]sv", "out.csv", true),
            ("{{ name }}.csv", "a.csv", true),
            ("a*b*c", "abd", false),
        ] {
            assert_eq!(may_match(pattern, file), may, "{pattern} {file}");
        }
    }
}
