//! What to launch and how to set it up.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Host;
use crate::error::Error;
use crate::limits::{DURATION_LIMIT, GROUP_LIMIT, MACHINE_LIMIT, NAME_LIMIT};
use crate::names;
use crate::provider::{MachineSpec, ProviderError, ProviderErrorKind, Quote};

/// The lifetime of machines whose plan says nothing else.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// The time from launch to a session for machines whose plan says nothing else.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// Which machines an experiment needs, and what makes them ready.
///
/// ```
/// use std::time::Duration;
/// use tsunami_core::{Group, MachineSpec, Plan};
///
/// let plan = Plan::new("redis")
///     .group(Group::new("server", MachineSpec::default()).setup(|m| async move {
///         m.run("sudo apt-get install -yq redis-server").await
///     }))
///     .group(Group::new("client", MachineSpec::default()).count(3).setup(async |m| {
///         m.upload("load", "bin/load").await?;
///         m.run("bin/load --version").await
///     }))
///     .lifetime(Duration::from_secs(45 * 60));
/// assert!(plan.validate().is_ok());
/// ```
#[derive(Clone, Debug)]
#[must_use = "a plan does nothing until it is run"]
#[non_exhaustive]
pub struct Plan {
    /// The experiment's name.
    pub name: String,
    /// The groups of machines.
    pub groups: Vec<Group>,
    /// How long the machines may live, from their birth.
    pub lifetime: Duration,
    /// How long a machine may take from its launch to a session.
    pub connect_timeout: Duration,
    /// The most that the machines may cost, in US dollars.
    pub budget: Option<f64>,
}

/// Something that is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// What it is about: `plan`, or the group's name.
    pub about: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.about, self.message)
    }
}

impl Plan {
    /// A plan without machines.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            groups: Vec::new(),
            lifetime: DEFAULT_LIFETIME,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            budget: None,
        }
    }

    /// Adds a group.
    pub fn group(mut self, group: Group) -> Self {
        self.groups.push(group);
        self
    }

    /// Sets how long the machines may live, from their birth: a year ([`DURATION_LIMIT`]) at most. Default: one hour.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sets how long a machine may take from its launch to a session. Default: two minutes.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the most that the machines may cost over their lifetime, in US dollars. A run that might cost more,
    /// or whose price is not known, is not started.
    pub fn budget(mut self, dollars: f64) -> Self {
        self.budget = Some(dollars);
        self
    }

    /// The most that the machines can cost over their lifetime, in US dollars, given the quotes for the groups
    /// in order; where interrupted machines are replaced, with one replacement of each. `None` if a price is not known.
    pub fn max_cost(&self, quotes: &[Quote]) -> Option<f64> {
        let groups = self.groups.iter().zip(quotes);
        let dollars = |(group, quote): (&Group, &Quote)| {
            let rounds = if group.replace_interrupted { 2.0 } else { 1.0 };
            Some(quote.max_price.dollars(group.count, self.lifetime)? * rounds)
        };
        groups.map(dollars).sum()
    }

    /// Checks the plan by itself. What runs it does so first.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] with all that is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        let mut problem = |about: &str, message: String| {
            problems.push(Problem { about: about.to_owned(), message });
        };
        if let Some(wrong) = names::wrong_length(&self.name) {
            problem("plan", wrong);
        } else if !names::is_experiment_name(&self.name) {
            problem("plan", format!("`{}` can't be a name: {}", self.name, names::EXPERIMENT_NAME));
        }
        if self.groups.is_empty() {
            problem("plan", "it has no group of machines".to_owned());
        }
        for (what, duration) in [("lifetime", self.lifetime), ("connect timeout", self.connect_timeout)] {
            if duration.is_zero() {
                problem("plan", format!("the {what} is zero"));
            } else if duration > DURATION_LIMIT {
                let limit = crate::text::span(DURATION_LIMIT);
                problem("plan", format!("the {what} is longer than {limit}"));
            }
        }
        if self.groups.len() > GROUP_LIMIT {
            problem("plan", format!("it has more than {GROUP_LIMIT} groups"));
        }
        let machines: u64 = self.groups.iter().map(|group| u64::from(group.count)).sum();
        if machines > MACHINE_LIMIT.into() {
            problem("plan", format!("it has more than {MACHINE_LIMIT} machines"));
        }
        if self.budget.is_some_and(|budget| !budget.is_finite() || budget < 0.0) {
            problem("plan", "the budget is not an amount of money".to_owned());
        }
        let mut seen = BTreeSet::new();
        for group in &self.groups {
            if let Some(wrong) = names::wrong_length(&group.name) {
                problem(&group.name[..group.name.floor_char_boundary(NAME_LIMIT)], wrong);
            } else if !names::is_group_name(&group.name) {
                let wrong = format!("`{}` can't name a group: {}", group.name, names::GROUP_NAME);
                problem(&group.name, wrong);
            }
            if group.count == 0 {
                problem(&group.name, "a group needs at least one machine".to_owned());
            }
            if !seen.insert(&group.name) {
                problem(&group.name, "another group has the same name".to_owned());
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Plan { problems }) }
    }
}

/// Machines of one kind with one set-up.
#[derive(Clone)]
#[must_use = "a group does nothing until it is part of a plan"]
#[non_exhaustive]
pub struct Group {
    /// The name, `[a-z][a-z0-9_]*`; its machines are called `<name>-<index>`.
    pub name: String,
    /// What kind of machine.
    pub spec: MachineSpec,
    /// How many.
    pub count: u32,
    /// Whether a machine that its provider takes back before its time gets a replacement, once.
    pub replace_interrupted: bool,
    pub(crate) setup: Option<Setup>,
    /// Where a file says something of it, by its key, or where the group itself stands.
    pub(crate) place: Option<PlaceOf>,
}

pub(crate) type PlaceOf = Arc<dyn Fn(Option<&str>) -> Option<Box<str>> + Send + Sync>;
pub(crate) type Setup = Arc<dyn Fn(Host) -> SetupFuture + Send + Sync>;
pub(crate) type SetupFuture = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

impl Group {
    /// A group of one machine without set-up.
    pub fn new(name: impl Into<String>, spec: MachineSpec) -> Self {
        Self { name: name.into(), spec, count: 1, replace_interrupted: false, setup: None, place: None }
    }

    /// Sets how many machines the group has: one at least, and all of a plan together [`MACHINE_LIMIT`] at most. Default: one.
    pub fn count(mut self, count: u32) -> Self {
        self.count = count;
        self
    }

    /// Sets whether a machine that its provider takes back before its time gets a replacement, once. During
    /// set-up that happens by itself, afterwards through [`Cluster::repair`](crate::Cluster::repair).
    pub fn replace_interrupted(mut self, replace: bool) -> Self {
        self.replace_interrupted = replace;
        self
    }

    /// Sets what makes a machine of the group ready. It runs on each as soon as that one answers.
    ///
    /// The closure may be dropped at any await, when the run is cancelled or another machine failed. It runs once for each
    /// machine: what it captures, it clones.
    ///
    /// ```
    /// # use tsunami_core::{Group, MachineSpec};
    /// let package = String::from("redis-server");
    /// let group = Group::new("server", MachineSpec::default()).setup(move |host| {
    ///     let package = package.clone();
    ///     async move { host.run(format!("sudo apt-get install -yq {package}")).await }
    /// });
    /// # let _ = group;
    /// ```
    pub fn setup<F, Fut, T>(mut self, setup: F) -> Self
    where
        F: Fn(Host) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.setup = Some(Arc::new(move |host| {
            let setup = setup(host);
            Box::pin(async move { setup.await.map(drop) })
        }));
        self
    }

    /// A provider's error, with the place of what it refuses. Of what isn't the description's fault there is none.
    pub(crate) fn placed(&self, error: ProviderError) -> ProviderError {
        let is_refused = error.key.is_some() || error.kind == ProviderErrorKind::InvalidSpec;
        let place_of = self.place.as_ref().filter(|_| is_refused);
        ProviderError { place: place_of.and_then(|place_of| place_of(error.key)), ..error }
    }

    /// The number of machines, once the plan is validated.
    pub(crate) fn size(&self) -> NonZeroU32 {
        NonZeroU32::new(self.count).unwrap_or(NonZeroU32::MIN)
    }
}

impl Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name)
            .field("spec", &self.spec)
            .field("count", &self.count)
            .field("replace_interrupted", &self.replace_interrupted)
            .field("setup", &self.setup.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Price;

    #[test]
    fn all_problems_are_found_at_once() {
        let plan = Plan::new("a b")
            .lifetime(Duration::ZERO)
            .group(Group::new("Server", MachineSpec::default()))
            .group(Group::new("client", MachineSpec::default()).count(0))
            .group(Group::new("client", MachineSpec::default()));
        let Err(Error::Plan { problems }) = plan.validate() else { panic!("accepted") };
        let about: Vec<&str> = problems.iter().map(|problem| problem.about.as_str()).collect();
        assert_eq!(about, ["plan", "plan", "Server", "client", "client"]);
    }

    #[test]
    fn a_replacement_of_each_machine_counts_where_there_may_be_one() {
        let group = || Group::new("node", MachineSpec::default()).count(3);
        let cost = |group| {
            let plan = Plan::new("x").lifetime(Duration::from_secs(7200)).group(group);
            plan.max_cost(&[Quote::new(Vec::new(), Price::PerHour(0.5))])
        };
        assert_eq!(cost(group()), Some(3.0));
        assert_eq!(cost(group().replace_interrupted(true)), Some(6.0));
    }

    #[test]
    fn what_an_experiment_file_may_not_ask_for_no_plan_may() {
        let of = |count| Group::new("node", MachineSpec::default()).count(count);
        let year = DURATION_LIMIT;
        let plan = || Plan::new("x").group(of(MACHINE_LIMIT)).lifetime(year).connect_timeout(year);
        plan().validate().unwrap();
        let groups = (0..=GROUP_LIMIT).map(|i| Group::new(format!("g{i}"), MachineSpec::default()));
        let long = "é".repeat(NAME_LIMIT);
        for (plan, problem) in [
            (plan().lifetime(Duration::MAX), "lifetime is longer"),
            (plan().lifetime(year + Duration::from_nanos(1)), "lifetime is longer"),
            (plan().connect_timeout(Duration::MAX), "connect timeout is longer"),
            (plan().group(Group::new("more", MachineSpec::default())), "machines"),
            (plan().group(Group::new("more", MachineSpec::default()).count(u32::MAX)), "machines"),
            (groups.fold(Plan::new("x"), Plan::group), "groups"),
            (Plan::new("x".repeat(NAME_LIMIT + 1)).group(of(1)), "bytes"),
            (Plan::new("x").group(Group::new(long, MachineSpec::default())), "bytes"),
        ] {
            let Err(Error::Plan { problems }) = plan.validate() else { panic!("accepted: {problem}") };
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].message.contains(problem), "{problems:?}");
        }
    }

    #[test]
    fn a_plan_without_machines_is_refused() {
        assert!(matches!(Plan::new("x").validate(), Err(Error::Plan { .. })));
    }
}
