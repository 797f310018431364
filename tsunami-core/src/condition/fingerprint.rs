//! What a machine is, and which machines differ from those beside them.

use std::collections::{BTreeMap, BTreeSet};

use super::Facts;
use crate::cluster::Host;
use crate::error::Error;
use crate::limits::FACT_LIMIT;
use crate::text::{sanitize, shorten};

const SCRIPT: &str = include_str!("fingerprint.sh");

/// What the machines are called that one is compared with.
pub(crate) const OTHERS: &str = "of the others";

/// What errors call that.
const ACTION: &str = "look at what the machine is";

/// How much of a value a difference shows, in characters.
const SHOWN_FACT_LIMIT: usize = 100;

/// The facts that a machine may tell.
const FACTS: &[&str] = &[
    "architecture",
    "bash",
    "clock_source",
    "cpu_flags",
    "cpu_model",
    "cpus",
    "governor",
    "huge_pages",
    "kernel",
    "libc",
    "memory",
    "microcode",
    "mitigations",
    "numa",
    "os",
    "product",
    "smt",
    "swap",
    "vendor",
    "virtualization",
];

/// What its provider says of a machine. It may differ where the machines don't, as with the market it was had from.
const OFFERED_AS: &str = "offered_as";

/// Bytes of memory, of which like machines have a little more or less.
const MEMORY: &str = "memory";

/// By how much, as a part of the larger.
const MEMORY_TOLERANCE: f64 = 0.02;

/// Asks a machine what it is. What it doesn't tell is left out.
///
/// | fact | is |
/// |---|---|
/// | `cpu_model`, `microcode`, `architecture` | what `/proc/cpuinfo` and `uname -m` call the processor |
/// | `cpu_flags` | how many there are, and a digest of them |
/// | `cpus` | the processors that a process may use |
/// | `smt`, `numa`, `governor`, `clock_source`, `huge_pages`, `mitigations` | what the kernel says of them; mitigations of what it is affected by |
/// | `memory`, `swap` | bytes |
/// | `vendor`, `product`, `virtualization` | what the firmware says (on EC2 the instance type), and `systemd-detect-virt` |
/// | `kernel`, `os`, `libc`, `bash` | versions |
/// | `offered_as` | the provider's [description](crate::Machine::description): type, zone and market, as far as it says them |
///
/// May be dropped at any await.
///
/// # Errors
///
/// [`Error::Session`] where the machine could not be asked, [`Error::Lost`] or [`Error::Interrupted`] if it ends meanwhile,
/// [`Error::Cancelled`] if the run does.
pub async fn fingerprint(host: &Host) -> Result<Facts, Error> {
    let said = host.stage("fingerprint").administer(ACTION, SCRIPT, &[]).await?;
    if let Some(boot) = said.lines().find_map(|line| line.strip_prefix("boot\t")) {
        // So that an account looks but once at machines that share a computer.
        host.boot().get_or_init(|| value_of(boot));
    }
    let mut facts = facts_of(&said);
    let description = &host.machine().description;
    if !description.is_empty() {
        facts.insert(OFFERED_AS.to_owned(), value_of(description));
    }
    Ok(facts)
}

/// Reads what the script says.
fn facts_of(said: &str) -> Facts {
    let lines = said.lines().filter_map(|line| line.split_once('\t'));
    let known = lines.filter(|(name, value)| FACTS.contains(name) && !value.trim().is_empty());
    known
        .map(|(name, value)| match name {
            "cpu_flags" => (name.to_owned(), digest(value)),
            _ => (name.to_owned(), value_of(value)),
        })
        .collect()
}

fn value_of(text: &str) -> String {
    shorten(sanitize(text).trim(), FACT_LIMIT).into_owned()
}

/// How many words there are and, in any order, a digest of them (FNV-1a, which anybody can compute).
fn digest(words: &str) -> String {
    let words: BTreeSet<&str> = words.split_whitespace().collect();
    let bytes = words.iter().flat_map(|word| word.bytes().chain([b' ']));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} flags, {hash:016x}", words.len())
}

/// In what two machines differ, in words; in nothing if they are alike. Memory is alike within 2 %, and what a provider
/// calls them is left out: the market they were had from is no part of what they are.
pub fn differences(machine: &Facts, other: &Facts) -> Vec<String> {
    differing(machine, other, OTHERS)
}

/// The same, with a word for the other.
fn differing(machine: &Facts, other: &Facts, whose: &str) -> Vec<String> {
    let names: BTreeSet<&String> = machine.keys().chain(other.keys()).collect();
    let differing = names.into_iter().filter(|name| !is_alike(name, machine, other));
    differing.map(|name| in_words(name, machine.get(name), &[other.get(name)], whose)).collect()
}

/// In what the kinds of machines that a group has differ from those that it has elsewhere; in nothing if each kind that is
/// here is there too, and the other way round.
#[cfg(feature = "experiment")]
pub(crate) fn unlike(here: &[Facts], there: &[Facts], whose: &str) -> Vec<String> {
    let lone = |some: &'_ [Facts], others: &[Facts]| {
        let is_lone = |facts: &&Facts| others.iter().all(|other| !differences(facts, other).is_empty());
        some.iter().find(is_lone).cloned()
    };
    let pair = lone(here, there).zip(there.first().cloned());
    let pair = pair.or_else(|| here.first().cloned().zip(lone(there, here)));
    pair.map(|(one, other)| differing(&one, &other, whose)).unwrap_or_default()
}

/// Which machines differ from the others of their group, and in what: by the name and the group of each, and its facts.
/// They come in the order in which they are given, each once.
///
/// In each fact, the machines of a group that more than half of them agree with are what the others should be. Where
/// there is no such majority, as where two machines differ, nobody can say which of them is odd, and all are named.
pub fn odd(machines: &[(&str, &str, &Facts)]) -> Vec<(String, Vec<String>)> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, (_, group, _)) in machines.iter().enumerate() {
        groups.entry(group).or_default().push(place);
    }
    let mut odd: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for members in groups.values() {
        let facts = |place: &usize| machines[*place].2;
        let names: BTreeSet<&String> = members.iter().flat_map(|place| facts(place).keys()).collect();
        for name in names {
            let alike = |a: &usize, b: &usize| is_alike(name, facts(a), facts(b));
            let agree = |place: &&usize| members.iter().filter(|other| alike(place, other)).count();
            let most = members.iter().find(|place| agree(place) * 2 > members.len());
            for place in members {
                let others: Vec<&usize> = match most {
                    Some(most) if alike(place, most) => continue,
                    Some(most) => vec![most],
                    None => members.iter().filter(|other| !alike(place, other)).collect(),
                };
                let others: BTreeSet<_> = others.into_iter().map(|other| facts(other).get(name)).collect();
                let others: Vec<_> = others.into_iter().collect();
                odd.entry(*place).or_default().push(in_words(name, facts(place).get(name), &others, OTHERS));
            }
        }
    }
    odd.into_iter().map(|(place, differences)| (machines[place].0.to_owned(), differences)).collect()
}

fn is_alike(name: &str, machine: &Facts, other: &Facts) -> bool {
    let (one, other) = (machine.get(name), other.get(name));
    let bytes = |fact: Option<&String>| fact.and_then(|fact| fact.parse::<f64>().ok());
    match (name, bytes(one), bytes(other)) {
        (OFFERED_AS, ..) => true,
        (MEMORY, Some(one), Some(other)) => (one - other).abs() <= MEMORY_TOLERANCE * one.max(other),
        _ => one == other,
    }
}

/// `kernel is 6.1.0-1, of the others 6.1.0-2`.
fn in_words(name: &str, fact: Option<&String>, others: &[Option<&String>], whose: &str) -> String {
    let value = |fact: &Option<&String>| match fact {
        Some(fact) => shorten(fact, SHOWN_FACT_LIMIT).into_owned(),
        None => "not known".to_owned(),
    };
    let others = others.iter().map(value).collect::<Vec<_>>().join(" or ");
    format!("{name} is {}, {whose} {}", value(&fact), shorten(&others, 2 * SHOWN_FACT_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SHELLS, says};
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> Facts {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_shell_tells_the_same_in_any_language() {
        let told = SHELLS.map(|shell| facts_of(&says(shell, SCRIPT, &[], &[("LANG", "de_DE.UTF-8")])));
        for fact in ["cpus", "kernel", "memory", "bash", "libc", "architecture", "os"] {
            assert!(told[0].contains_key(fact), "{fact} is not among {:?}", told[0]);
        }
        assert_eq!((&told[1], &told[2]), (&told[0], &told[0]));
    }

    #[test]
    fn what_a_machine_says_is_bounded_and_typed() {
        let long = "x".repeat(100_000);
        let said = format!("kernel\t6.1\u{1b}[31m\nrm -rf\t/\ncpu_model\t{long}\nos\t \nno tab\nswap\t0\n");
        let told = facts_of(&said);
        assert_eq!(told.keys().collect::<Vec<_>>(), ["cpu_model", "kernel", "swap"]);
        assert_eq!(told["kernel"], "6.1");
        assert_eq!(told["cpu_model"].chars().count(), FACT_LIMIT + 1);
        assert_eq!(digest("sse avx"), digest("avx  sse"));
        assert_ne!(digest("sse avx"), digest("sse avx2"));
    }

    #[test]
    fn one_that_differs_from_most_is_named_and_two_that_differ_are_both() {
        let usual = facts(&[("kernel", "6.1"), (MEMORY, "1000"), (OFFERED_AS, "spot")]);
        let near = facts(&[("kernel", "6.1"), (MEMORY, "1015"), (OFFERED_AS, "on demand")]);
        let small = facts(&[("kernel", "6.1"), (MEMORY, "500")]);
        let newer = facts(&[("kernel", "6.2"), (MEMORY, "1000"), ("governor", "powersave")]);
        let named = |machines: &[(&str, &str, &Facts)]| odd(machines);
        assert_eq!(named(&[("a-0", "a", &usual), ("a-1", "a", &near), ("b-0", "b", &newer)]), []);
        assert_eq!(
            named(&[("a-0", "a", &newer), ("a-1", "a", &near), ("a-2", "a", &usual)]),
            [(
                "a-0".to_owned(),
                vec![
                    "governor is powersave, of the others not known".to_owned(),
                    "kernel is 6.2, of the others 6.1".to_owned()
                ]
            )]
        );
        let two = named(&[("a-0", "a", &usual), ("a-1", "a", &small)]);
        assert_eq!(
            two,
            [
                ("a-0".to_owned(), vec!["memory is 1000, of the others 500".to_owned()]),
                ("a-1".to_owned(), vec!["memory is 500, of the others 1000".to_owned()])
            ]
        );
        assert_eq!(differences(&usual, &near), Vec::<String>::new());
        assert_eq!(differences(&usual, &small), ["memory is 1000, of the others 500"]);
    }
}
