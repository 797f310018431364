//! Which trials there are, and in which order: parameters, repeats, rounds and their places.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::metrics::MetricPlan;
use crate::statistics::Direction;

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

impl ParameterValue {
    /// Whether a text is this value, as results or a file may have it: `1`, `1.0` and `1e0` are the same number.
    pub(crate) fn is_written(&self, text: &str) -> bool {
        self.to_string() == text
            || matches!(self, Self::Float(value) if text.replace('_', "").parse::<f64>().is_ok_and(|other| other == *value))
    }
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

impl From<i32> for ParameterValue {
    fn from(value: i32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<u32> for ParameterValue {
    fn from(value: u32) -> Self {
        Self::Integer(value.into())
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
    /// How often each combination is tried on each set of machines before that counts.
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
    /// What parameters are in the part that was to be done, as they were written; none where that is all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<(String, String)>,
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

impl Trials {
    /// The most trials that there may be.
    pub const LIMIT: usize = 100_000;

    /// Every combination of these parameters, once each.
    ///
    /// ```
    /// # use tsunami_core::trial::Trials;
    /// let trials = Trials::matrix([("variant", ["old", "new"])]).parameter("clients", [1, 4, 16]);
    /// let trials = trials.compare("variant").repeat(10).seed(7);
    /// assert_eq!(trials.rows_needed(), 2);
    /// assert_eq!(trials.plan(7, |_| 1).trials.len(), 60);
    /// ```
    pub fn matrix<N, V, I>(parameters: impl IntoIterator<Item = (N, I)>) -> Self
    where
        N: Into<String>,
        V: Into<ParameterValue>,
        I: IntoIterator<Item = V>,
    {
        let parameters = parameters.into_iter().map(|(name, values)| Parameter::new(name, values));
        Self { parameters: parameters.collect(), ..Self::default() }
    }

    /// Adds a parameter.
    pub fn parameter<V: Into<ParameterValue>>(
        mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        self.parameters.push(Parameter::new(name, values));
        self
    }

    /// Sets how often each combination is measured. Default: once.
    pub fn repeat(mut self, repeat: u32) -> Self {
        self.repeat = repeat;
        self
    }

    /// Sets how often each combination is tried on each set of machines before that counts. Default: not at all.
    pub fn warmup(mut self, warmup: u32) -> Self {
        self.warmup = warmup;
        self
    }

    /// Sets in which order. Default: [`Order::Balanced`].
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// Sets by what the order is drawn. Default: a new one.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets whether machines are measured by themselves, before the first and after the last round of a set. Default:
    /// they are not.
    pub fn canary(mut self, canary: bool) -> Self {
        self.canary = canary;
        self
    }

    /// Sets what happens with machines that differ from their group. Default: they are named.
    pub fn odd(mut self, odd: OddMachines) -> Self {
        self.odd = odd;
        self
    }

    /// Compares the values of a parameter with its first. The parameter is there already.
    pub fn compare(mut self, by: impl Into<String>) -> Self {
        let by = by.into();
        let known = self.parameters.iter().find(|parameter| parameter.name == by);
        let first = known.and_then(|parameter| parameter.values.first().cloned());
        self.compare = Some(Compare::new(by, first.unwrap_or_else(|| "".into())));
        self
    }

    /// Sets the value that the others are [compared](Self::compare) with.
    pub fn baseline(mut self, baseline: impl Into<ParameterValue>) -> Self {
        if let Some(compare) = &mut self.compare {
            compare.baseline = baseline.into();
        }
        self
    }

    /// Sets up to which relative difference it doesn't matter: 0.03 is 3 %, and the default.
    pub fn margin(mut self, margin: f64) -> Self {
        if let Some(compare) = &mut self.compare {
            compare.margin = margin;
        }
        self
    }

    /// Says beforehand what is measured. A trial that measures something else adds it.
    pub fn metric(mut self, name: impl Into<String>, better: Direction) -> Self {
        let (name, better) = (name.into(), Some(better));
        self.metrics.push(MetricPlan { name, better, ..MetricPlan::default() });
        self
    }

    /// What is wrong with it, in words; nothing if it can be [planned](Self::plan).
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, Parameter { name, values }) in self.parameters.iter().enumerate() {
            if self.parameters[..index].iter().any(|other| other.name == *name) {
                problems.push(format!("there are two parameters {name}"));
            }
            if values.is_empty() {
                problems.push(format!("parameter {name} has no values"));
            }
            if values.iter().enumerate().any(|(at, value)| values[..at].contains(value)) {
                problems.push(format!("parameter {name} has a value twice"));
            }
        }
        if self.repeat == 0 {
            problems.push("`repeat` is 0: there would be no trials".to_owned());
        }
        if let Some(Compare { by, baseline, .. }) = &self.compare {
            match self.parameters.iter().find(|parameter| parameter.name == *by) {
                None => problems.push(format!("there is no parameter {by} to compare by")),
                Some(parameter) if !parameter.values.contains(baseline) => {
                    problems.push(format!("the baseline {baseline} is no value of {by}"));
                }
                Some(_) => {}
            }
        }
        let each = self.repeat as usize + self.warmup as usize;
        let sizes = self.parameters.iter().map(|parameter| parameter.values.len());
        let all = sizes.fold(each, usize::saturating_mul);
        if all > Self::LIMIT {
            problems.push(format!("these are {all} trials; {} are the most", Self::LIMIT));
        }
        problems
    }

    /// Of what [`repeat`](Self::repeat) must be a multiple for each variant to be equally often in each place of a round
    /// and after each other variant: the rows of one Williams square where the number of variants is even, of two where it
    /// is odd.
    pub fn rows_needed(&self) -> u32 {
        let sizes = self.parameters.iter().filter(|parameter| match &self.compare {
            Some(compare) => parameter.name == compare.by,
            None => true,
        });
        let variants = sizes.map(|parameter| parameter.values.len()).fold(1, usize::saturating_mul);
        match self.order {
            Order::Balanced => u32::try_from(rows_of(variants)).unwrap_or(u32::MAX),
            Order::Random => 1,
        }
    }

    /// Every combination, the parameters in their order, the last of them changing fastest.
    pub fn combinations(&self) -> Vec<Parameters> {
        let mut all = vec![Parameters::new()];
        for Parameter { name, values } in &self.parameters {
            let with = |known: &Parameters, value: &ParameterValue| {
                let mut known = known.clone();
                known.insert(name.clone(), value.clone());
                known
            };
            all = all.iter().flat_map(|known| values.iter().map(move |value| with(known, value))).collect();
        }
        all
    }

    /// All trials in the order in which they are to be done. `set_of` says by its number, from 1, on which set of machines a
    /// combination is measured; sets come one after another, in the order of their numbers.
    ///
    /// On a set, the warm-ups come first. Then come passes, as many as `repeat` says, each of which has one round of
    /// each combination of the parameters that are not compared: whatever drifts over the time of a set hits all of them
    /// alike. A round is one trial of each value of the compared parameter; without one, of every combination that the
    /// set can run.
    ///
    /// The places in the rounds of one combination follow a Williams square, whose columns are the variants in an order drawn by lot,
    /// and whose rows are shuffled; the places of rounds in passes do so too. [`Order::Random`] draws each round and
    /// each pass by lot. The same seed gives the same plan.
    pub fn plan(&self, seed: u64, set_of: impl Fn(&Parameters) -> u32) -> SweepPlan {
        // By set, then by what is not compared.
        let mut sets = BTreeMap::<u32, Vec<(Parameters, Vec<Parameters>)>>::new();
        for combination in self.combinations() {
            let mut rest = combination.clone();
            match &self.compare {
                Some(compare) => drop(rest.remove(&compare.by)),
                None => rest.clear(),
            }
            let rounds = sets.entry(set_of(&combination)).or_default();
            match rounds.iter_mut().find(|(known, _)| *known == rest) {
                Some((_, variants)) => variants.push(combination),
                None => rounds.push((rest, vec![combination])),
            }
        }
        let mut lots = Lots(seed);
        let mut trials = Vec::new();
        let (mut warmups, mut round, mut number) = (0, 0, 0);
        for (set, combinations) in sets {
            for _ in 0..self.warmup {
                for parameters in combinations.iter().flat_map(|(_, variants)| variants) {
                    warmups += 1;
                    let (name, parameters) = (format!("w{warmups}"), parameters.clone());
                    let planned =
                        PlannedTrial { name, warmup: true, set, parameters, ..PlannedTrial::default() };
                    trials.push(planned);
                }
            }
            let repeat = self.repeat as usize;
            let passes = orders(combinations.len(), repeat, self.order, &mut lots);
            let rounds: Vec<_> = combinations
                .iter()
                .map(|(_, variants)| orders(variants.len(), repeat, self.order, &mut lots))
                .collect();
            for (pass, order) in passes.iter().enumerate() {
                for &combination in order {
                    round += 1;
                    for (place, &variant) in (0..).zip(&rounds[combination][pass]) {
                        number += 1;
                        let (name, parameters) =
                            (format!("{number}"), combinations[combination].1[variant].clone());
                        trials.push(PlannedTrial { name, warmup: false, set, round, place, parameters });
                    }
                }
            }
        }
        SweepPlan {
            seed,
            order: self.order,
            repeat: self.repeat,
            parameters: self.parameters.clone(),
            compare: self.compare.clone(),
            metrics: self.metrics.clone(),
            only: Vec::new(),
            trials,
        }
    }
}

/// How many rounds it takes until each of so many is equally often in each place and after each other.
fn rows_of(count: usize) -> usize {
    if count % 2 == 1 && count > 1 { count.saturating_mul(2) } else { count.max(1) }
}

/// So many orders of `count` things.
fn orders(count: usize, rounds: usize, order: Order, lots: &mut Lots) -> Vec<Vec<usize>> {
    let mut orders = Vec::with_capacity(rounds);
    while orders.len() < rounds {
        match order {
            Order::Balanced => orders.extend(williams(count, lots)),
            Order::Random => orders.push(lots.order(count)),
        }
    }
    orders.truncate(rounds);
    orders
}

/// The rows of a Williams square, or of two that mirror each other. They are shuffled within each square alone, so that
/// half of them are balanced in their places at least.
fn williams(count: usize, lots: &mut Lots) -> Vec<Vec<usize>> {
    // 0, 1, n - 1, 2, n - 2: neighbours differ by each number once.
    let first =
        (0..count).map(|place| if place % 2 == 1 { place.div_ceil(2) } else { (count - place / 2) % count });
    let (first, names): (Vec<_>, _) = (first.collect(), lots.order(count));
    let row = |shift: usize| first.iter().map(|at| names[(at + shift) % count]).collect::<Vec<_>>();
    let mut shuffled = || lots.order(count).into_iter().map(row).collect::<Vec<_>>();
    let mut rows = shuffled();
    if rows_of(count) > count {
        let mut mirrored = shuffled();
        mirrored.iter_mut().for_each(|row| row.reverse());
        rows.append(&mut mirrored);
        if lots.below(2) == 1 {
            rows.rotate_left(count);
        }
    }
    rows
}

/// Draws by lot, the same from the same seed in every version: `SplitMix64`.
struct Lots(u64);

impl Lots {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is far below what would bias it.
    fn below(&mut self, bound: usize) -> usize {
        let drawn = (u128::from(self.next()) * bound as u128) >> 64;
        usize::try_from(drawn).unwrap_or_default()
    }

    /// So many things in an order drawn by lot.
    fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            order.swap(last, self.below(last + 1));
        }
        order
    }
}

impl PlannedTrial {
    /// Whether these parameters are so in it, as they are written.
    pub(crate) fn is_of(&self, part: &[(String, String)]) -> bool {
        let is_so = |(name, value): &(String, String)| {
            self.parameters.get(name).is_some_and(|known| known.is_written(value))
        };
        part.iter().all(is_so)
    }
}

impl SweepPlan {
    /// The trial of this name.
    pub fn trial(&self, name: &str) -> Option<&PlannedTrial> {
        self.trials.iter().find(|trial| trial.name == name)
    }

    /// How many trials are to count.
    pub fn counted(&self) -> usize {
        self.trials.iter().filter(|trial| !trial.warmup).count()
    }

    /// Whether it is but one trial, of which nothing is read.
    pub(crate) fn is_plain(&self) -> bool {
        self.trials.len() == 1 && self.metrics.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn trials(variants: i64, others: i64, repeat: u32) -> Trials {
        let trials = Trials::default().parameter("other", 0..others).parameter("variant", 0..variants);
        trials.compare("variant").repeat(repeat)
    }

    /// The variants of each round, in their order.
    fn rounds(plan: &SweepPlan) -> BTreeMap<u32, Vec<String>> {
        let mut rounds = BTreeMap::<_, Vec<_>>::new();
        for trial in plan.trials.iter().filter(|trial| !trial.warmup) {
            let round = rounds.entry(trial.round).or_default();
            assert_eq!(trial.place as usize, round.len());
            round.push(trial.parameters["variant"].to_string());
        }
        rounds
    }

    proptest! {
        #[test]
        fn places_and_what_goes_before_are_balanced(
            variants in 1_i64..8, others in 1_i64..5, cycles in 1_u32..4, seed: u64,
        ) {
            let trials = trials(variants, others, 1);
            let trials = trials.clone().repeat(cycles * trials.rows_needed());
            let plan = trials.plan(seed, |_| 1);
            for other in 0..others {
                let own = |trial: &&PlannedTrial| trial.parameters["other"] == other.into();
                let own = plan.trials.iter().filter(own).cloned().collect();
                let (mut places, mut pairs) = (BTreeMap::new(), BTreeMap::new());
                for order in rounds(&SweepPlan { trials: own, ..plan.clone() }).into_values() {
                    for (place, variant) in order.iter().enumerate() {
                        *places.entry((place, variant.clone())).or_insert(0) += 1;
                    }
                    for pair in order.windows(2) {
                        *pairs.entry((pair[0].clone(), pair[1].clone())).or_insert(0) += 1;
                    }
                }
                let variants = usize::try_from(variants).unwrap();
                prop_assert_eq!(places.len(), variants * variants);
                prop_assert_eq!(pairs.len(), variants * (variants - 1));
                for counts in [places.into_values().collect::<Vec<_>>(), pairs.into_values().collect()] {
                    prop_assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", counts);
                }
            }
        }

        #[test]
        fn each_combination_is_measured_as_often_as_asked_and_no_pass_is_left_for_another(
            variants in 1_i64..5, others in 1_i64..5, repeat in 1_u32..9, warmup in 0_u32..3,
            sets in 1_i64..3, random: bool, seed: u64,
        ) {
            let order = if random { Order::Random } else { Order::Balanced };
            let trials = trials(variants, others, repeat).warmup(warmup).order(order);
            let set_of = |parameters: &Parameters| match parameters["other"] {
                ParameterValue::Integer(other) => u32::try_from(other % sets).unwrap() + 1,
                _ => 0,
            };
            let plan = trials.plan(seed, set_of);
            prop_assert_eq!(&plan, &trials.plan(seed, set_of));
            let (mut counted, mut warmups) = (BTreeMap::new(), BTreeMap::new());
            for (at, trial) in plan.trials.iter().enumerate() {
                let times = if trial.warmup { &mut warmups } else { &mut counted };
                let times: &mut u32 = times.entry(format!("{:?}", trial.parameters)).or_default();
                *times += 1;
                prop_assert_eq!(trial.set, set_of(&trial.parameters));
                let before = plan.trials[..at].iter().filter(|before| before.warmup == trial.warmup).count();
                let prefix = if trial.warmup { "w" } else { "" };
                prop_assert_eq!(&trial.name, &format!("{prefix}{}", before + 1));
                // On its set, nothing of this pass comes after something of the next.
                let later = plan.trials[at..].iter().filter(|later| later.set == trial.set && !later.warmup);
                if !trial.warmup {
                    let of_another = |other: &&PlannedTrial| other.parameters["other"] != trial.parameters["other"];
                    let others = later.filter(of_another).map(|other| other.parameters["other"].to_string());
                    let mut left = BTreeMap::<_, u32>::new();
                    others.for_each(|other| *left.entry(other).or_default() += 1);
                    let each = u32::try_from(variants).unwrap();
                    prop_assert!(left.values().all(|left| left.div_ceil(each) + *times <= repeat + 1));
                }
            }
            let combinations = usize::try_from(variants * others).unwrap();
            prop_assert_eq!(counted.len(), combinations);
            prop_assert!(counted.values().all(|times| *times == repeat));
            prop_assert_eq!(warmups.len(), if warmup == 0 { 0 } else { combinations });
            prop_assert!(warmups.values().all(|times| *times == warmup));
            let sets: Vec<u32> = plan.trials.iter().map(|trial| trial.set).collect();
            prop_assert!(sets.is_sorted());
        }
    }

    #[test]
    fn another_seed_is_another_order_and_half_of_two_squares_has_balanced_places() {
        let trials = trials(3, 1, 12);
        assert_ne!(trials.plan(1, |_| 1).trials, trials.plan(2, |_| 1).trials);
        assert_eq!(trials.rows_needed(), 6);
        for seed in 0..20 {
            let orders: Vec<_> = rounds(&trials.plan(seed, |_| 1)).into_values().collect();
            for half in orders.chunks(3) {
                for place in 0..3 {
                    let mut there: Vec<_> = half.iter().map(|order| &order[place]).collect();
                    there.sort();
                    assert_eq!(there, ["0", "1", "2"]);
                }
            }
        }
    }

    #[test]
    fn the_order_of_a_seed_stays_the_same_in_later_versions() {
        let plan = Trials::matrix([("variant", ["a", "b", "c"])]).compare("variant").repeat(6).plan(7, |_| 1);
        let orders: Vec<_> = rounds(&plan).into_values().map(|order| order.concat()).collect();
        assert_eq!(orders.join(" "), "cab abc bca acb bac cba");
    }

    #[test]
    fn a_number_is_the_same_however_it_is_written() {
        let is_written = |value: ParameterValue, text| value.is_written(text);
        assert!(["1", "1.0", "1e0", "1_0e-1"].into_iter().all(|text| is_written(1.0.into(), text)));
        assert!(
            !is_written(1.0.into(), "x") && !is_written("1".into(), "1.0") && is_written(true.into(), "true")
        );
    }

    #[test]
    fn without_a_comparison_a_round_is_all_that_a_set_can_run() {
        let trials = Trials::matrix([("a", [1, 2])]).parameter("b", ["x", "y"]).repeat(2);
        let plan = trials.plan(1, |parameters| if parameters["a"] == 1.into() { 1 } else { 2 });
        let rounds: Vec<u32> = plan.trials.iter().map(|trial| trial.round).collect();
        assert_eq!(rounds, [1, 1, 2, 2, 3, 3, 4, 4]);
        let one = Trials::default().plan(1, |_| 1);
        assert_eq!((one.trials.len(), one.trials[0].name.as_str(), one.trials[0].set), (1, "1", 1));
    }

    #[test]
    fn what_can_t_be_planned_says_why() {
        let twice = Trials::matrix([("a", [1, 1])]).parameter("a", ["x"; 0]).compare("b").repeat(0);
        let expected = [
            "parameter a has a value twice",
            "there are two parameters a",
            "parameter a has no values",
            "`repeat` is 0: there would be no trials",
            "there is no parameter b to compare by",
        ];
        assert_eq!(twice.problems(), expected);
        let many = Trials::matrix([("a", [1, 2])]).compare("a").baseline(3).repeat(u32::MAX);
        let expected =
            ["the baseline 3 is no value of a", "these are 8589934590 trials; 100000 are the most"];
        assert_eq!(many.problems(), expected);
        assert!(trials(2, 3, 10).problems().is_empty());
    }
}
