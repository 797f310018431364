//! A machine's way up, in phases.

use std::time::Duration;

use crate::report::MachineReport;

/// What a new machine's way up consists of, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum StartPhase {
    /// From the request for its group to the provider's answer.
    Request,
    /// Until it was seen to run with an address.
    Start,
    /// Until it was first seen to answer.
    Boot,
    /// Until a session stood.
    Login,
    /// Until its provider had checked it. On EC2 that includes the end of cloud-init, unless a group doesn't wait for it.
    Verify,
    /// Until it was set up.
    SetUp,
}

impl StartPhase {
    const ALL: [Self; 6] = [Self::Request, Self::Start, Self::Boot, Self::Login, Self::Verify, Self::SetUp];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Start => "start",
            Self::Boot => "boot",
            Self::Login => "login",
            Self::Verify => "verify",
            Self::SetUp => "set-up",
        }
    }
}

/// One phase of a machine's way up, or several where it isn't known when one ended and the next began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StartStretch {
    /// The first of its phases.
    pub first: StartPhase,
    /// The last of its phases.
    pub last: StartPhase,
    /// When it began, since the run did.
    pub from: Duration,
    /// When it ended.
    pub until: Duration,
}

impl StartStretch {
    /// The names of its phases: `boot`, `boot and login`.
    pub fn name(&self) -> String {
        let phases = StartPhase::ALL.into_iter().filter(|phase| (self.first..=self.last).contains(phase));
        phases.map(StartPhase::name).collect::<Vec<_>>().join(" and ")
    }

    /// How long it took.
    pub fn took(&self) -> Duration {
        self.until.saturating_sub(self.from)
    }
}

impl MachineReport {
    /// Its way up as far as it went, from the request on. What older streams, or a connector, don't tell apart is one
    /// stretch.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tsunami_core::MachineReport;
    ///
    /// let at = |seconds| Some(Duration::from_secs(seconds));
    /// let mut machine = MachineReport::default();
    /// (machine.requested, machine.launched, machine.running) = (at(0), at(2), at(9));
    /// (machine.answered, machine.connected) = (None, at(30));
    /// let took = |of: &MachineReport| {
    ///     of.start().iter().map(|part| format!("{} {:?}", part.name(), part.took())).collect::<Vec<_>>()
    /// };
    /// assert_eq!(took(&machine), ["request 2s", "start 7s", "boot and login 21s"]);
    /// machine.answered = at(28);
    /// assert_eq!(took(&machine)[2..], ["boot 19s", "login 2s"]);
    /// ```
    pub fn start(&self) -> Vec<StartStretch> {
        let ends = [self.launched, self.running, self.answered, self.connected, self.verified, self.ready];
        let mut stretches = Vec::new();
        // The place of the phase that begins then.
        let mut since = self.requested.map(|at| (0, at));
        for (place, until) in ends.into_iter().enumerate() {
            let Some(until) = until else { continue };
            if let Some((first, from)) = since.filter(|(_, from)| *from <= until) {
                let (first, last) = (StartPhase::ALL[first], StartPhase::ALL[place]);
                stretches.push(StartStretch { first, last, from, until });
            }
            since = Some((place + 1, until));
        }
        stretches
    }
}
