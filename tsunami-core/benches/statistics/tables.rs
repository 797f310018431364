//! The tables, one a method.

use tsunami_core::statistics::{
    Comparison, Direction, Interval, Round, Verdict, Warning, across_sets, bonferroni, compare, median,
    t_interval, verdict,
};

use crate::simulate::{NOISE, Scenario, simulations};

const ROUNDS: [usize; 3] = [5, 10, 20];
pub(crate) const CONFIDENCE: f64 = 0.95;
pub(crate) const MARGIN: f64 = 0.03;

/// What is said of a cell in bold that isn't as was asked for.
const MISSED: &str = " missed**";

/// The power of a paired t test (5 %, two-sided) at 2 % noise a trial, by scipy: `xtask/statistics/reference.py`. A row
/// for each of `EFFECTS`, a column for each of `ROUNDS`.
const EFFECTS: [f64; 4] = [0.01, 0.02, 0.03, 0.05];
const PAIRED_T: [[f64; 3]; 4] =
    [[0.0945, 0.1694, 0.3209], [0.2278, 0.5066, 0.8436], [0.4302, 0.8359, 0.9932], [0.8183, 0.9978, 1.0000]];

/// Conditions of the issue, each alone, and then all together.
const SCENARIOS: [(&str, Scenario); 7] = {
    const QUIET: Scenario = Scenario {
        noise: NOISE,
        correlation: 0.0,
        outliers: 0.0,
        drift: 0.0,
        first: 0.0,
        machines: 0.0,
        shared: 0.0,
        machines_of_variant: 0.0,
        rounds_of_set: 0,
    };
    [
        ("independent, normal", QUIET),
        ("2 % outliers, of 1.2 to 2 times", Scenario { outliers: 0.02, ..QUIET }),
        ("drift of 10 % over the run", Scenario { drift: 0.1, ..QUIET }),
        ("the first place is 5 % higher", Scenario { first: 0.05, ..QUIET }),
        ("machines off by up to ±10 %", Scenario { machines: 0.1, ..QUIET }),
        ("AR(1), ρ = 0.6", Scenario { correlation: 0.6, ..QUIET }),
        (
            "all together",
            Scenario { correlation: 0.6, outliers: 0.02, drift: 0.1, first: 0.05, machines: 0.1, ..QUIET },
        ),
    ]
};

#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) seed: u64,
    pub(crate) simulations: u64,
    /// Whether cells that miss what is asked of them are marked.
    pub(crate) judged: bool,
    /// What has been made.
    pub(crate) text: String,
    /// The title and the columns of the last table.
    pub(crate) header: (String, Vec<String>),
    /// How many cells something was asked of.
    pub(crate) asked: u32,
    /// Those that miss it, with where they are.
    pub(crate) missed: Vec<String>,
}

/// What one comparison of equal variants came to.
struct Trusted {
    right: bool,
    warned: bool,
}

impl Tables {
    /// Whether intervals hold the truth, under each condition.
    pub(crate) fn coverage(&mut self) {
        self.header(
            "A/A: how often the 95 % interval holds the truth",
            "At least 93 % is asked for, and in the first row at most 97 %. In parentheses: how often the comparison \
             warned of how its data look (few rounds and the place in the round not counted).",
            &["2 % noise a trial, and", "5 rounds", "10 rounds", "20 rounds"],
        );
        for (number, (name, scenario)) in (0..).zip(SCENARIOS) {
            let cells = ROUNDS.map(|count| {
                let trusted = self.trusted(number, &scenario, count, &[0.0, 0.0]);
                let most = if number == 0 { 0.97 } else { 1.0 };
                self.cell(share(&trusted, |one| one.right), 0.93, most)
                    + &format!(" ({})", percent(share(&trusted, |one| one.warned)))
            });
            self.row(name, &cells);
        }
    }

    /// The same where places are more than two, and what the first place does is no slope over them.
    pub(crate) fn three_variants(&mut self) {
        self.header(
            "A/A of two of three variants",
            "As above; six rounds are a whole square.",
            &["2 % noise a trial, and", "6 rounds", "12 rounds", "20 rounds"],
        );
        for (number, (name, scenario)) in [(10, SCENARIOS[0]), (11, SCENARIOS[3]), (12, SCENARIOS[6])] {
            let cells = [6, 12, 20].map(|count| {
                let trusted = self.trusted(number, &scenario, count, &[0.0, 0.0, 0.0]);
                let most = if number == 10 { 0.97 } else { 1.0 };
                self.cell(share(&trusted, |one| one.right), 0.93, most)
                    + &format!(" ({})", percent(share(&trusted, |one| one.warned)))
            });
            self.row(name, &cells);
        }
    }

    /// Whether intervals that are corrected for being many hold all together.
    pub(crate) fn many(&mut self) {
        const COMPARISONS: usize = 10;
        let simulations = (self.simulations / 10).max(2);
        self.header(
            "A/A of ten comparisons: how often all ten intervals hold the truth",
            &format!(
                "Of 99.5 % each, as Bonferroni's correction has it. {simulations} simulations a cell; at least 93 % is \
                 asked for."
            ),
            &["2 % noise a trial, and", "5 rounds", "10 rounds", "20 rounds"],
        );
        for (number, (name, scenario)) in [(15, SCENARIOS[0]), (16, SCENARIOS[5]), (17, SCENARIOS[6])] {
            let cells = ROUNDS.map(|count| {
                let held = simulated(self.seed, number, count, simulations, |chance| {
                    (0..COMPARISONS).all(|_| {
                        let rounds = scenario.rounds(count, &[0.0, 0.0], chance);
                        let comparison = compare(&rounds, 0, 1, bonferroni(CONFIDENCE, COMPARISONS));
                        comparison.expect("two rounds and more have values").interval.contains(1.0)
                    })
                });
                self.cell(share(&held, |held| *held), 0.93, 1.0)
            });
            self.row(name, &cells);
        }
    }

    fn trusted(&self, number: u64, scenario: &Scenario, count: usize, effects: &[f64]) -> Vec<Trusted> {
        self.simulate(number, count, |chance| {
            let comparison = compared(&scenario.rounds(count, effects, chance));
            let looks = |warning: &Warning| {
                !matches!(warning, Warning::FewRounds { .. } | Warning::PlaceMatters { .. })
            };
            Trusted {
                right: comparison.interval.contains(1.0),
                warned: comparison.warnings.iter().any(looks),
            }
        })
    }

    /// Whether intervals hold what is true of other machines.
    pub(crate) fn other_machines(&mut self) {
        self.header(
            "Other machines: how often the 95 % interval holds what is true over all machines",
            "Machines favour the variant or the baseline by 2 % (a standard deviation over sets), and trials have 2 % \
             noise; four rounds a set. `compare` is for the machines that were there: its share is to show what it \
             doesn't claim. At least 93 % is asked of `across_sets`.",
            &["sets", "`across_sets`", "`compare`"],
        );
        for sets in [5_u32, 8, 16] {
            let scenario =
                Scenario { noise: NOISE, machines_of_variant: 0.02, rounds_of_set: 4, ..Scenario::default() };
            let count = 4 * sets as usize;
            let seed = self.seed;
            let held = self.simulate(20, count, |chance| {
                let rounds = scenario.rounds(count, &[0.0, 0.0], chance);
                let across = across_sets(&rounds, 0, 1, CONFIDENCE, seed).expect("the sets are enough");
                (across.interval.contains(1.0), compared(&rounds).interval.contains(1.0))
            });
            let cells =
                [self.cell(share(&held, |held| held.0), 0.93, 1.0), percent(share(&held, |held| held.1))];
            self.row(&sets.to_string(), &cells);
        }
    }

    /// How often a true difference is seen.
    pub(crate) fn power(&mut self) {
        self.header(
            "Power: how often the 95 % interval excludes \"no difference\"",
            "2 % noise a trial. In parentheses: a paired t test, which knows nothing of places. Within 5 points of it is \
             asked for.",
            &["true difference", "5 rounds", "10 rounds", "20 rounds"],
        );
        for (number, (effect, tests)) in (30..).zip(EFFECTS.into_iter().zip(PAIRED_T)) {
            let scenario = Scenario { noise: NOISE, ..Scenario::default() };
            let cells = [0, 1, 2].map(|column| {
                let (count, test) = (ROUNDS[column], tests[column]);
                let seen = self.simulate(number, count, |chance| {
                    let rounds = scenario.rounds(count, &[0.0, effect.ln_1p()], chance);
                    !compared(&rounds).interval.contains(1.0)
                });
                self.cell(share(&seen, |seen| *seen), test - 0.05, test + 0.05)
                    + &format!(" ({})", percent(test))
            });
            self.row(&percent(effect), &cells);
        }
    }

    /// What comparing within rounds brings, and what it costs where rounds share nothing.
    pub(crate) fn pairing(&mut self) {
        self.header(
            "Pairing: the width of `compare`'s interval over that of an unpaired t interval",
            "A trial's own noise is 2 % (σp); σs is what the trials of a round share. Medians over the simulations. In \
             parentheses: what is expected, σp / √(σs² + σp²), times the ratio of Student's t with n − 1 degrees of \
             freedom to that with 2n − 2. Within 15 % of that is asked for, and at most 1.1 where nothing is shared.",
            &["σs", "5 rounds", "10 rounds", "20 rounds"],
        );
        for (number, shared) in (40..).zip([0.0, 0.02, 0.04, 0.08]) {
            let scenario = Scenario { noise: NOISE, shared, ..Scenario::default() };
            let cells = ROUNDS.map(|count| {
                let expected =
                    NOISE / f64::hypot(NOISE, shared) * t_quantile(count - 1) / t_quantile(2 * (count - 1));
                let ratios = self.simulate(number, count, |chance| {
                    let rounds = scenario.rounds(count, &[0.0, 0.0], chance);
                    width(compared(&rounds).interval) / unpaired(&rounds)
                });
                let ratio = median(&ratios);
                let most = if shared == 0.0 { 1.1 } else { 1.15 * expected };
                let held = (0.85 * expected..=most).contains(&ratio);
                self.mark(format!("{ratio:.2}"), held) + &format!(" ({expected:.2})")
            });
            self.row(&percent(shared), &cells);
        }
    }

    /// Whether "about 8 more repeats, 4 to 17, would tell" is so.
    pub(crate) fn more_repeats(&mut self) {
        let simulations = (self.simulations / 10).max(2);
        self.header(
            "\"About 8 more repeats, 4 to 17, would tell\"",
            &format!(
                "The margin is 3 %; what is not said of the true difference is anything from −12 to +12 %. Where the verdict is \"can't be \
                 told\", rounds are added until it isn't. {simulations} such cases a row. Asked for: the number lies in \
                 the range in 75 to 85 %, and the median estimate is within 15 % of the median number."
            ),
            &["noise a trial, rounds, true difference", "in the range", "median estimate", "median number"],
        );
        let cases = [
            (0.02, 5, None),
            (0.04, 5, None),
            (0.04, 10, None),
            (0.06, 10, None),
            (0.08, 20, None),
            (0.04, 10, Some(0.0)),
            (0.04, 10, Some(0.03)),
            (0.04, 10, Some(0.05)),
        ];
        for (number, (noise, count, effect)) in (50..).zip(cases) {
            let scenario = Scenario { noise, ..Scenario::default() };
            let cases = simulated(self.seed, number, count, simulations, |chance| {
                loop {
                    let effect = effect.unwrap_or_else(|| chance.between(-0.12, 0.12)).ln_1p();
                    let mut rounds = scenario.rounds(count, &[0.0, effect], chance);
                    let told = verdict(&compared(&rounds), MARGIN, Some(Direction::Higher));
                    let Verdict::CannotTell { more: Some(more) } = told else { continue };
                    while rounds.len() < count + 1000 && !tells(&compared(&rounds)) {
                        // Two at a time keep the orders balanced, one is looked at at a time.
                        let mut further = scenario.rounds(2, &[0.0, effect], chance).into_iter();
                        rounds.extend(further.next());
                        if !tells(&compared(&rounds)) {
                            rounds.extend(further.next());
                        }
                    }
                    break (more, rounds.len() - count);
                }
            });
            let inside = share(&cases, |(more, needed)| (more.low..=more.high).contains(needed));
            let estimate = median(&cases.iter().map(|(more, _)| more.estimate as f64).collect::<Vec<_>>());
            let needed = median(&cases.iter().map(|(_, needed)| *needed as f64).collect::<Vec<_>>());
            let near = (0.85 * needed..=1.15 * needed).contains(&estimate);
            let cells = [
                self.cell(inside, 0.75, 0.85),
                self.mark(format!("{estimate:.0}"), near),
                format!("{needed:.0}"),
            ];
            let effect = effect.map_or(String::new(), |effect| format!(", {}", percent(effect)));
            self.row(&format!("{}, {count}{effect}", percent(noise)), &cells);
        }
    }

    fn simulate<T: Send>(
        &self,
        table: u64,
        count: usize,
        simulate: impl Fn(&mut crate::simulate::Chance) -> T + Sync,
    ) -> Vec<T> {
        simulated(self.seed, table, count, self.simulations, simulate)
    }

    fn header(&mut self, title: &str, text: &str, columns: &[&str]) {
        let numbers = "---:|".repeat(columns.len() - 1);
        self.text += &format!("\n### {title}\n\n{text}\n\n| {} |\n|---|{numbers}\n", columns.join(" | "));
        self.header = (title.to_owned(), columns.iter().map(|&column| column.to_owned()).collect());
    }

    fn row(&mut self, name: &str, cells: &[String]) {
        self.text += &format!("| {name} | {} |\n", cells.join(" | "));
        let (title, columns) = &self.header;
        let missed = columns[1..].iter().zip(cells).filter(|(_, cell)| cell.contains(MISSED));
        self.missed.extend(missed.map(|(column, cell)| {
            format!("- {title}: {} {name}; {column}: {}\n", columns[0], cell.replace("**", ""))
        }));
    }

    /// How many cells are as was asked for, and which aren't.
    pub(crate) fn verdict(&self) -> String {
        let (asked, missed) = (self.asked, self.missed.len());
        match missed {
            0 => format!("All {asked} cells are as was asked for.\n"),
            _ => {
                format!("{missed} of {asked} cells missed what was asked for:\n\n{}\n", self.missed.concat())
            }
        }
    }

    fn cell(&mut self, share: f64, least: f64, most: f64) -> String {
        self.mark(percent(share), (least..=most).contains(&share))
    }

    fn mark(&mut self, cell: String, held: bool) -> String {
        self.asked += 1;
        if held || !self.judged { cell } else { format!("**{cell}{MISSED}") }
    }
}

fn simulated<T: Send>(
    seed: u64,
    row: u64,
    count: usize,
    simulations_of_cell: u64,
    simulate: impl Fn(&mut crate::simulate::Chance) -> T + Sync,
) -> Vec<T> {
    let cell = seed.wrapping_mul(1 << 20).wrapping_add(row * 1000 + count as u64);
    simulations(cell.wrapping_mul(0xd134_2543_de82_ef95), simulations_of_cell, simulate)
}

fn compared(rounds: &[Round]) -> Comparison {
    compare(rounds, 0, 1, CONFIDENCE).expect("two rounds and more have values")
}

/// Whether the verdict isn't "can't be told", without saying how many repeats would change that.
fn tells(comparison: &Comparison) -> bool {
    let Interval { low, high, .. } = comparison.interval;
    low > 1.0 || high < 1.0 || (1.0 - MARGIN <= low && high <= 1.0 + MARGIN)
}

/// How wide a t interval of the difference of both means is, on logarithms, as if values of a round had nothing to do
/// with each other.
fn unpaired(rounds: &[Round]) -> f64 {
    let error = |variant: usize| {
        let placed = rounds.iter().filter_map(|round| round.values[variant]);
        let logs: Vec<f64> = placed.map(|placed| placed.value.ln()).collect();
        t_interval(&logs, CONFIDENCE).expect("there are two").standard_error
    };
    2.0 * t_quantile(2 * (rounds.len() - 1)) * f64::hypot(error(0), error(1))
}

/// How many standard errors an interval reaches to each side, seen in a sample that has these degrees of freedom.
fn t_quantile(freedom: usize) -> f64 {
    let sample: Vec<f64> = (0..=freedom).map(|number| number as f64).collect();
    let seen = t_interval(&sample, CONFIDENCE).expect("there are two");
    seen.interval.width() / 2.0 / seen.standard_error
}

/// On logarithms, as the interval was made.
fn width(interval: Interval) -> f64 {
    interval.high.ln() - interval.low.ln()
}

fn share<T>(all: &[T], which: impl Fn(&T) -> bool) -> f64 {
    all.iter().filter(|one| which(one)).count() as f64 / all.len() as f64
}

fn percent(part: f64) -> String {
    let text = format!("{:.1}", 100.0 * part);
    format!("{} %", text.strip_suffix(".0").unwrap_or(&text))
}
