//! `tsunami run`: the whole thing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;
use tsunami_core::experiment::{Experiment, ExperimentRun, RunOptions};
use tsunami_core::registry::{Backend, Registry};
use tsunami_core::results::{Json, markdown};
use tsunami_core::text::{number, span};
use tsunami_core::{
    Error as CoreError, Event, EventKind, Keep, Observer, Outcome, OutputRefused, Price, Report, RunEntry,
    RunId, RunStore, Tsunami,
};

use super::plan::pairs;
use super::{Context, Execute, load, load_again, words_of_repeated};
use crate::args::{FileArgs, assignment};
use crate::backend;
use crate::error::{Error, REMAINS, REPORT_MAKES, quoted};
use crate::reporter::{self, Reporter, Verbosity};
use crate::signals;
use crate::table::say_markdown;
use crate::tails::Tails;
use crate::terminal::{Events, clock, is_all_seen, one_line, print, say, say_lines, say_words, saying};

/// How long a process that gives up lets a slow disk take for what was told before.
const LAST_WRITES_TIMEOUT: Duration = Duration::from_secs(2);

/// Run an experiment: launch, set up, do the steps, tear down
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Run {
    #[command(flatten)]
    stage: StageArgs,
    /// Leave the machines up, until their lifetime is over
    #[arg(long)]
    keep: bool,
    /// Leave the machines up if the experiment fails
    #[arg(long, conflicts_with = "keep")]
    keep_on_failure: bool,
    /// Use the machines of a run that is up, without setting them up again
    #[arg(long, value_name = "RUN", conflicts_with_all = ["keep", "keep_on_failure"])]
    on: Option<String>,
    /// Do the trials that are left of a run: FILE is the directory of its results
    #[arg(long, conflicts_with_all = ["on", "set", "output"])]
    resume: bool,
    /// Do only the trials in which a parameter has this value (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    only: Vec<(String, String)>,
}

const EXAMPLES: &str = "\
Examples:
  tsunami run redis.toml
  tsunami run redis.toml --set n=1000 --keep-on-failure
  tsunami run redis.toml --on redis          # on machines that are up
  tsunami run --resume results/redis/latest  # the trials that are left
  tsunami run results/redis/latest           # once more, as it was";

/// Which trials are done.
#[derive(Default)]
pub(super) struct Part {
    /// Whether those that are left of an earlier run.
    resume: bool,
    /// What parameters are in them.
    only: Vec<(String, String)>,
}

/// What a run of an experiment file is made from.
#[derive(Debug, clap::Args)]
pub(super) struct StageArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Where logs go: a new or empty directory [default: results/NAME/RUN-ID]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print every event as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Execute for Run {
    /// Those that are resumed are told of by what resumes them.
    fn names_abandoned_runs(&self) -> bool {
        !self.resume
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let state = RunStore::standard()?;
        let on = self.on.as_deref().map(|name| state.find(name)).transpose()?;
        let keep = match (&on, self.keep, self.keep_on_failure) {
            (None, true, _) => Keep::Always,
            (None, false, true) => Keep::OnFailure,
            _ => Keep::Never,
        };
        let part = Part { resume: self.resume, only: self.only };
        let stage = Stage::prepare(&self.stage, context, on.as_ref(), keep, state, part).await?;
        stage.end_abandoned(context.registry).await?;
        let outcome = match on {
            Some(directory) => {
                let ended = stage.run.run_on(&directory).await;
                stage.elsewhere.look();
                ended
            }
            None => stage.run.run().await,
        };
        stage.finish(outcome, Answer::Results).await
    }
}

/// What a run says on standard output, unless that has its events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Where its results are.
    Results,
    /// Its id, where its machines are up.
    Run,
}

/// Everything that a run of an experiment file needs, ready before anything is launched.
pub(super) struct Stage {
    pub(super) run: ExperimentRun,
    /// Whether events go to standard output.
    pub(super) json: bool,
    tails: Arc<Tails>,
    reporter: Arc<dyn Reporter>,
    elsewhere: Arc<Elsewhere>,
    kept: Arc<Kept>,
    /// What can be run on machines that stay up, as the command line has it.
    file: PathBuf,
    quiet: bool,
    /// Whether the machines are another run's, and stay.
    is_attached: bool,
    /// The first set of machines and how many there are, in words, if they depend on parameters.
    first_set: Option<String>,
}

impl Stage {
    /// Checks the file, makes the results directory and the observers, and listens for signals. `on` is the
    /// run whose machines are used in place of new ones.
    pub(super) async fn prepare(
        args: &StageArgs,
        context: &Context<'_>,
        on: Option<&RunEntry>,
        keep: Keep,
        state: RunStore,
        Part { resume, only }: Part,
    ) -> Result<Self, Error> {
        let StageArgs { file, output, json } = args;
        let Context { registry, colour, verbosity, .. } = *context;
        let (experiment, is_repeated) = match resume {
            true => (load_again(&file.file, registry)?, false),
            false => load(file, registry)?,
        };
        if let Some(directory) = on {
            check_machines(&experiment, directory)?;
        }
        let connections = Arc::new(registry.connections(&state, file.accept_new_hosts));
        let Backend { provider, connector, .. } = match on {
            Some(directory) => backend::recorded(registry, directory, &state).await?,
            None => {
                let asked = format!("asking provider {}", experiment.provider);
                saying(&asked, connections.of(&experiment)).await.map_err(Error::Provider)?
            }
        };
        let tsunami = Tsunami::new(provider, connector).state(state.clone()).keep(keep);
        let id = tsunami.next_run_id();
        let elsewhere = Arc::new(Elsewhere {
            state: state.clone(),
            machines_of: Mutex::new(on.map_or_else(|| id.clone(), RunEntry::id)),
            torn_down: AtomicBool::new(false),
        });
        let (cancel, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
        let kept = Arc::new(Kept::default());
        let tsunami = tsunami.observer(progress.clone()).observer(elsewhere.clone()).observer(kept.clone());
        let tsunami = tsunami.cancel_on(cancel.clone());
        let tails = Arc::new(Tails::default());
        let reporter = reporter::choose(verbosity, colour, reporter::signs(&experiment));
        let mut options = RunOptions::default().id(id).observer(tails.clone()).observer(reporter.clone());
        if *json {
            options = options.observer(Arc::new(Json::new(Box::new(Events))));
        }
        if let Some(output) = output {
            options = options.results(output);
        }
        for (name, value) in only {
            options = options.only(name, value);
        }
        options = options.connect(move |experiment| {
            let connections = connections.clone();
            async move { connections.of(&experiment).await.map_err(CoreError::other) }
        });
        let first_set = experiment.sets.first().filter(|_| experiment.set_count() > 1);
        let first_set =
            first_set.map(|set| format!("set 1 of {} ({})", experiment.set_count(), pairs(&set.parameters)));
        let crowded = crate::too_few_open_files(experiment.machines().count());
        let notes = experiment.notes();
        let run = match (resume, is_repeated) {
            (true, _) => ExperimentRun::resume(experiment, tsunami, options, &file.file).await?,
            (_, true) => ExperimentRun::repeat(experiment, tsunami, options, &file.file).await?,
            _ => ExperimentRun::prepare(experiment, tsunami, options).await?,
        };
        if let Some(repeated) = run.repeats().filter(|_| verbosity != Verbosity::Quiet) {
            say(&words_of_repeated(&repeated, run.part()));
        }
        run.secrets().warnings().chain(notes).chain(crowded).for_each(|warning| say(&warning));
        if resume && run.is_done() && verbosity != Verbosity::Quiet {
            say("nothing is left to do: all trials are done");
        }
        if run.prepares() && verbosity != Verbosity::Quiet {
            say("preparing on this computer first");
        }
        let telling = reporter.clone();
        let tell = move |line: &str| telling.say(line);
        let (shown, whose, attached) = (reporter.clone(), elsewhere.clone(), on.is_some());
        let results = run.results().clone();
        let is_quiet = verbosity == Verbosity::Quiet;
        let give_up = Arc::new(move || {
            shown.finish();
            results.settle(LAST_WRITES_TIMEOUT);
            let status = progress.give_up(&whose.machines_of(), attached);
            // Nobody is left to make a report of what was measured.
            if results.directory().is_dir() && !is_quiet {
                say(&format!("results: {}", results.directory().to_string_lossy()));
                say(&format!("`tsunami report {}` {REPORT_MAKES}", quoted(results.directory())));
            }
            status
        });
        let doing = if on.is_some() { "stopping" } else { "stopping and tearing down" };
        signals::watch(cancel, doing, tell, give_up)?;
        let quiet = verbosity == Verbosity::Quiet;
        let (is_attached, json, file) = (on.is_some(), *json, file.file.clone());
        Ok(Self { run, tails, reporter, elsewhere, kept, file, quiet, is_attached, first_set, json })
    }

    /// Says which machines are brought up alone, where they depend on parameters.
    pub(super) fn tell_first_set(&self) {
        if let Some(set) = self.first_set.as_ref().filter(|_| !self.quiet) {
            say(&format!("only {set} is launched: `tsunami run` launches each set, one after another"));
        }
    }

    /// Tears down what a process that was killed has left of the run that is resumed.
    async fn end_abandoned(&self, registry: &Registry) -> Result<(), Error> {
        for run in self.run.abandoned() {
            say(&format!("run {} was abandoned by its controller; what is left of it is removed", run.id()));
            let engine = backend::engine_or_remains(registry, &run, &self.elsewhere.state).await?;
            let what = format!("{}: being torn down", run.id());
            saying(&what, engine.down(&run)).await?;
        }
        Ok(())
    }

    /// Writes down what came of it, and says where, and what stays up.
    pub(super) async fn finish(self, outcome: Result<(), CoreError>, answer: Answer) -> Result<u8, Error> {
        self.reporter.finish();
        let logs = self.run.results().logs();
        let (tails, secrets) = (self.tails.clone(), self.run.secrets().clone());
        let rest = self.run.is_resumable().then(|| self.run.results().directory().to_owned());
        let lost: Vec<String> = outcome.as_ref().err().map(lost).unwrap_or_default();
        let error = outcome.err().map(|error| {
            let is_own = matches!(error, CoreError::Cancelled | CoreError::Remains { .. });
            if !is_own && self.elsewhere.has_torn_down() {
                return Error::TornDown(self.elsewhere.machines_of());
            }
            let (error, is_attached) = (Box::new(error), self.is_attached);
            Error::Run { error, logs, rest, tails, secrets, is_attached }
        });
        // A command whose output can't be written down fails for nothing that its machine has done.
        let local = self.run.unwritten().await;
        let only_follows = |error: &Error| local.is_some() && OutputRefused::is_source_of(error);
        let error = error.filter(|error| error.status() == REMAINS || !only_follows(error));
        let has_rest = error.is_none() && self.run.is_resumable();
        let unwritten = |source, is_lost| {
            let results = self.run.results().directory().to_owned();
            Error::Unwritten { results, source, is_lost, has_rest }
        };
        let local = local.map(|error| unwritten(error.into(), true));
        let outcome = error.as_ref().or(local.as_ref()).map_or(Outcome::Success, Error::outcome);
        let (report, written) = match self.run.finish(outcome).await {
            Ok(report) => (Some(report), None),
            // Where events are lost, it is known why the rest isn't there.
            Err(error) => (None, Some(unwritten(error.into(), false)).filter(|_| local.is_none())),
        };
        self.run.results().remarks().iter().for_each(|remark| say(remark));
        if let Some(report) = report.as_ref().filter(|_| !self.quiet) {
            if !self.json {
                say_markdown(&markdown(&report.analysis()));
            }
            // Machines that depend on parameters can't be those of another run.
            self.kept.tell(report, self.first_set.is_none().then_some(&*self.file), &lost);
        }
        let told = self.tell_results(answer).err();
        let events = if self.json { Events::finish().err() } else { None };
        // The gravest comes last, where it is seen.
        let failures = [events, told, written, local, error];
        let mut failures = failures.into_iter().flatten().collect::<Vec<_>>();
        let last = failures.pop();
        failures.iter().for_each(Error::show);
        last.map_or(Ok(0), Err)
    }

    /// Says where the results are: to whoever watches, and to whatever reads standard output.
    fn tell_results(&self, answer: Answer) -> Result<(), Error> {
        let directory = self.run.results().directory();
        if !directory.is_dir() {
            // It was refused before there was any.
            return Ok(());
        }
        let directory = directory.to_string_lossy();
        if !self.quiet {
            say(&format!("results: {directory}"));
        }
        let is_seen = !self.quiet && is_all_seen();
        match self.json || is_seen || answer != Answer::Results {
            true => Ok(()),
            false => print(&format!("{}\n", one_line(&directory))),
        }
    }
}

/// Whether a run has all machines of an experiment, as it is recorded.
fn check_machines(experiment: &Experiment, directory: &RunEntry) -> Result<(), Error> {
    let groups = directory.record()?.groups;
    let has = |name: &str, count| groups.iter().any(|group| group.name == name && group.count >= count);
    let missing = experiment.groups.iter().find(|group| !has(&group.name, group.count.get()));
    // Which set they would be is told by whoever runs it.
    let Some(missing) = missing.filter(|_| experiment.set_count() == 1) else { return Ok(()) };
    let known: Vec<_> = groups.iter().map(|group| format!("{} × {}", group.count, group.name)).collect();
    Err(Error::Usage(format!(
        "{} needs {} × {}, and run {} has {}",
        experiment.name,
        missing.count,
        missing.name,
        directory.id(),
        known.join(", ")
    )))
}

/// How many machines that stay up are named.
const NAMED: usize = 8;

/// The runs whose machines stay up, and until when.
#[derive(Debug, Default)]
struct Kept(Mutex<KeptRuns>);

#[derive(Debug, Default)]
struct KeptRuns {
    current: Option<RunId>,
    kept: Vec<(RunId, SystemTime)>,
}

impl Kept {
    /// Says what is up, until when, what that costs, and what can be done with it: also to run a file there, if one can be.
    fn tell(&self, report: &Report, file: Option<&Path>, lost: &[String]) {
        let KeptRuns { kept, .. } = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (run, until) in kept {
            let set = report.sets().find(|set| set.run.as_ref() == Some(run));
            let machines = set.map(|set| &set.machines);
            let is_ready = machines.into_iter().flatten().all(|(_, machine)| machine.ready.is_some());
            let there = machines.into_iter().flatten().filter(|(_, machine)| machine.gone.is_none());
            let (names, prices): (Vec<_>, Vec<_>) =
                there.map(|(name, machine)| (name.as_str(), machine.price)).unzip();
            let (unsure, names): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| lost.iter().any(|lost| lost == name));
            // One that is gone, or never was set up, is none to run on.
            let is_whole = is_ready && Some(names.len()) == machines.map(BTreeMap::len);
            let file = file.filter(|_| is_whole).map(Path::to_string_lossy);
            let hourly = hourly(prices.into_iter());
            let text = up(run, &names, &unsure, hourly, *until, SystemTime::now(), file.as_deref());
            let (what, commands) = text.split_once('\n').unwrap_or_default();
            say_words(what);
            say_lines(commands);
        }
    }
}

impl Observer for Kept {
    fn event(&self, event: &Event) {
        let KeptRuns { current, kept } = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&event.kind, &current) {
            (EventKind::RunStarted { run, .. }, _) => *current = Some(run.clone()),
            (EventKind::Kept { until }, Some(run)) => kept.push((run.clone(), *until)),
            _ => {}
        }
    }
}

/// What machines cost in an hour, in US dollars; `None` if a price is not known.
pub(super) fn hourly(prices: impl Iterator<Item = Price>) -> Option<f64> {
    let each = prices.map(|price| price.dollars(1, Duration::from_secs(3600)));
    // The sum of none is -0.0.
    each.sum::<Option<f64>>().map(|sum| sum + 0.0)
}

/// The machines that contact was lost to, in the errors of a run.
fn lost(error: &CoreError) -> Vec<String> {
    match error {
        CoreError::Lost { machine, .. } => vec![machine.clone()],
        CoreError::Several(failures) => {
            [&*failures.first].into_iter().chain(&failures.others).flat_map(lost).collect()
        }
        _ => Vec::new(),
    }
}

/// The last words on machines that stay up, and can be run on if there is a `file`. Of some it is `unsure` whether they do.
fn up(
    run: &RunId,
    names: &[&str],
    unsure: &[&str],
    hourly: Option<f64>,
    until: SystemTime,
    now: SystemTime,
    file: Option<&str>,
) -> String {
    let left = Duration::from_secs(until.duration_since(now).unwrap_or_default().as_secs());
    let costs = match hourly {
        Some(0.0) => "costs nothing".to_owned(),
        Some(hourly) => format!("${hourly:.2} an hour"),
        None => "what that costs is not known".to_owned(),
    };
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown = one_line(&names[..names.len().min(NAMED)].join(", "));
    let unsure = match unsure {
        [] => String::new(),
        unsure => format!("; may be up as well, but can't be reached: {}", one_line(&unsure.join(", "))),
    };
    let first = one_line(names.first().copied().unwrap_or("MACHINE"));
    let file = file.map(|file| one_line(&shlex::try_quote(file).unwrap_or_default()));
    let run_on = file.map_or_else(String::new, |file| format!("  tsunami run {file} --on {run}\n"));
    format!(
        "{} up for {} more, until {}, {costs}: {shown}{more}{unsure}\n  \
         tsunami ssh {run} {first}\n  \
         tsunami exec {run} -- uptime\n\
         {run_on}  \
         tsunami down {run}\n",
        number(names.len(), "machine"),
        span(left),
        clock(until),
    )
}

/// Whether another process tore the run down: what fails then says nothing of the experiment.
#[derive(Debug)]
struct Elsewhere {
    state: RunStore,
    /// The run that has the machines: another one for each set of them.
    machines_of: Mutex<RunId>,
    torn_down: AtomicBool,
}

impl Elsewhere {
    /// Looked at before a teardown of our own, which would look the same.
    fn look(&self) {
        let ending = match self.state.find(self.machines_of().as_str()) {
            Ok(directory) => directory.is_ending(),
            Err(error) => matches!(error, CoreError::UnknownRun { .. }),
        };
        self.torn_down.store(ending, Ordering::Relaxed);
    }

    fn machines_of(&self) -> RunId {
        self.machines_of.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_torn_down(&self) -> bool {
        self.torn_down.load(Ordering::Relaxed)
    }
}

impl Observer for Elsewhere {
    fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { run, .. } => {
                run.clone_into(&mut self.machines_of.lock().unwrap_or_else(PoisonError::into_inner));
            }
            EventKind::TearingDown { .. } => self.look(),
            _ => {}
        }
    }
}

/// What is known to exist, for the moment when the user stops waiting.
#[derive(Debug, Default)]
struct Progress(Mutex<(Vec<String>, bool)>);

impl Progress {
    /// Says what may remain and how to remove it; returns the exit status for that. Machines that were `attached`
    /// to stay anyway.
    fn give_up(&self, run: &RunId, attached: bool) -> u8 {
        let (machines, clear) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *clear {
            return crate::error::INTERRUPTED;
        }
        if attached {
            say(&format!("may remain: what the steps began on the machines of {run}, which stay up"));
        } else if machines.is_empty() {
            say("may remain: machines whose launch was not answered");
        }
        for machine in machines {
            say(&format!("may remain: {machine}"));
        }
        say(&format!("`tsunami down {run}` removes {}", if attached { "both" } else { "what is left" }));
        REMAINS
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &event.kind {
            EventKind::RunStarted { .. } => *state = Default::default(),
            EventKind::Launched { machines, .. } => {
                state.0.extend(machines.iter().map(|id| format!("machine {id}")));
            }
            EventKind::TornDown { leftovers, .. } => {
                state.0 = leftovers.iter().map(ToString::to_string).collect();
                state.1 = leftovers.is_empty();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_on_machines_that_stay_up_say_all_that_is_to_be_known_of_them() {
        let run = "20231114-221320-abcd".parse().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let until = now + Duration::from_secs(5400);
        let price = [Price::PerHour(0.25), Price::PerHour(0.5)];
        let text =
            up(&run, &["client-0", "server-0"], &[], hourly(price.into_iter()), until, now, Some("a b.toml"));
        assert_eq!(
            text,
            "2 machines up for 1h 30m more, until 2023-11-14 23:43:20 UTC, $0.75 an hour: client-0, server-0\n  \
             tsunami ssh 20231114-221320-abcd client-0\n  \
             tsunami exec 20231114-221320-abcd -- uptime\n  \
             tsunami run 'a b.toml' --on 20231114-221320-abcd\n  \
             tsunami down 20231114-221320-abcd\n"
        );
        let names: Vec<_> = (0..60).map(|n| format!("n-{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let text = up(&run, &names, &["x-0"], hourly([Price::Unknown].into_iter()), until, now, None);
        assert!(!text.contains("--on"), "{text}");
        assert!(
            text.contains("not known: n-0, ")
                && text.contains("n-7 and 52 more; may be up as well, but can't be reached: x-0\n"),
            "{text}"
        );
    }
}
