//! Providers and sessions that break one promise each. The conformance suites find every one of them.

use std::any::Any;
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tsunami_core::testing::conformance::{self, ProviderHarness};
use tsunami_core::testing::{FakeCloud, MachineFault};
use tsunami_core::{
    ByteStream, Command, Connector, Deadline, Download, Exclude, Exit, LaunchRequest, Leftover, Machine,
    MachineId, MachineSpec, OutputSink, PipedStdin, Price, Provider, ProviderError, Quote, RunFilter, RunId,
    SequenceObserver, Session, SessionError, Stdin,
};

/// What a provider gets wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Nothing,
    LaunchesWhenAsked,
    CostsMoreThanQuoted,
    DeadlineNeverEnforced,
    ExtendDoesNothing,
    ExtendOnlySaysSo,
    ReplaceIgnored,
    ReplacesEverything,
    AllIsEmpty,
    NoLoginKey,
    NoHostKey,
    AnyHostKey,
    IndexAlwaysZero,
    OrderReversed,
    OneTooFew,
    LaunchesAgain,
    ForgetsToTerminate,
    TerminatesOnce,
    HidesInsteadOfEnding,
    TerminatesEverything,
    OnlyMovesFurther,
    AdmitsAnything,
    AdmitsNothing,
    NoticeNeverComes,
    NoticeAtOnce,
    NoticeWithoutWords,
}

#[derive(Debug)]
struct WrongProvider {
    wrong: Wrong,
    cloud: FakeCloud,
    runs: Mutex<BTreeSet<RunId>>,
    launches: Mutex<u32>,
    hidden: Mutex<BTreeSet<RunId>>,
    terminated: Mutex<BTreeSet<RunId>>,
}

#[async_trait]
impl Provider for WrongProvider {
    fn name(&self) -> String {
        self.cloud.name()
    }

    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        let quote = self.cloud.quote(spec, count).await?;
        match self.wrong {
            Wrong::LaunchesWhenAsked => {
                let (run, lifetime) = (RunId::generate(SystemTime::UNIX_EPOCH, 77), Duration::from_secs(60));
                let deadline = Deadline { at: SystemTime::now() + lifetime, lifetime };
                self.cloud.launch(&LaunchRequest::new(run, "probe", count, spec.clone(), deadline)).await?;
            }
            Wrong::CostsMoreThanQuoted => return Ok(Quote::new(quote.offers, Price::PerHour(1.0))),
            _ => {}
        }
        Ok(quote)
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let mut request = request.clone();
        self.runs.lock().unwrap().insert(request.run.clone());
        let nth = {
            let mut launches = self.launches.lock().unwrap();
            *launches += 1;
            *launches
        };
        match self.wrong {
            Wrong::DeadlineNeverEnforced => {
                let Deadline { at, lifetime } = request.deadline;
                request.deadline = Deadline { at, lifetime: lifetime + Duration::from_secs(3600) };
            }
            Wrong::ReplaceIgnored => request.replace.clear(),
            Wrong::ReplacesEverything if !request.replace.is_empty() => {
                let all = self.cloud.list(&RunFilter::Run(request.run.clone())).await?;
                request.replace = all.into_iter().map(|machine| machine.id).collect();
            }
            Wrong::NoLoginKey => request.authorized_key.clear(),
            Wrong::OneTooFew => {
                request.count = NonZeroU32::new(request.count.get() - 1).unwrap_or(NonZeroU32::MIN);
            }
            Wrong::LaunchesAgain if nth > 1 => {
                let all = self.cloud.list(&RunFilter::Run(request.run.clone())).await?;
                request.replace.extend(all.into_iter().map(|machine| machine.id));
            }
            _ => {}
        }
        let mut ids = self.cloud.launch(&request).await?;
        if self.wrong == Wrong::OrderReversed {
            ids.reverse();
        }
        Ok(ids)
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let mut machines = self.cloud.list(filter).await?;
        machines.retain(|machine| !self.hidden.lock().unwrap().contains(&machine.run));
        match self.wrong {
            Wrong::AllIsEmpty if *filter == RunFilter::All => machines.clear(),
            Wrong::NoHostKey => machines.iter_mut().for_each(|machine| machine.login.host_key = None),
            Wrong::CostsMoreThanQuoted => {
                machines.iter_mut().for_each(|machine| machine.price = Price::PerHour(1.5));
            }
            Wrong::IndexAlwaysZero => machines.iter_mut().for_each(|machine| machine.index = 0),
            Wrong::ExtendOnlySaysSo => machines.iter_mut().for_each(|machine| {
                machine.expires = machine.expires.map(|_| SystemTime::now() + Duration::from_secs(900));
            }),
            _ => {}
        }
        Ok(machines)
    }

    async fn verify(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        match self.wrong {
            Wrong::AdmitsAnything => Ok(()),
            Wrong::AdmitsNothing => {
                Err(ProviderError::new(tsunami_core::ProviderErrorKind::Other, "verify", "no"))
            }
            _ => self.cloud.verify(machine, session).await,
        }
    }

    async fn interruption_notice(&self, machine: &Machine, session: &Arc<dyn Session>) -> String {
        match self.wrong {
            Wrong::NoticeNeverComes => std::future::pending().await,
            Wrong::NoticeAtOnce => "at once".to_owned(),
            Wrong::NoticeWithoutWords => {
                self.cloud.interruption_notice(machine, session).await;
                String::new()
            }
            _ => self.cloud.interruption_notice(machine, session).await,
        }
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        match self.wrong {
            Wrong::ExtendDoesNothing | Wrong::ExtendOnlySaysSo => Ok(()),
            Wrong::OnlyMovesFurther => {
                let listed = self.cloud.list(&RunFilter::Run(run.clone())).await?;
                let latest = listed.iter().filter_map(|machine| machine.expires).max();
                self.cloud.extend(run, latest.map_or(until, |latest| latest.max(until))).await
            }
            _ => self.cloud.extend(run, until).await,
        }
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        match self.wrong {
            Wrong::ForgetsToTerminate => return Ok(Vec::new()),
            Wrong::HidesInsteadOfEnding => {
                self.hidden.lock().unwrap().insert(run.clone());
                return Ok(Vec::new());
            }
            Wrong::TerminatesOnce if !self.terminated.lock().unwrap().insert(run.clone()) => {
                return Ok(Vec::new());
            }
            Wrong::TerminatesEverything => {
                let runs = self.runs.lock().unwrap().clone();
                for run in runs {
                    self.cloud.terminate(&run).await?;
                }
            }
            _ => {}
        }
        self.cloud.terminate(run).await
    }
}

impl ProviderHarness for WrongProvider {
    fn provider(&self) -> &dyn Provider {
        self
    }

    fn spec(&self, _: NonZeroU32) -> MachineSpec {
        MachineSpec::default()
    }

    fn connector(&self, _: &RunId) -> Option<(&dyn Connector, PathBuf)> {
        Some((self, PathBuf::new()))
    }

    fn checks_deadlines(&self) -> bool {
        true
    }

    fn take_back(&self, machine: &Machine) -> bool {
        self.cloud.machine_fault(machine.name(), MachineFault::Notified(Duration::ZERO));
        true
    }

    fn short_lifetime(&self) -> Duration {
        Duration::from_secs(40)
    }
}

#[async_trait]
impl Connector for WrongProvider {
    async fn prepare(&self, run: &RunId, directory: &Path) -> Result<String, SessionError> {
        self.cloud.prepare(run, directory).await
    }

    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError> {
        let mut machine = machine.clone();
        if self.wrong == Wrong::AnyHostKey {
            let listed = self.cloud.list(&RunFilter::Run(machine.run.clone())).await.unwrap();
            machine = listed.into_iter().find(|listed| listed.id == machine.id).unwrap();
        }
        self.cloud.connect(&machine, deadline).await
    }

    async fn finish(&self, run: &RunId) {
        self.cloud.finish(run).await;
    }
}

/// Whether a promise is kept.
async fn kept(promise: impl Future<Output = ()>) -> Result<(), Box<dyn Any + Send>> {
    AssertUnwindSafe(promise).catch_unwind().await
}

macro_rules! promises {
    ($suite:ident, $harness:expr, $($promise:ident),+ $(,)?) => {{
        let mut broken = Vec::new();
        $(if kept(conformance::$suite::$promise($harness)).await.is_err() {
            broken.push(stringify!($promise));
        })+
        broken
    }};
}

#[tokio::test(start_paused = true)]
async fn every_wrong_provider_breaks_a_promise() {
    let broken_by = async |wrong| {
        let harness = || {
            let cloud = FakeCloud::new(1);
            cloud.latency(Duration::from_millis(1)..Duration::from_millis(5));
            WrongProvider {
                wrong,
                cloud,
                runs: Mutex::default(),
                launches: Mutex::default(),
                hidden: Mutex::default(),
                terminated: Mutex::default(),
            }
        };
        promises!(
            provider,
            &harness(),
            a_quote_creates_nothing,
            a_machine_costs_no_more_than_was_quoted,
            launch_returns_as_many_machines_as_asked_for,
            launching_a_group_again_gives_the_same_machines,
            terminate_leaves_nothing_and_may_be_repeated,
            what_is_launched_while_a_run_is_terminated_ends_too,
            what_is_gone_answers_no_more,
            terminating_one_run_leaves_the_other_alone,
            extend_moves_the_deadline,
            machines_have_the_places_that_the_launch_said,
            every_run_is_in_the_list_of_all,
            a_machine_that_no_longer_counts_is_replaced_in_its_place,
            a_machine_ends_at_its_deadline,
            an_extended_machine_ends_at_its_new_deadline,
            an_end_can_be_moved_nearer,
            a_machine_as_it_was_launched_is_admitted,
            a_machine_that_lives_longer_than_promised_is_refused,
            a_machine_that_stays_hears_no_notice,
            a_machine_that_is_taken_back_hears_of_it,
            the_authorized_key_gets_in,
            every_machine_has_a_host_key,
        )
    };
    assert_eq!(broken_by(Wrong::Nothing).await, [""; 0]);
    for (wrong, promise) in [
        (Wrong::LaunchesWhenAsked, "a_quote_creates_nothing"),
        (Wrong::CostsMoreThanQuoted, "a_machine_costs_no_more_than_was_quoted"),
        (Wrong::DeadlineNeverEnforced, "a_machine_ends_at_its_deadline"),
        (Wrong::ExtendDoesNothing, "extend_moves_the_deadline"),
        (Wrong::ExtendOnlySaysSo, "an_extended_machine_ends_at_its_new_deadline"),
        (Wrong::ReplaceIgnored, "a_machine_that_no_longer_counts_is_replaced_in_its_place"),
        (Wrong::ReplacesEverything, "a_machine_that_no_longer_counts_is_replaced_in_its_place"),
        (Wrong::AllIsEmpty, "every_run_is_in_the_list_of_all"),
        (Wrong::NoLoginKey, "the_authorized_key_gets_in"),
        (Wrong::NoHostKey, "every_machine_has_a_host_key"),
        (Wrong::AnyHostKey, "every_machine_has_a_host_key"),
        (Wrong::IndexAlwaysZero, "machines_have_the_places_that_the_launch_said"),
        (Wrong::OrderReversed, "machines_have_the_places_that_the_launch_said"),
        (Wrong::OneTooFew, "launch_returns_as_many_machines_as_asked_for"),
        (Wrong::LaunchesAgain, "launching_a_group_again_gives_the_same_machines"),
        (Wrong::ForgetsToTerminate, "terminate_leaves_nothing_and_may_be_repeated"),
        (Wrong::TerminatesOnce, "what_is_launched_while_a_run_is_terminated_ends_too"),
        (Wrong::HidesInsteadOfEnding, "what_is_gone_answers_no_more"),
        (Wrong::TerminatesEverything, "terminating_one_run_leaves_the_other_alone"),
        (Wrong::OnlyMovesFurther, "an_end_can_be_moved_nearer"),
        (Wrong::AdmitsAnything, "a_machine_that_lives_longer_than_promised_is_refused"),
        (Wrong::AdmitsNothing, "a_machine_as_it_was_launched_is_admitted"),
        (Wrong::NoticeNeverComes, "a_machine_that_is_taken_back_hears_of_it"),
        (Wrong::NoticeAtOnce, "a_machine_that_stays_hears_no_notice"),
        (Wrong::NoticeWithoutWords, "a_machine_that_is_taken_back_hears_of_it"),
    ] {
        let broken = broken_by(wrong).await;
        assert!(broken.contains(&promise), "{wrong:?} breaks only {broken:?}");
    }
}

/// What a session gets wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum WrongSessionKind {
    Nothing,
    ClimbingNamesAccepted,
    ClimbingNamesEndTheRest,
    StdinFileIgnored,
    StdinBytesIgnored,
    PipedWritesIgnored,
    PipedEndIgnored,
    PipedInputCollected,
    PipedInputKept,
    ReadinessIgnored,
    TrailingSlashIgnored,
    DirectoriesRefused,
    NothingIsLeftOut,
    DownloadDirectoryIgnored,
    AbsoluteNamesFlattened,
    CheckAlwaysWorks,
    CheckNeverWorks,
    StatusForgotten,
    ScriptsNeverFail,
    ScriptsSayNothing,
    CancelIgnored,
    SinkErrorsIgnored,
    CountsFiles,
    ListGoesOnAfterFailures,
    ListGoesOnWhenCancelled,
    ListIsToldWhenItIsOver,
    ListHasOneOutput,
    RefusedPortsLoseIt,
    AnyPortListens,
    NoPortsUnsaid,
}

#[derive(Debug)]
struct WrongSession {
    wrong: WrongSessionKind,
    inner: Box<dyn Session>,
}

impl AsRef<dyn Session> for WrongSession {
    fn as_ref(&self) -> &(dyn Session + 'static) {
        self
    }
}

/// A sink that is always ready.
struct Ready(Arc<dyn OutputSink>);

impl OutputSink for Ready {
    fn write(&self, stream: tsunami_core::Stream, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write(stream, bytes)
    }
}

/// Copies what is written to a command into another pipe: nothing, all but the end, or all at its end.
fn miscopied(wrong: WrongSessionKind, piped: &PipedStdin) -> Stdin {
    let stdin = Stdin::piped();
    let Stdin::Piped(copy) = &stdin else { unreachable!() };
    let mut writer = copy.writer().unwrap();
    let Ok(mut reader) = piped.reader() else { return Stdin::Piped(piped.clone()) };
    tokio::spawn(async move {
        match wrong {
            WrongSessionKind::PipedWritesIgnored => drop(writer),
            WrongSessionKind::PipedEndIgnored => {
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                std::future::pending().await
            }
            _ => {
                let mut all = Vec::new();
                let _ = reader.read_to_end(&mut all).await;
                let _ = writer.write_all(&all).await;
            }
        }
    });
    stdin
}

/// A sink that is never full.
struct Patient(Arc<dyn OutputSink>);

impl OutputSink for Patient {
    fn write(&self, stream: tsunami_core::Stream, bytes: &[u8]) -> std::io::Result<()> {
        let _ = self.0.write(stream, bytes);
        Ok(())
    }
}

#[async_trait]
impl Session for WrongSession {
    async fn exec(
        &self,
        command: &Command,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        let (mut command, mut output) = (command.clone(), output);
        let mut cancel = cancel.clone();
        match (self.wrong, &command.stdin) {
            (WrongSessionKind::StdinFileIgnored, Stdin::File(_))
            | (WrongSessionKind::StdinBytesIgnored, Stdin::Bytes(_)) => command.stdin = Stdin::Null,
            (
                WrongSessionKind::PipedWritesIgnored
                | WrongSessionKind::PipedEndIgnored
                | WrongSessionKind::PipedInputCollected,
                Stdin::Piped(piped),
            ) => command.stdin = miscopied(self.wrong, piped),
            (WrongSessionKind::PipedInputKept, Stdin::Piped(piped)) => {
                // Nobody ever drops the end that is read.
                let stdin = Stdin::piped();
                let Stdin::Piped(copy) = &stdin else { unreachable!() };
                if let (Some(mut writer), Ok(mut reader)) = (copy.writer(), piped.reader()) {
                    tokio::spawn(async move {
                        let _ = tokio::io::copy(&mut reader, &mut writer).await;
                        drop(writer);
                        let _reader = reader;
                        std::future::pending::<()>().await;
                    });
                    command.stdin = stdin;
                }
            }
            (WrongSessionKind::ReadinessIgnored, _) => output = Arc::new(Ready(output)),
            (WrongSessionKind::CancelIgnored, _) => cancel = CancellationToken::new(),
            (WrongSessionKind::SinkErrorsIgnored, _) => output = Arc::new(Patient(output)),
            _ => {}
        }
        let exit = self.inner.exec(&command, output, &cancel).await?;
        Ok(if self.wrong == WrongSessionKind::StatusForgotten { Exit::Status(0) } else { exit })
    }

    async fn exec_all(
        &self,
        commands: &[Command],
        observer: Arc<dyn SequenceObserver>,
        cancel: &CancellationToken,
    ) -> Result<(), SessionError> {
        let wrong = self.wrong;
        let tells = wrong != WrongSessionKind::ListIsToldWhenItIsOver;
        let mut first: Option<Arc<dyn OutputSink>> = None;
        let mut exits = Vec::new();
        for (index, command) in commands.iter().enumerate() {
            let mut output: Arc<dyn OutputSink> = if tells { observer.begins(index) } else { Arc::new(()) };
            if wrong == WrongSessionKind::ListHasOneOutput {
                output = first.get_or_insert(output).clone();
            }
            let exit = match self.exec(command, output, cancel).await {
                Err(_) if wrong == WrongSessionKind::ListGoesOnWhenCancelled => Exit::Status(0),
                exit => exit?,
            };
            exits.push(exit);
            if tells {
                observer.ended(index, exit);
            }
            if !exit.success() && wrong != WrongSessionKind::ListGoesOnAfterFailures {
                break;
            }
        }
        for (index, exit) in exits.into_iter().enumerate().filter(|_| !tells) {
            observer.begins(index);
            observer.ended(index, exit);
        }
        Ok(())
    }

    async fn administer(&self, script: &str, args: &[String]) -> Result<String, SessionError> {
        match (self.wrong, self.inner.administer(script, args).await) {
            (WrongSessionKind::ScriptsNeverFail, Err(_)) => Ok(String::new()),
            (WrongSessionKind::ScriptsSayNothing, Ok(_)) => Ok(String::new()),
            (_, answer) => answer,
        }
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        let refused = tsunami_core::SessionErrorKind::Transfer;
        match self.wrong {
            WrongSessionKind::TrailingSlashIgnored => self.inner.upload(from, to.trim_end_matches('/')).await,
            WrongSessionKind::DirectoriesRefused if from.is_dir() => {
                Err(SessionError::new(refused, "it is a directory"))
            }
            _ => self.inner.upload(from, to).await,
        }
    }

    async fn upload_without(&self, from: &Path, to: &str, exclude: &Exclude) -> Result<(), SessionError> {
        match self.wrong {
            WrongSessionKind::NothingIsLeftOut => self.inner.upload(from, to).await,
            _ => self.inner.upload_without(from, to, exclude).await,
        }
    }

    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError> {
        let mut wrong = download.clone();
        match self.wrong {
            WrongSessionKind::ClimbingNamesAccepted => {
                let climbs = |pattern: &&String| pattern.starts_with("../");
                for pattern in download.patterns.iter().filter(climbs) {
                    std::fs::create_dir_all(&download.into).unwrap();
                    std::fs::write(download.into.join(pattern), "climbed").unwrap();
                }
                wrong.patterns.iter_mut().for_each(|pattern| *pattern = pattern.replace("../", "no-such-"));
            }
            WrongSessionKind::ClimbingNamesEndTheRest
                if download.patterns.iter().any(|pattern| pattern.contains("..")) =>
            {
                let error = tsunami_core::SessionErrorKind::Transfer;
                return Err(SessionError::new(error, download.patterns.join(" ")));
            }
            WrongSessionKind::DownloadDirectoryIgnored => wrong.cwd = None,
            WrongSessionKind::AbsoluteNamesFlattened => {
                let home = |pattern: &mut String| *pattern = pattern.replace("/home/fake/", "");
                wrong.patterns.iter_mut().for_each(home);
            }
            _ => {}
        }
        let mut counts = self.inner.download(&wrong).await?;
        if self.wrong == WrongSessionKind::CountsFiles {
            counts.push(0);
        }
        Ok(counts)
    }

    fn dials(&self) -> bool {
        self.inner.dials()
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        let local = tsunami_core::SessionErrorKind::Local;
        match self.wrong {
            WrongSessionKind::RefusedPortsLoseIt => {
                let refused = self.inner.dial(host, port).await;
                self.inner.close().await?;
                refused
            }
            WrongSessionKind::AnyPortListens => Ok(Box::new(tokio::io::duplex(1).0)),
            WrongSessionKind::NoPortsUnsaid => Err(SessionError::new(local, "it can't")),
            _ => self.inner.dial(host, port).await,
        }
    }

    async fn check(&self) -> Result<(), SessionError> {
        match self.wrong {
            WrongSessionKind::CheckAlwaysWorks => Ok(()),
            WrongSessionKind::CheckNeverWorks => {
                Err(SessionError::new(tsunami_core::SessionErrorKind::Lost, "it is lost"))
            }
            _ => self.inner.check().await,
        }
    }

    async fn close(&self) -> Result<(), SessionError> {
        self.inner.close().await
    }
}

async fn session(wrong: WrongSessionKind) -> WrongSession {
    let cloud = FakeCloud::new(1);
    let run = RunId::generate(SystemTime::UNIX_EPOCH, 1);
    let lifetime = Duration::from_secs(36_000);
    let request = LaunchRequest::new(
        run.clone(),
        "node",
        NonZeroU32::MIN,
        MachineSpec::default(),
        Deadline { at: SystemTime::UNIX_EPOCH + lifetime, lifetime },
    )
    .experiment("test")
    .authorized_key(cloud.prepare(&run, Path::new("unused")).await.unwrap());
    cloud.launch(&request).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let machine = cloud.list(&RunFilter::Run(run)).await.unwrap().remove(0);
    let inner = cloud.connect(&machine, Instant::now() + Duration::from_secs(10)).await.unwrap();
    WrongSession { wrong, inner }
}

#[tokio::test(start_paused = true)]
async fn every_wrong_session_breaks_a_promise() {
    use WrongSessionKind as Wrong;
    let broken_by = async |wrong| {
        promises!(
            session,
            &session(wrong).await,
            output_and_status_come_back,
            a_command_reads_its_stdin,
            a_command_reads_what_is_written_while_it_runs,
            what_nobody_reads_any_more_cannot_be_written,
            a_command_reads_a_local_file,
            a_script_answers_or_says_why_not,
            a_cancelled_command_ends_and_says_so,
            a_sink_that_fails_ends_the_command,
            a_sink_that_is_not_ready_is_waited_for,
            files_go_out_and_come_home,
            an_upload_arrives_where_it_was_sent,
            an_upload_leaves_out_what_it_is_told,
            a_download_starts_in_its_directory,
            an_absolute_name_arrives_without_its_slash,
            a_name_that_climbs_arrives_nowhere_else,
            a_pattern_that_matches_nothing_counts_nothing,
            a_session_knows_whether_it_works,
            a_list_runs_in_order_and_stops_at_the_first_failure,
            each_command_of_a_list_is_told_of_as_it_begins_and_ends,
            each_command_of_a_list_has_its_own_output_and_status,
            cancelling_a_list_ends_the_running_one_and_begins_no_other,
            a_port_that_nobody_listens_on_is_refused_and_the_session_goes_on,
        )
    };
    assert_eq!(broken_by(Wrong::Nothing).await, [""; 0]);
    for (wrong, promise) in [
        (Wrong::ClimbingNamesAccepted, "a_name_that_climbs_arrives_nowhere_else"),
        (Wrong::ClimbingNamesEndTheRest, "a_name_that_climbs_arrives_nowhere_else"),
        (Wrong::StdinFileIgnored, "a_command_reads_a_local_file"),
        (Wrong::StdinBytesIgnored, "a_command_reads_its_stdin"),
        (Wrong::PipedWritesIgnored, "a_command_reads_what_is_written_while_it_runs"),
        (Wrong::PipedEndIgnored, "a_command_reads_what_is_written_while_it_runs"),
        (Wrong::PipedInputCollected, "a_command_reads_what_is_written_while_it_runs"),
        (Wrong::PipedInputKept, "what_nobody_reads_any_more_cannot_be_written"),
        (Wrong::ReadinessIgnored, "a_sink_that_is_not_ready_is_waited_for"),
        (Wrong::TrailingSlashIgnored, "an_upload_arrives_where_it_was_sent"),
        (Wrong::DirectoriesRefused, "an_upload_arrives_where_it_was_sent"),
        (Wrong::NothingIsLeftOut, "an_upload_leaves_out_what_it_is_told"),
        (Wrong::DownloadDirectoryIgnored, "a_download_starts_in_its_directory"),
        (Wrong::AbsoluteNamesFlattened, "an_absolute_name_arrives_without_its_slash"),
        (Wrong::CheckAlwaysWorks, "a_session_knows_whether_it_works"),
        (Wrong::CheckNeverWorks, "a_session_knows_whether_it_works"),
        (Wrong::StatusForgotten, "output_and_status_come_back"),
        (Wrong::ScriptsNeverFail, "a_script_answers_or_says_why_not"),
        (Wrong::ScriptsSayNothing, "a_script_answers_or_says_why_not"),
        (Wrong::CancelIgnored, "a_cancelled_command_ends_and_says_so"),
        (Wrong::SinkErrorsIgnored, "a_sink_that_fails_ends_the_command"),
        (Wrong::CountsFiles, "a_pattern_that_matches_nothing_counts_nothing"),
        (Wrong::ListGoesOnAfterFailures, "a_list_runs_in_order_and_stops_at_the_first_failure"),
        (Wrong::ListGoesOnWhenCancelled, "cancelling_a_list_ends_the_running_one_and_begins_no_other"),
        (Wrong::ListIsToldWhenItIsOver, "each_command_of_a_list_is_told_of_as_it_begins_and_ends"),
        (Wrong::ListHasOneOutput, "each_command_of_a_list_has_its_own_output_and_status"),
        (Wrong::RefusedPortsLoseIt, "a_port_that_nobody_listens_on_is_refused_and_the_session_goes_on"),
        (Wrong::AnyPortListens, "a_port_that_nobody_listens_on_is_refused_and_the_session_goes_on"),
        (Wrong::NoPortsUnsaid, "a_port_that_nobody_listens_on_is_refused_and_the_session_goes_on"),
    ] {
        let broken = broken_by(wrong).await;
        assert!(broken.contains(&promise), "{wrong:?} breaks only {broken:?}");
    }
}
