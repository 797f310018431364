//! What instance types have to have, where their names don't matter.

use std::fmt;
use std::ops::{Bound, RangeBounds};

/// Any instance type that has all of this, but for bare metal. Types that burst (`t4g.large`) are among them, unless
/// `exclude` says otherwise.
///
/// ```
/// use tsunami_aws::{Ec2Spec, Shape};
///
/// let shape = Shape::default().vcpus(2..=4).memory_gib(8..).arch("arm64").exclude(["t*"]);
/// assert_eq!(shape.to_string(), "2 to 4 vCPUs, at least 8 GiB, arm64, current generation, none of t*");
/// let spec = Ec2Spec::default().shape(shape);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shape {
    /// How many virtual processors.
    pub vcpus: Amount,
    /// How much memory, in GiB.
    pub memory_gib: Amount,
    /// The architecture, `x86_64` or `arm64`.
    pub arch: String,
    /// Of which age.
    pub generation: Generation,
    /// The types that won't do, in which `*` stands for anything: `t*`, `*.metal`.
    pub exclude: Vec<String>,
}

/// From so much to so much, both included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Amount {
    /// The least.
    pub least: u32,
    /// The most; `None` is any amount.
    pub most: Option<u32>,
}

/// How old instance types may be, as EC2 counts their generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Generation {
    /// Those that AWS recommends.
    #[default]
    Current,
    /// Only those before.
    Previous,
    /// All.
    Any,
}

/// The architectures that machines may have.
pub(crate) const ARCHITECTURES: [&str; 2] = ["x86_64", "arm64"];

/// The generations by their words, as files have them.
pub(crate) const GENERATIONS: [(&str, Generation); 3] =
    [("current", Generation::Current), ("previous", Generation::Previous), ("any", Generation::Any)];

/// EC2 takes so many patterns of types that won't do,
const MAX_EXCLUDED: usize = 400;

/// each of so many characters.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_InstanceRequirementsRequest.html>
const MAX_PATTERN_LENGTH: usize = 30;

impl Default for Shape {
    /// Every type of the current generation with x86_64 processors.
    fn default() -> Self {
        Self {
            vcpus: Amount::default(),
            memory_gib: Amount::default(),
            arch: "x86_64".to_owned(),
            generation: Generation::Current,
            exclude: Vec::new(),
        }
    }
}

impl Shape {
    /// Sets how many virtual processors.
    pub fn vcpus(mut self, vcpus: impl RangeBounds<u32>) -> Self {
        self.vcpus = Amount::of(vcpus);
        self
    }

    /// Sets how much memory, in GiB.
    pub fn memory_gib(mut self, gib: impl RangeBounds<u32>) -> Self {
        self.memory_gib = Amount::of(gib);
        self
    }

    /// Sets the architecture, `x86_64` or `arm64`.
    pub fn arch(mut self, arch: impl Into<String>) -> Self {
        self.arch = arch.into();
        self
    }

    /// Sets of which age.
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// Sets the types that won't do, in which `*` stands for anything.
    pub fn exclude(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.exclude = types.into_iter().map(Into::into).collect();
        self
    }

    /// What is wrong with it by itself.
    pub(crate) fn wrong(&self) -> Option<String> {
        for (name, amount) in [("vcpus", self.vcpus), ("memory", self.memory_gib)] {
            if amount.is_empty() {
                return Some(format!(
                    "no instance type has {name} from {amount}: that ends before it begins"
                ));
            }
        }
        if !ARCHITECTURES.contains(&self.arch.as_str()) {
            return Some(format!("`{}` is no architecture of machines: use x86_64 or arm64", self.arch));
        }
        if self.exclude.len() > MAX_EXCLUDED {
            return Some(format!("EC2 takes {MAX_EXCLUDED} types to leave out, and no more"));
        }
        self.exclude.iter().find_map(|pattern| wrong_pattern(pattern))
    }
}

/// What is wrong with a pattern of instance types.
pub(crate) fn wrong_pattern(pattern: &str) -> Option<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '*' | '-');
    let is_right = (1..=MAX_PATTERN_LENGTH).contains(&pattern.len()) && pattern.chars().all(fits);
    (!is_right)
        .then(|| format!("`{}` is no instance type, nor a pattern of some", crate::text::line(pattern)))
}

impl Amount {
    /// The same as a range of whole numbers.
    pub fn of(range: impl RangeBounds<u32>) -> Self {
        let least = match range.start_bound() {
            Bound::Included(least) => *least,
            Bound::Excluded(below) => below.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let most = match range.end_bound() {
            Bound::Included(most) => Some(*most),
            Bound::Excluded(above) => Some(above.saturating_sub(1)),
            Bound::Unbounded => None,
        };
        Self { least, most }
    }

    /// Reads `2..4`, `2..`, `..4` or `4`, of amounts that `number` reads. Both ends count.
    pub(crate) fn read(text: &str, number: impl Fn(&str) -> Option<u32>) -> Option<Self> {
        let end = |text: &str| match text.trim() {
            "" => Some(None),
            text => number(text).map(Some),
        };
        let (least, most) = match text.split_once("..") {
            Some((least, most)) => (end(least)?, end(most)?),
            None => (Some(number(text.trim())?), Some(number(text.trim())?)),
        };
        (least.is_some() || most.is_some()).then(|| Self { least: least.unwrap_or_default(), most })
    }

    /// Whether nothing can be within it.
    pub(crate) fn is_empty(self) -> bool {
        self.most.is_some_and(|most| most < self.least.max(1))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.least, self.most) {
            (0 | 1, None) => f.write_str("any number of"),
            (least, None) => write!(f, "at least {least}"),
            (0 | 1, Some(most)) if most > 1 => write!(f, "at most {most}"),
            (least, Some(most)) if least == most => write!(f, "{most}"),
            (least, Some(most)) => write!(f, "{least} to {most}"),
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = GENERATIONS.iter().find(|(_, generation)| generation == self);
        f.write_str(words.map_or("any", |(word, _)| word))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpus, memory_gib, arch, generation, exclude } = self;
        write!(f, "{vcpus} vCPUs, {memory_gib} GiB, {arch}, {generation} generation")?;
        if exclude.is_empty() { Ok(()) } else { write!(f, ", none of {}", exclude.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_read_with_both_of_its_ends() {
        let read = |text| Amount::read(text, |number| number.parse().ok());
        for (text, least, most, said) in [
            ("2..4", 2, Some(4), "2 to 4"),
            ("2 .. 4", 2, Some(4), "2 to 4"),
            ("8..", 8, None, "at least 8"),
            ("..16", 0, Some(16), "at most 16"),
            ("4", 4, Some(4), "4"),
        ] {
            let amount = read(text).unwrap();
            assert_eq!((amount, amount.to_string().as_str()), (Amount { least, most }, said), "{text}");
            assert!(!amount.is_empty());
        }
        for wrong in ["", "..", "a", "2...4", "2-4", "2..b", "-1..2"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert!(read("4..2").unwrap().is_empty() && read("0").unwrap().is_empty());
        assert_eq!(Amount::of(2..5), Amount::of(2..=4));
    }

    #[test]
    fn a_shape_that_nothing_has_is_wrong_by_itself() {
        let shape = Shape::default().vcpus(2..);
        assert_eq!(shape.wrong(), None);
        for (shape, wrong) in [
            (Shape { vcpus: Amount { least: 4, most: Some(2) }, ..shape.clone() }, "ends before it begins"),
            (shape.clone().memory_gib(..1), "ends before it begins"),
            (shape.clone().arch("sparc"), "`sparc` is no architecture"),
            (shape.clone().exclude(["c7 g"]), "`c7 g` is no instance type"),
            (shape.exclude(vec!["t*"; 401]), "400 types"),
        ] {
            assert!(shape.wrong().is_some_and(|said| said.contains(wrong)), "{shape}");
        }
    }
}
