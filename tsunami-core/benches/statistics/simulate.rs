//! Measurements whose truth is known.

use std::thread;

use tsunami_core::statistics::{Placed, Round};

/// A trial's own noise where nothing else is said: 2 %.
pub(crate) const NOISE: f64 = 0.02;

/// How trials are disturbed. All of it is relative, and on logarithms.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scenario {
    /// Each trial's own noise, as a standard deviation.
    pub(crate) noise: f64,
    /// How much of it stays until the next trial.
    pub(crate) correlation: f64,
    /// How many trials take 1.2 to 2 times the value.
    pub(crate) outliers: f64,
    /// How much values rise from the first trial to the last.
    pub(crate) drift: f64,
    /// How much higher the first trial of each round is.
    pub(crate) first: f64,
    /// Each set of machines is off by up to this, to both sides; a quarter of the rounds begin a new set.
    pub(crate) machines: f64,
    /// What all trials of a round share, as a standard deviation.
    pub(crate) shared: f64,
    /// What machines do to the second variant alone, as a standard deviation over sets.
    pub(crate) machines_of_variant: f64,
    /// If not 0, each set has so many rounds.
    pub(crate) rounds_of_set: u32,
}

/// Chance, of one simulation.
#[derive(Debug)]
pub(crate) struct Chance(fastrand::Rng);

impl Chance {
    pub(crate) fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.0.f64(), self.0.f64());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }

    /// From `low` to `high`.
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.0.f64() * (high - low)
    }

    fn happens(&mut self, often: f64) -> bool {
        self.0.f64() < often
    }

    /// The orders of one Williams square, or of both of an odd number of variants, as trials are ordered: names and rows
    /// are shuffled.
    fn square(&mut self, variants: usize) -> Vec<Vec<usize>> {
        let mut names: Vec<usize> = (0..variants).collect();
        self.0.shuffle(&mut names);
        let first = (0..variants).map(|place| match place % 2 {
            1 => place.div_ceil(2),
            _ => (variants - place / 2) % variants,
        });
        let first: Vec<usize> = first.collect();
        let mut rows: Vec<Vec<usize>> = (0..variants)
            .map(|shift| first.iter().map(|at| names[(at + shift) % variants]).collect())
            .collect();
        self.0.shuffle(&mut rows);
        if variants % 2 == 1 {
            let mut mirrored: Vec<Vec<usize>> =
                rows.iter().map(|row| row.iter().rev().copied().collect()).collect();
            self.0.shuffle(&mut mirrored);
            rows.append(&mut mirrored);
        }
        rows
    }
}

impl Scenario {
    /// Rounds of so many variants. Each variant's effect is a logarithm; the first one's is 0.
    pub(crate) fn rounds(&self, count: usize, effects: &[f64], chance: &mut Chance) -> Vec<Round> {
        let variants = effects.len();
        let mut orders = Vec::new();
        while orders.len() < count {
            orders.append(&mut chance.square(variants));
        }
        let (mut set, mut offset, mut of_variant) = (0, 0.0, 0.0);
        let mut noise = chance.normal();
        let mut rounds = Vec::with_capacity(count);
        for (round, order) in (0_u32..).zip(&orders[..count]) {
            let begins = match self.rounds_of_set {
                0 => round == 0 || (self.machines > 0.0 && chance.happens(0.25)),
                rounds => round % rounds == 0,
            };
            if begins {
                set += 1;
                offset = chance.between(1.0 - self.machines, 1.0 + self.machines).ln();
                of_variant = self.machines_of_variant * chance.normal();
            }
            let shared = self.shared * chance.normal();
            let mut values = vec![None; variants];
            for (place, &variant) in (0..).zip(order) {
                let before = f64::from(round) * variants as f64 + f64::from(place);
                let passed = before / (count * variants - 1) as f64;
                noise = self.correlation * noise
                    + (1.0 - self.correlation * self.correlation).sqrt() * chance.normal();
                let mut value = effects[variant] + offset + shared + self.noise * noise;
                value += self.drift.ln_1p() * passed;
                value += if place == 0 { self.first.ln_1p() } else { 0.0 };
                value += if variant == 1 { of_variant } else { 0.0 };
                if self.outliers > 0.0 && chance.happens(self.outliers) {
                    value += chance.between(1.2, 2.0).ln();
                }
                values[variant] = Some(Placed { value: 100.0 * value.exp(), place });
            }
            rounds.push(Round { set, values });
        }
        rounds
    }
}

/// What each of so many simulations comes to, in their order. Each has chance of its own, so the result doesn't depend
/// on how many processors there are.
pub(crate) fn simulations<T: Send>(
    seed: u64,
    count: u64,
    simulate: impl Fn(&mut Chance) -> T + Sync,
) -> Vec<T> {
    let processors = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let simulate = &simulate;
    thread::scope(|scope| {
        let parts: Vec<_> = (0..processors)
            .map(|part| (count * part / processors)..(count * (part + 1) / processors))
            .map(|part| {
                scope.spawn(move || {
                    let one = |number: u64| {
                        simulate(&mut Chance(fastrand::Rng::with_seed(
                            seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                        )))
                    };
                    part.map(one).collect::<Vec<T>>()
                })
            })
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("a simulation doesn't panic")).collect()
    })
}
