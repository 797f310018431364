//! `trials/index.csv`: what the numbers of trials mean.

use std::borrow::Cow;

use crate::trial::SweepPlan;

/// A line a trial, in their order: its number, set, round and place in that, and what each parameter is.
pub(super) fn of(plan: &SweepPlan) -> String {
    let names = plan.parameters.iter().map(|parameter| parameter.name.clone());
    let mut lines =
        vec![line(["number", "set", "round", "place"].map(str::to_owned).into_iter().chain(names))];
    for trial in &plan.trials {
        let place =
            [trial.name.clone(), trial.set.to_string(), trial.round.to_string(), trial.place.to_string()];
        let value = |name: &String| trial.parameters.get(name).map(ToString::to_string).unwrap_or_default();
        let values = plan.parameters.iter().map(|parameter| value(&parameter.name));
        lines.push(line(place.into_iter().chain(values)));
    }
    lines.concat()
}

/// Fields as one line of CSV.
fn line(fields: impl Iterator<Item = String>) -> String {
    let quoted = |field: String| -> Cow<'static, str> {
        if field.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\"")).into()
        } else {
            field.into()
        }
    };
    fields.map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::Trials;

    #[test]
    fn each_number_says_what_it_means() {
        let trials = Trials::matrix([("variant", ["a, \"b\"", "c"])]).parameter("n", [1]).compare("variant");
        let text = of(&trials.warmup(1).plan(1, |_| 1));
        let mut lines: Vec<&str> = text.lines().collect();
        lines[3..].sort_by_key(|line| line.ends_with("c,1"));
        assert_eq!(lines[0], "number,set,round,place,variant,n");
        assert_eq!(lines[1..3], ["w1,1,0,0,\"a, \"\"b\"\"\",1", "w2,1,0,0,c,1"]);
        assert_eq!(lines.len(), 5);
    }
}
