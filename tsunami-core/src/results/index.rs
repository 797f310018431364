//! `trials/index.csv`: what the numbers of trials mean.

use crate::trial::SweepPlan;

/// A line a trial, in their order: its number, set, round and place in that from 1 (none where it warms up), and what each parameter is.
pub(super) fn of(plan: &SweepPlan) -> csv::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let names = plan.parameters.iter().map(|parameter| parameter.name.as_str());
    writer.write_record(["number", "set", "round", "place"].into_iter().chain(names))?;
    for trial in &plan.trials {
        let counted = || Some(trial).filter(|trial| !trial.warmup);
        let (round, place) = (
            counted().map(|trial| trial.round.to_string()),
            counted().map(|trial| (trial.place + 1).to_string()),
        );
        let place =
            [trial.name.clone(), trial.set.to_string(), round.unwrap_or_default(), place.unwrap_or_default()];
        let value = |name: &String| trial.parameters.get(name).map(ToString::to_string).unwrap_or_default();
        let values = plan.parameters.iter().map(|parameter| value(&parameter.name));
        writer.write_record(place.into_iter().chain(values))?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::Trials;

    #[test]
    fn each_number_says_what_it_means() {
        let trials = Trials::matrix([("variant", ["a, \"b\"", "c"])]).parameter("n", [1]).compare("variant");
        let text = String::from_utf8(of(&trials.warmup(1).plan(1, |_| 1)).unwrap()).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines[3..].sort_by_key(|line| line.ends_with("c,1"));
        assert_eq!(lines[0], "number,set,round,place,variant,n");
        assert_eq!(lines[1..3], ["w1,1,,,\"a, \"\"b\"\"\",1", "w2,1,,,c,1"]);
        assert_eq!(lines.len(), 5);
    }
}
