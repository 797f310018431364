//! What trials there are: parameters, values, repeats, comparisons, and what is done before and between them.

use std::collections::HashSet;
use std::rc::Rc;

use toml::de::{DeFloat, DeInteger, DeTable, DeValue};

use super::sets::Dependency;
use super::value::entries;
use super::{Named, Problem, Reader, Span, TemplateRole, TemplateScope, Used, Value, key, suggest};
use crate::experiment::Reset;
use crate::experiment::keys::{COMPARE_KEYS, ODD, ORDERS, REPEAT, RESET_KEYS, TRIALS_KEYS, WARMUP};
use crate::experiment::template::is_reserved;
use crate::experiment::values::{Value as PlacedValue, Values};
use crate::limits::{COMMAND_LIMIT, PARAMETER_LIMIT, PARAMETER_VALUE_LIMIT, SET_VALUE_LIMIT, STEP_LIMIT};
use crate::names;
use crate::statistics::Threshold;
use crate::trial::{Compare, Parameter, ParameterValue, Parameters, Trials};

/// So many digits fit a number that templates reckon with.
const DIGITS: u32 = 18;

impl Reader<'_> {
    /// What is done on this computer beforehand.
    pub(super) fn prepare(&mut self, root: &DeTable<'_>) -> Vec<String> {
        let Some(value) = root.get("prepare") else { return Vec::new() };
        self.prepares = true;
        let command = |values: &mut Values<'_, '_>, value: PlacedValue<'_>| {
            if value.is_table() {
                values.0.wrong_type(value.0, "a command, or a list of commands");
                return None;
            }
            let text = values.text(value)?;
            if text.trim().is_empty() {
                values.problem(&value.place(), "this is empty", None);
            } else if text.len() > COMMAND_LIMIT {
                let message = format!(
                    "this has {} bytes, and Linux takes at most {COMMAND_LIMIT} in one piece",
                    text.len()
                );
                values.problem(&value.place(), message, None);
            }
            Some(text.to_owned())
        };
        Values(self).one_or_more(PlacedValue(value), command).unwrap_or_default()
    }

    /// The parameters, how often and in which order; and the parameters' names with their places.
    pub(super) fn trials(&mut self, root: &DeTable<'_>) -> (Trials, Vec<(String, Span, Named)>) {
        let mut trials = Trials::default();
        let mut named = Vec::new();
        let matrix = self.named_values(root, "matrix");
        if let Some((_, span, _)) = matrix.get(PARAMETER_LIMIT) {
            let message = format!("an experiment has at most {PARAMETER_LIMIT} parameters");
            self.note(Problem::at(span.clone(), message));
        }
        for (name, span, value) in matrix.into_iter().take(PARAMETER_LIMIT) {
            if self.is_name(root, name, &span, "a parameter") {
                named.push((name.to_owned(), span.clone(), Named::Parameter));
            }
            if Self::chooses_combinations(name, value) {
                let help = "to choose them, let one parameter have those: `pair = [\"1 old\", \"4 new\"]`; `--only` does a part of \
                            them";
                let message = format!("every combination is a trial: `{name}` can't choose among them");
                self.note(Problem::at(span, message).help(help.to_owned()));
                named.retain(|(known, ..)| known != name);
                continue;
            }
            let (values, is_whole) = self.parameter_values(value);
            if values.is_empty() {
                self.unread.insert(name.to_owned());
            }
            if !is_whole {
                self.cut.insert(name.to_owned());
            }
            trials.parameters.push(Parameter::new(name, values));
        }
        let table = root.get("trials").and_then(|value| self.table(value));
        let integer = |reader: &mut Self, value, form| Values(reader).integer(PlacedValue(value), form);
        let mut repeat = root.get("repeat").map(|value| (value, integer(self, value, &REPEAT)));
        if let Some(table) = table {
            self.keys(table, TRIALS_KEYS);
            let get = |key| table.get(key);
            if let Some(value) = get("repeat") {
                if let Some((at_the_top, _)) = repeat {
                    let message = "`repeat` is said twice: at the top, and in `[trials]`";
                    self.note(Problem::at(at_the_top.span(), message).help("say it once".to_owned()));
                }
                repeat = Some((value, integer(self, value, &REPEAT)));
            }
            let warmup = get("warmup").and_then(|value| integer(self, value, &WARMUP));
            trials.warmup = warmup.unwrap_or_default();
            let order = get("order").and_then(|value| self.choice(value, "order", &ORDERS));
            trials.order = order.unwrap_or_default();
            trials.canary = get("canary").and_then(|value| self.boolean(value)).unwrap_or_default();
            let odd = get("odd").and_then(|value| self.choice(value, "odd", &ODD));
            trials.odd = odd.unwrap_or_default();
        }
        trials.repeat = repeat.and_then(|(_, repeat)| repeat).unwrap_or(1);
        let each = (trials.repeat as usize).saturating_add(trials.warmup as usize);
        let sizes = trials.parameters.iter().map(|parameter| parameter.values.len());
        let all = sizes.fold(each, usize::saturating_mul);
        if all > Trials::LIMIT {
            let message = format!("these are {all} trials: {} are the most", Trials::LIMIT);
            let place = ["matrix", "trials", "repeat"].iter().find_map(|name| Some(key(root, name)?.0));
            self.note(match place {
                Some(place) => Problem::at(place, message),
                None => Problem::general(message),
            });
            trials.parameters.iter_mut().for_each(|parameter| parameter.values.truncate(1));
            self.cut.extend(trials.parameters.iter().map(|parameter| parameter.name.clone()));
        }
        (trials, named)
    }

    /// Whether this is what other tools call the choice of some combinations.
    fn chooses_combinations(name: &str, value: &Value<'_>) -> bool {
        let tables = value
            .get_ref()
            .as_array()
            .is_some_and(|list| list.iter().any(|value| value.get_ref().is_table()));
        matches!(name, "include" | "exclude") && tables
    }

    /// Whether this can name a parameter or a value; notes what is wrong with it if not.
    fn is_name(&mut self, root: &DeTable<'_>, name: &str, span: &Span, what: &str) -> bool {
        let is_group = || {
            let groups = root.get("group").and_then(|value| value.get_ref().as_table());
            groups.is_some_and(|groups| groups.get(name).is_some())
        };
        let problem = if let Some(wrong) = names::wrong_length(name) {
            Problem::at(span.clone(), wrong)
        } else if !names::is_group_name(name) {
            let message = format!("`{name}` can't name {what}");
            Problem::at(span.clone(), message).help(names::GROUP_NAME.to_owned())
        } else if is_reserved(name) {
            Problem::at(
                span.clone(),
                format!("`{name}` can't name {what}: it already has a meaning in templates"),
            )
        } else if is_group() {
            Problem::at(span.clone(), format!("`{name}` can't name {what}: it is a group"))
        } else {
            return true;
        };
        self.note(problem);
        false
    }

    /// The entries of a table of parameters or of values. Where it is none, nobody knows which names there are.
    fn named_values<'t>(&mut self, root: &'t DeTable<'t>, key: &str) -> Vec<(&'t str, Span, &'t Value<'t>)> {
        let Some(value) = root.get(key) else { return Vec::new() };
        let table = self.table(value);
        self.names_are_whole &= table.is_some();
        table.map(entries).unwrap_or_default()
    }

    /// The values of a parameter, none of them twice, and whether these are all and there are some.
    fn parameter_values(&mut self, value: &Value<'_>) -> (Vec<ParameterValue>, bool) {
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(value, "a list of values");
            return (Vec::new(), false);
        };
        if list.is_empty() {
            self.note(Problem::at(value.span(), "this list is empty"));
        }
        let mut values = Vec::new();
        // In results, 1 and "1" look alike.
        let mut seen = HashSet::new();
        for value in list.iter() {
            let Some(scalar) = self.scalar(value, "a parameter") else { continue };
            let text = scalar.to_string();
            if text.len() > PARAMETER_VALUE_LIMIT {
                let message = format!("a parameter's value has at most {PARAMETER_VALUE_LIMIT} bytes");
                let help = "let it be the name of a file, and upload that".to_owned();
                self.note(Problem::at(value.span(), message).help(help));
            } else if text.contains(char::is_control) {
                self.note(Problem::at(value.span(), "a parameter's value can't hold control characters"));
            } else if !seen.insert(text) {
                self.note(Problem::at(value.span(), format!("`{scalar}` is there twice")));
            } else {
                values.push(scalar);
            }
        }
        let is_whole = values.len() == list.len() && !values.is_empty();
        (values, is_whole)
    }

    /// A string, a number, `true` or `false`.
    pub(super) fn scalar(&mut self, value: &Value<'_>, what: &str) -> Option<ParameterValue> {
        let wrong = match value.get_ref() {
            DeValue::String(_) => return self.text(value).map(ParameterValue::from),
            DeValue::Boolean(boolean) => return Some((*boolean).into()),
            DeValue::Integer(number) => match integer(number) {
                Some(number) => return Some(number.into()),
                None => format!("no number has more than {DIGITS} digits"),
            },
            DeValue::Float(number) => match float(number) {
                Some(number) => return Some(number.into()),
                None => "this is no finite number".to_owned(),
            },
            DeValue::Table(table) if table.get("from_env").is_some() => {
                let help = "a step's or a group's `env` has secrets".to_owned();
                let message = format!("a secret can't be {what}, which results show");
                self.note(Problem::at(value.span(), message).help(help));
                return None;
            }
            _ => {
                self.wrong_type(value, "a string, a number, true or false");
                return None;
            }
        };
        self.note(Problem::at(value.span(), wrong));
        None
    }

    /// What templates know by name in every trial: the values of the file, or those given beside it.
    pub(super) fn values(
        &mut self,
        root: &DeTable<'_>,
        named: &mut Vec<(String, Span, Named)>,
    ) -> Parameters {
        let mut values = Parameters::new();
        for (name, span, value) in self.named_values(root, "vars") {
            if named.iter().any(|(known, ..)| known == name) {
                self.note(Problem::at(span, format!("`{name}` is a parameter")));
            } else if self.is_name(root, name, &span, "a value") {
                named.push((name.to_owned(), span, Named::Value));
            }
            let Some(scalar) = self.scalar(value, "a value") else {
                self.unread.insert(name.to_owned());
                continue;
            };
            if matches!(&scalar, ParameterValue::Text(text) if text.len() > SET_VALUE_LIMIT) {
                let message = format!("this is longer than {} KiB", SET_VALUE_LIMIT >> 10);
                self.note(Problem::at(value.span(), message));
            }
            values.insert(name.to_owned(), scalar);
        }
        let (called, set) = self.set;
        for (name, text) in set {
            let given = match like(values.get(name), text) {
                Ok(value) => value,
                Err(wanted) => {
                    let message = format!("{called} {name}: `{text}` is not {wanted}, as the file has it");
                    self.note(Problem::general(message));
                    continue;
                }
            };
            values.insert(name.clone(), given);
        }
        values
    }

    /// What is compared, once it is known which metrics there are.
    pub(super) fn compare(
        &mut self,
        root: &DeTable<'_>,
        parameters: &[Parameter],
        depends: &[Dependency],
    ) -> Option<Compare> {
        let (span, value) = key(root, "compare")?;
        let table = self.table(value)?;
        self.keys(table, COMPARE_KEYS);
        let margin = table.get("margin").and_then(|value| self.margin(value));
        let fail_if = table.get("fail_if").and_then(|value| {
            let threshold = |values: &mut Values<'_, '_>, value: PlacedValue<'_>| values.0.threshold(value.0);
            Values(self).one_or_more(PlacedValue(value), threshold)
        });
        if self.metrics.is_empty() && self.metrics_are_whole {
            let help = "a step's `metrics` say what is compared".to_owned();
            self.note(Problem::at(span.clone(), "there is no metric to compare").help(help));
        }
        let by = self.required(table, "by", span)?;
        let name = self.text(by)?;
        let Some(parameter) = parameters.iter().find(|parameter| parameter.name == name) else {
            let help = suggest(name, parameters.iter().map(|parameter| parameter.name.as_str()));
            let help = help.or_else(|| Some("`[matrix]` has parameters".to_owned()));
            if self.names_are_whole {
                self.note(Problem::at(by.span(), format!("there is no parameter `{name}`")).help(help));
            }
            return None;
        };
        let is_whole = !self.cut.contains(name);
        if is_whole && parameter.values.len() < 2 {
            let message = format!("`{name}` has but one value, and nothing to compare it with");
            self.note(Problem::at(by.span(), message));
        }
        if let Some(depends) = depends.iter().find(|depends| depends.parameter.name == name) {
            let message = format!(
                "what is compared runs on the same machines, and {} depends on `{name}`{}",
                depends.of, depends.place
            );
            let help = "use it in steps only, or compare by another parameter".to_owned();
            self.note(Problem::at(by.span(), message).help(help));
        }
        let baseline = match table.get("baseline") {
            None => parameter.values.first()?.clone(),
            Some(value) => {
                let wanted = self.scalar(value, "a parameter")?.to_string();
                let known: Vec<_> = parameter.values.iter().map(ToString::to_string).collect();
                match known.iter().position(|known| *known == wanted) {
                    Some(at) => parameter.values[at].clone(),
                    None if !is_whole => return None,
                    None => {
                        let help = suggest(&wanted, known.iter().map(String::as_str));
                        let message = format!("`{wanted}` is no value of `{name}`");
                        self.note(Problem::at(value.span(), message).help(help));
                        return None;
                    }
                }
            }
        };
        let mut compare = Compare::new(name, baseline);
        compare.margin = margin.unwrap_or(Compare::DEFAULT_MARGIN);
        compare.fail_if = fail_if.unwrap_or_default();
        Some(compare)
    }

    /// A share such as `3%`.
    fn margin(&mut self, value: &Value<'_>) -> Option<f64> {
        if let DeValue::Integer(_) | DeValue::Float(_) = value.get_ref() {
            let raw = self.source.get(value.span()).unwrap_or_default();
            let help = format!("write it with its sign: \"{raw}%\"");
            self.note(Problem::at(value.span(), "a margin is a string such as \"3%\"").help(help));
            return None;
        }
        let text = self.text(value)?;
        let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
        if percent.is_none() {
            let help = "write it as `3%`, from 0 to 100 %".to_owned();
            self.note(Problem::at(value.span(), format!("`{text}` is no margin")).help(help));
        }
        percent.map(|percent| percent / 100.0)
    }

    /// A line of `fail_if`, whose metric there is.
    fn threshold(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.text(value)?;
        match text.parse::<Threshold>() {
            Err(wrong) => self.note(Problem::at(value.span(), wrong.to_string())),
            Ok(Threshold { metric, .. }) if self.metrics_are_whole && !self.metrics.contains_key(&metric) => {
                let help = suggest(&metric, self.metrics.keys().map(String::as_str));
                let help = help.or_else(|| Some("a step's `metrics` has them".to_owned()));
                self.note(Problem::at(value.span(), format!("there is no metric `{metric}`")).help(help));
            }
            Ok(_) => {}
        }
        Some(text.to_owned())
    }

    /// What is done between trials.
    pub(super) fn resets(&mut self, root: &DeTable<'_>) -> Vec<Reset> {
        let mut number = 0;
        self.list_of(root, "reset", |reader, value| {
            number += 1;
            if number == STEP_LIMIT + 1 {
                let message = format!("an experiment has at most {STEP_LIMIT} resets");
                reader.note(Problem::at(value.span(), message));
            }
            if number > STEP_LIMIT { None } else { reader.reset(value) }
        })
    }

    fn reset(&mut self, value: &Value<'_>) -> Option<Reset> {
        let table = self.table(value)?;
        self.keys(table, RESET_KEYS);
        let on = self.required(table, "on", value.span()).map(|on| self.on(on));
        let machines = Rc::new(on.clone().unwrap_or_default());
        let used = TemplateScope { machines, used: Used::Trial };
        let run = self.required(table, "run", value.span());
        let command = run.and_then(|value| self.template(value, TemplateRole::Command, &used));
        let timeout = table.get("timeout").and_then(|value| self.duration(value));
        Some(Reset { on: on?, command: command?, timeout })
    }
}

fn integer(number: &DeInteger<'_>) -> Option<i64> {
    let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
    (number.unsigned_abs() < 10_u64.pow(DIGITS)).then_some(number)
}

fn float(number: &DeFloat<'_>) -> Option<f64> {
    number.as_str().replace('_', "").parse().ok().filter(|number: &f64| number.is_finite())
}

/// A text as a value of the type of another one, or what it is not.
fn like(default: Option<&ParameterValue>, text: &str) -> Result<ParameterValue, &'static str> {
    match default {
        None | Some(ParameterValue::Text(_)) => Ok(text.into()),
        Some(ParameterValue::Boolean(_)) => {
            text.parse::<bool>().map(ParameterValue::from).map_err(|_| "true or false")
        }
        Some(ParameterValue::Integer(_)) => {
            let number = text.parse::<i64>().ok().filter(|number| number.unsigned_abs() < 10_u64.pow(DIGITS));
            number.map(ParameterValue::from).ok_or("a whole number")
        }
        Some(ParameterValue::Float(_)) => {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            number.map(ParameterValue::from).ok_or("a number")
        }
    }
}
