//! Comparisons from rounds to sentences, and figures beside scipy's.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// Made by `xtask/statistics/reference.py`.
const REFERENCE: &str = include_str!("../../tests/fixtures/statistics.json");

/// Rounds of two variants on one set, which take turns at going first.
fn rounds(values: &[(f64, f64)]) -> Vec<Round> {
    (0..).zip(values).map(|(round, values)| placed(1, *values, round % 2)).collect()
}

fn placed(set: u32, (baseline, variant): (f64, f64), place: u32) -> Round {
    let baseline = Placed { value: baseline, place };
    Round { set, values: vec![Some(baseline), Some(Placed { value: variant, place: 1 - place })] }
}

fn compared(rounds: &[Round]) -> Comparison {
    compare(rounds, 0, 1, 0.95).unwrap()
}

/// What is said of latencies with these values, if 3 % don't matter.
fn said(values: &[(f64, f64)]) -> String {
    let comparison = compared(&rounds(values));
    let words = Words { metric: "p99", unit: Some("ms"), baseline: "old", variant: "new" };
    words.sentence(&comparison, &verdict(&comparison, 0.03, Some(Direction::Lower)), 0.03)
}

fn near(ours: f64, theirs: &Value, tolerance: f64, what: &str) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= tolerance, "{what}: {ours}, and scipy has {theirs}");
}

#[test]
fn differences_have_few_digits_and_huge_ones_are_factors() {
    let signed = [0.0, -0.001, 3.456, -25.04].map(words::signed);
    assert_eq!(signed, ["0.00", "0.00", "+3.46", "−25.0"]);
    let wild = [(1.0, 3.0), (1.0, 4e4), (1.0, 5e7)];
    let (estimate, interval) = change(&compared(&rounds(&wild)));
    assert!(
        estimate.starts_with('×') && interval.starts_with("×") && interval.contains(" to ×"),
        "{interval}"
    );
    assert!(
        estimate.len() + interval.len() < 35 && said(&wild).contains(&format!("({interval})")),
        "{interval}"
    );
    let clear = said(&[(1.0, 400.0), (1.0, 420.0), (1.0, 410.0)]);
    assert!(
        clear.starts_with("p99 of new is 385.") && clear.ends_with(" times that of old (worse)"),
        "{clear}"
    );
}

#[test]
fn scipy_has_the_same_figures() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    for sample in reference["samples"].as_array().unwrap() {
        let name = sample["name"].as_str().unwrap();
        let values: Vec<f64> =
            sample["values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        for (key, confidence) in [("t_95", 0.95), ("t_99_9", 0.999)] {
            let (ours, theirs) = (t_interval(&values, confidence).unwrap(), &sample[key]);
            near(ours.mean, &theirs["mean"], 1e-6, name);
            near(ours.standard_error, &theirs["standard_error"], 1e-6, name);
            near(ours.interval.low, &theirs["interval"]["low"], 1e-6, name);
            near(ours.interval.high, &theirs["interval"]["high"], 1e-6, name);
            near(ours.p_value, &theirs["p_value"], 1e-6, name);
        }
        let (ours, theirs) = (wilcoxon_signed_rank(&values).unwrap(), &sample["wilcoxon"]);
        near(ours.statistic, &theirs["statistic"], 1e-6, name);
        near(ours.p_value, &theirs["p_value"], 1e-6, name);
        near(ours.n as f64, &theirs["n"], 0.0, name);
        let seen = summary(&values, 1);
        near(seen.sd, &sample["sd"], 1e-6, name);
        near(seen.mad, &sample["mad"], 1e-6, name);
        near(quantile(&values, 0.1), &sample["quantile_10"], 1e-6, name);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let deviation = |values: &[f64]| sample::variance(values).sqrt();
        let means = bootstrap(&values, mean, 100_000, 0.95, 1).unwrap();
        let deviations = bootstrap(&values, deviation, 100_000, 0.95, 1).unwrap();
        for (ours, theirs) in [(means, &sample["bootstrap_mean"]), (deviations, &sample["bootstrap_sd"])] {
            near(ours.low, &theirs["low"], 0.02 * ours.width(), name);
            near(ours.high, &theirs["high"], 0.02 * ours.width(), name);
        }
    }
}

#[test]
fn scipy_has_the_same_distributions() {
    let reference: Value = serde_json::from_str(REFERENCE).unwrap();
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    for row in reference["t_quantiles"].as_array().unwrap() {
        let ours = sample::t_quantile(number(row, "confidence"), number(row, "freedom"));
        near(ours, &row["quantile"], 1e-6 * ours, "t");
    }
    for row in reference["f_p_values"].as_array().unwrap() {
        let ours = sample::f_p_value(number(row, "ratio"), number(row, "above"), number(row, "below"));
        near(ours, &row["p_value"], 1e-6, "F");
    }
}

#[test]
fn what_places_do_is_taken_away() {
    // The second of a round is 20 % higher, and the variant 10 %.
    let noise = [1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99];
    let values = (0..).zip(noise).map(|(round, noise)| match round % 2 {
        0 => (100.0, 132.0 * noise),
        _ => (120.0, 110.0 * noise),
    });
    let values: Vec<_> = values.collect();
    for count in [5, 8] {
        let comparison = compared(&rounds(&values[..count]));
        assert!(comparison.adjusted_for_place);
        assert!((comparison.estimate - 1.1).abs() < 0.01, "{comparison:?}");
        assert!(comparison.interval.width() < 0.06, "{comparison:?}");
        assert_eq!(comparison.degrees_of_freedom, count as f64 - 2.0);
        let second = comparison.warnings.iter().find_map(|warning| match warning {
            Warning::PlaceMatters { change, adjusted: true } => Some(*change),
            _ => None,
        });
        assert!((second.unwrap() - 0.2).abs() < 0.02, "{second:?}");
    }
    // Few rounds in which places don't matter keep their degree of freedom.
    let quiet: Vec<_> = noise[..5].iter().map(|noise| (100.0, 110.0 * noise)).collect();
    let comparison = compared(&rounds(&quiet));
    assert!(!comparison.adjusted_for_place);
    assert_eq!(comparison.degrees_of_freedom, 4.0);
}

#[test]
fn of_three_variants_the_first_place_is_told_from_the_slope() {
    // Three variants that are alike; whoever is first has half of the others' value.
    let orders = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 2, 1], [1, 0, 2]];
    let rounds: Vec<Round> = (0..18)
        .map(|round: usize| {
            let mut values = vec![None; 3];
            for (place, variant) in (0..).zip(orders[round % 6]) {
                let noise = 1.0 + 0.001 * ((7 * round + 3 * variant) % 5) as f64;
                let value = noise * if place == 0 { 50.0 } else { 100.0 };
                values[variant] = Some(Placed { value, place });
            }
            Round { set: 1, values }
        })
        .collect();
    let comparison = compare(&rounds, 0, 2, 0.95).unwrap();
    assert_eq!(comparison.degrees_of_freedom, 15.0);
    assert!(comparison.interval.contains(1.0) && comparison.interval.width() < 0.005, "{comparison:?}");
}

#[test]
fn rounds_without_both_values_are_left_out() {
    let mut all = rounds(&[(1.0, 2.0), (f64::NAN, 2.0), (1.0, f64::INFINITY), (1.0, 2.1), (1e200, 2.0)]);
    all.push(Round { set: 1, values: vec![None, Some(Placed { value: 1.0, place: 0 })] });
    all.push(Round::default());
    let comparison = compared(&all);
    assert_eq!((comparison.rounds, comparison.left_out), (2, 5));
    assert!(comparison.warnings.contains(&Warning::LeftOut { rounds: 5 }));
    all.remove(0);
    let few = compare(&all, 0, 1, 0.95).unwrap_err();
    assert_eq!(few, TooFew { rounds: 1, left_out: 5 });
    assert_eq!(
        few.to_string(),
        "can't be compared: it takes 2 rounds in which both have a value, and there is one"
    );
    assert_eq!(compare(&all, 0, 7, 0.95).unwrap_err().rounds, 0);
}

#[test]
fn values_below_zero_are_compared_by_differences() {
    let comparison = compared(&rounds(&[(0.0, 2.0), (-1.0, 1.5), (1.0, 3.0), (0.5, 2.0)]));
    assert_eq!(comparison.scale, Scale::Difference);
    assert!((comparison.estimate - 2.0).abs() < 0.01, "{comparison:?}");
    assert_eq!(comparison.baseline_mean, 0.125);
}

#[test]
fn other_machines_take_five_sets() {
    let by_set = |sets: u32| -> Vec<Round> {
        let variant = |set, round| 100.0 + 4.0 * f64::from(set % 3) + f64::from(round);
        (0..sets)
            .flat_map(|set| (0..4).map(move |round| placed(set, (100.0, variant(set, round)), round % 2)))
            .collect()
    };
    assert_eq!(across_sets(&by_set(4), 0, 1, 0.95, 1), None);
    let rounds = by_set(6);
    let (here, across) = (compared(&rounds), across_sets(&rounds, 0, 1, 0.95, 1).unwrap());
    assert_eq!((across.sets, across.degrees_of_freedom, here.sets), (Some(6), 5.0, None));
    assert_eq!(across.estimate, here.estimate);
    assert!(across.interval.width() > 1.5 * here.interval.width(), "{here:?} {across:?}");
    assert_eq!(across_sets(&rounds, 0, 1, 0.95, 1), Some(across));
}

#[test]
fn verdicts_read_well() {
    let of =
        |factors: &[f64]| -> Vec<(f64, f64)> { factors.iter().map(|factor| (20.0, 20.0 * factor)).collect() };
    let cases = [
        (of(&[1.05, 1.12, 1.15, 1.08, 1.13, 1.10]), "p99 of new is 7 to 14 % higher (worse)"),
        (of(&[0.95, 0.88, 0.85, 0.92, 0.87, 0.90]), "p99 of new is 7 to 14 % lower (better)"),
        (of(&[3.9, 4.4, 4.1, 4.2, 4.0, 4.3]), "p99 of new is 4.0 to 4.3 times that of old (worse)"),
        (of(&[1.02, 0.99, 1.01, 0.98, 1.0, 1.01]), "p99 of old and new differ by less than 3 % (−1 to +2 %)"),
        // Certain, and yet too little to matter.
        (
            of(&[1.012, 1.011, 1.010, 1.009, 1.011, 1.010]),
            "p99 of old and new differ by less than 3 % (+0.9 to +1.2 %)",
        ),
        (of(&[1.0, 1.0, 1.0]), "p99 of old and new is the same"),
        (of(&[1.5, 1.5, 1.5]), "p99 of new is 50 % higher (worse)"),
        (
            of(&[1.08, 0.97, 1.05, 0.95, 1.02, 1.04]),
            "whether p99 of old and new differ can't be told (−3 to +7 %); about 10 more repeats, 5 to 24, would tell",
        ),
        (vec![(0.0, 1.0), (0.0, 1.4), (0.0, 0.8), (0.0, 1.2)], "p99 of new is 0.7 to 1.5 ms higher (worse)"),
        // Differences are set against the baseline's mean: 250.5 ms.
        (
            vec![(500.0, 501.0), (501.0, 500.0), (0.0, 0.5), (1.0, 0.5)],
            "p99 of old and new differ by less than 7.51 ms (−1 to +1 ms)",
        ),
    ];
    for (values, sentence) in cases {
        assert_eq!(said(&values), sentence);
    }
}

#[test]
fn without_a_direction_nothing_is_better() {
    let comparison = compared(&rounds(&[(1.0, 2.0), (1.0, 2.1), (1.0, 2.2)]));
    assert_eq!(verdict(&comparison, 0.03, None), Verdict::Differs { higher: true, better: None });
}

#[test]
fn where_repeats_hardly_help_no_number_is_told() {
    let values = [(1.0, 2.0), (2.0, 1.0), (2.0, 1.0), (1.0, 2.0)];
    let comparison = compared(&rounds(&values.repeat(60)));
    assert_eq!(verdict(&comparison, 0.0001, None), Verdict::CannotTell { more: None });
}

#[test]
fn data_that_deserve_less_trust_are_named() {
    let warned = |rounds: &[Round]| compared(rounds).warnings;
    let quiet = [1.0, 0.99, 1.01, 1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 0.995, 1.005, 1.01];
    let values = |scale: &dyn Fn(usize) -> f64| -> Vec<(f64, f64)> {
        let other = quiet.iter().cycle().skip(2);
        quiet
            .iter()
            .zip(other)
            .enumerate()
            .map(|(at, (old, new))| (old * scale(at), new * scale(at)))
            .collect()
    };
    assert_eq!(warned(&rounds(&values(&|_| 1.0))), []);
    assert_eq!(warned(&rounds(&values(&|_| 1.0)[..4])), [Warning::FewRounds { rounds: 4 }]);
    let drift = warned(&rounds(&values(&|at| 1.0 + 0.02 * at as f64)));
    assert!(matches!(drift[..], [Warning::Drift { change }] if (0.15..0.3).contains(&change)), "{drift:?}");
    let mut outlier = values(&|_| 1.0);
    outlier[3].1 *= 2.0;
    assert_eq!(warned(&rounds(&outlier)), [Warning::Outliers { rounds: 1 }]);
    let slow = warned(&rounds(&values(&|at| 1.0 + 0.05 * (at as f64).sin())));
    assert!(matches!(slow[..], [Warning::Correlated { correlation }] if correlation > 0.5), "{slow:?}");
    let one_way: Vec<Round> = values(&|_| 1.0).into_iter().map(|values| placed(1, values, 0)).collect();
    assert_eq!(warned(&one_way), [Warning::AlwaysTheSameOrder]);
    let mut mostly = one_way[..6].to_vec();
    mostly.push(placed(1, (1.0, 1.0), 1));
    assert_eq!(warned(&mostly), [Warning::Unbalanced]);
    assert_eq!(warned(&rounds(&[(1.0, 1.1); 6])), [Warning::NoSpread]);
}

#[test]
fn thresholds_are_read_and_judged() {
    let threshold: Threshold = "rps<0.95".parse().unwrap();
    assert_eq!((threshold.op, threshold.to_string()), (Op::Below, "rps < 0.95".to_owned()));
    for (text, error) in [
        ("rps", "`rps` has neither `<` nor `>`; write it as `rps < 0.95`"),
        ("rps =< 0.95", "`rps =< 0.95` has more than one sign; write it as `rps < 0.95`"),
        ("rps <= 0.95", "`rps <= 0.95` has more than one sign; write it as `rps < 0.95`"),
        ("< 0.95", "`< 0.95` names no metric; write it as `rps < 0.95`"),
        ("rps < 5 %", "`5 %` is no ratio to the baseline; write a number above 0, such as 0.95"),
        ("rps < -1", "`-1` is no ratio to the baseline; write a number above 0, such as 0.95"),
        ("rps < NaN", "`NaN` is no ratio to the baseline; write a number above 0, such as 0.95"),
    ] {
        assert_eq!(text.parse::<Threshold>().unwrap_err().to_string(), error);
    }
    let slower = compared(&rounds(&[(100.0, 90.0), (100.0, 91.0), (100.0, 89.0), (100.0, 90.5)]));
    let judged = |text: &str, comparison: &Comparison| text.parse::<Threshold>().unwrap().judge(comparison);
    assert_eq!(judged("rps < 0.95", &slower), Judgement::Holds);
    assert_eq!(judged("rps < 0.90", &slower), Judgement::Undecided);
    assert_eq!(judged("rps < 0.80", &slower), Judgement::Not);
    assert_eq!(judged("rps > 0.80", &slower), Judgement::Holds);
    assert_eq!(judged("rps > 0.95", &slower), Judgement::Not);
    // Differences are taken of the baseline's mean, 1.
    let differences = compared(&rounds(&[(2.0, 4.0), (0.0, 2.1), (1.0, 3.0), (1.0, 2.9)]));
    assert_eq!(judged("errors > 2", &differences), Judgement::Holds);
    let of_nothing = compared(&rounds(&[(0.0, 4.0), (0.0, 2.1)]));
    assert_eq!(judged("errors > 2", &of_nothing), Judgement::NoRatio);
}

#[test]
fn comparisons_are_saved_and_read() {
    let comparison = compared(&rounds(&[(1.0, 1.2), (1.1, 1.3), (1.0, 1.1)]));
    let saved = serde_json::to_string(&comparison).unwrap();
    assert_eq!(serde_json::from_str::<Comparison>(&saved).unwrap(), comparison);
    let told = verdict(&comparison, 0.3, None);
    assert_eq!(serde_json::from_str::<Verdict>(&serde_json::to_string(&told).unwrap()).unwrap(), told);
}

#[test]
fn a_summary_of_nothing_is_no_number() {
    let nothing = summary(&[f64::NAN], 1);
    assert_eq!((nothing.n, nothing.interval), (0, None));
    assert!([nothing.mean, nothing.median, nothing.min, nothing.sd].iter().all(|figure| figure.is_nan()));
    let one = summary(&[3.0, f64::INFINITY], 1);
    assert_eq!((one.n, one.mean, one.sd, one.mad), (1, 3.0, 0.0, 0.0));
}

fn any_round() -> impl Strategy<Value = Round> {
    let value = (prop_oneof![any::<f64>(), -3.0..3.0_f64, 1.0..1.01_f64], 0..4_u32);
    let values = vec(option::weighted(0.9, value.prop_map(|(value, place)| Placed { value, place })), 0..4);
    (0..7_u32, values).prop_map(|(set, values)| Round { set, values })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn nothing_that_is_measured_panics(
        rounds in vec(any_round(), 0..40),
        confidence in prop_oneof![any::<f64>(), 0.0..1.0_f64],
        margin in prop_oneof![any::<f64>(), 0.0..0.1_f64],
    ) {
        let words = Words { metric: "m", unit: None, baseline: "a", variant: "b" };
        let all = compare(&rounds, 0, 1, confidence).ok().into_iter();
        for comparison in all.chain(across_sets(&rounds, 0, 1, confidence, 1)) {
            prop_assert!(comparison.interval.low <= comparison.interval.high, "{comparison:?}");
            prop_assert!(!comparison.estimate.is_nan() && !comparison.standard_error.is_nan(), "{comparison:?}");
            for warning in &comparison.warnings {
                prop_assert!(!warning.to_string().is_empty());
            }
            let told = verdict(&comparison, margin, Some(Direction::Higher));
            prop_assert!(!words.sentence(&comparison, &told, margin).is_empty());
            let _ = Threshold { metric: String::new(), op: Op::Below, ratio: 0.9 }.judge(&comparison);
        }
        let values: Vec<f64> = rounds.iter().flat_map(|round| &round.values).flatten().map(|placed| placed.value).collect();
        let _ = summary(&values, 1);
        let _ = t_interval(&values, confidence);
        let _ = wilcoxon_signed_rank(&values);
    }
}
