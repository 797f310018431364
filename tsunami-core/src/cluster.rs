//! The running machines, as experiments see them.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::{join_all, select_all};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::engine::{Provisioner, RunDeadline};
use crate::error::{BoxError, Error, shown};
use crate::event::{EventKind, Events, Origin, UserEvent, cut};
use crate::exclude::Exclude;
use crate::limits::{OUTPUT_LIMIT, OUTPUT_TAIL_LIMIT};
use crate::machine::{Machine, MachineId, RunId};
use crate::session::{
    Command, Download, Exit, OutputSink, SequenceObserver, Session, SessionError, SessionErrorKind, Stdin,
    Stream,
};
use crate::spread::Spreads;

/// How long a session may take to confirm that a command is gone that was told to end: longer than its own limits.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// All machines of a run. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<ClusterInner>,
}

#[derive(Debug)]
struct ClusterInner {
    run: RunId,
    hosts: Vec<Host>,
    events: Events,
    deadline: Arc<RunDeadline>,
    provisioner: Option<Provisioner>,
}

impl Cluster {
    pub(crate) fn new(
        run: RunId,
        hosts: Vec<Host>,
        events: Events,
        deadline: Arc<RunDeadline>,
        provisioner: Option<Provisioner>,
    ) -> Self {
        Self { inner: Arc::new(ClusterInner { run, hosts, events, deadline, provisioner }) }
    }

    /// How long it is until the lifetime is over, as the record says it now.
    pub(crate) fn time_left(&self) -> Duration {
        self.inner.deadline.read().at.duration_since(self.inner.events.now()).unwrap_or_default()
    }

    /// Whether any machine may be [replaced](Self::repair).
    pub(crate) fn may_be_repaired(&self) -> bool {
        let groups = self.inner.provisioner.as_ref().map(|provisioner| &*provisioner.plan.groups);
        groups.into_iter().flatten().any(|group| group.replace_interrupted)
    }

    /// Whether the run was cancelled.
    pub(crate) fn is_ending(&self) -> bool {
        self.hosts().iter().any(|host| host.inner.cancel.is_cancelled())
    }

    /// The error of the first machine that is gone, or that its provider takes back, if there is one.
    pub(crate) async fn departure(&self) -> Option<Error> {
        let departures = join_all(self.hosts().iter().map(Host::departure)).await;
        departures.into_iter().flatten().next()
    }

    pub(crate) fn events(&self) -> &Events {
        &self.inner.events
    }

    /// Waits until a machine is interrupted, and returns its error. May be dropped at any await.
    ///
    /// What the other machines do from then on follows from that, more likely than not: clients of a server that
    /// is taken away fail too, or wait for it.
    ///
    /// ```
    /// # use tsunami_core::{Cluster, Error};
    /// # async fn example(cluster: &Cluster, client: &tsunami_core::Host) -> Result<(), Error> {
    /// tokio::select! {
    ///     measured = client.run("./measure") => println!("{}", measured?.stdout()),
    ///     interrupted = cluster.interrupted() => return Err(interrupted),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn interrupted(&self) -> Error {
        let waiting = self.hosts().iter().map(|host| Box::pin(host.interrupted()));
        let waiting: Vec<_> = waiting.collect();
        if !waiting.is_empty() {
            select_all(waiting).await;
        }
        match self.hosts().iter().find_map(Host::interruption) {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Replaces the machines that were interrupted and waits until their replacements are set up. The answer
    /// has those in place of the old ones, under the same names, and the other machines as they were.
    ///
    /// Fails if a machine was interrupted that may not be replaced: because its
    /// [group](crate::Group::replace_interrupted) does not say so, because it is a replacement itself, or
    /// because this process did not launch it. May be dropped at any await; what was launched by then is torn
    /// down with the run.
    pub async fn repair(&self) -> Result<Cluster, Error> {
        match &self.inner.provisioner {
            Some(provisioner) => provisioner.repair(self).await,
            None => match self.hosts().iter().find_map(Host::interruption) {
                Some(error) => Err(error),
                None => Ok(self.clone()),
            },
        }
    }

    /// The run.
    pub fn run_id(&self) -> &RunId {
        &self.inner.run
    }

    /// All machines, by group in the plan's order, then by index.
    pub fn hosts(&self) -> &[Host] {
        &self.inner.hosts
    }

    /// The machines of a group, by index; none if there is no such group.
    pub fn group(&self, name: &str) -> Vec<Host> {
        self.inner.hosts.iter().filter(|host| host.group() == name).cloned().collect()
    }

    /// A machine by its name, such as `client-0`.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.inner.hosts.iter().find(|host| host.name() == name)
    }

    /// Adds to the run's story. For layers above the engine that tell more of it, such as steps.
    ///
    /// ```
    /// # use tsunami_core::{Cluster, UserEvent};
    /// # fn example(cluster: &Cluster) {
    /// let data = serde_json::json!({ "rows": 1_000_000 });
    /// cluster.emit(UserEvent::Custom { name: "loaded".to_owned(), data });
    /// # }
    /// ```
    pub fn emit(&self, event: UserEvent) {
        self.inner.events.emit(event.into());
    }
}

/// One running machine. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    inner: Arc<HostInner>,
    stage: Arc<str>,
}

struct HostInner {
    name: String,
    machine: Arc<Machine>,
    session: Arc<dyn Session>,
    events: Events,
    spreads: Spreads,
    /// The run is ending.
    cancel: CancellationToken,
    liveness: Mutex<Liveness>,
    /// Tells of a change of that.
    changed: Notify,
    /// What the kernel calls the computer's present life, once somebody has asked: machines that agree share a computer.
    boot: OnceLock<String>,
}

/// What is known of whether a machine stays. Whoever watches the machine tells it, and nobody else.
#[derive(Debug, Default)]
struct Liveness {
    /// Why its provider takes it back, or took it. Files can still be fetched from it, for as long as it is there.
    interrupted: Option<String>,
    /// It was seen on its way out: whether it is gone or was taken back will be known soon.
    is_out: bool,
    gone: bool,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.inner.name)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// A machine with a session to it.
    pub(crate) fn new(
        machine: Arc<Machine>,
        session: Arc<dyn Session>,
        events: Events,
        spreads: Spreads,
        cancel: CancellationToken,
    ) -> Self {
        let (liveness, changed, boot) = (Mutex::default(), Notify::new(), OnceLock::new());
        let name = machine.name();
        let inner = HostInner { name, machine, session, events, spreads, cancel, liveness, changed, boot };
        Self { inner: Arc::new(inner), stage: "run".into() }
    }

    /// Notes that its provider takes it back, or took it.
    pub(crate) fn set_interrupted(&self, reason: String) {
        self.liveness().interrupted = Some(reason);
        self.inner.changed.notify_waiters();
    }

    /// Notes that it was seen on its way out, before why is known.
    pub(crate) fn set_out(&self) {
        self.liveness().is_out = true;
    }

    /// Notes that it is gone.
    pub(crate) fn set_gone(&self) {
        self.liveness().gone = true;
        self.inner.changed.notify_waiters();
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.inner.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same machine in another stage. The stage names what is going on, in events, errors and logs:
    /// `setup` during set-up, `run` afterwards, unless this says otherwise.
    pub fn stage(&self, stage: &str) -> Self {
        Self { inner: self.inner.clone(), stage: stage.into() }
    }

    /// What is going on.
    pub(crate) fn stage_name(&self) -> &str {
        &self.stage
    }

    /// `<group>-<index>`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The group's name.
    pub fn group(&self) -> &str {
        &self.inner.machine.group
    }

    /// The place in the group, from 0.
    pub fn index(&self) -> u32 {
        self.inner.machine.index
    }

    /// All that the provider said of the machine.
    pub fn machine(&self) -> &Machine {
        &self.inner.machine
    }

    /// The address by which the machine reaches itself: private if it has one.
    ///
    /// It is an error if the provider does not know it, as of a host that is reached by a name.
    pub fn ip(&self) -> Result<&str, Error> {
        self.inner.machine.addresses.internal().ok_or_else(|| self.error("its address is not known"))
    }

    /// The address by which this machine reaches `other`: private within a network, public across.
    ///
    /// It is an error, of the other one, if the provider does not know it.
    pub fn ip_of<'a>(&self, other: &'a Host) -> Result<&'a str, Error> {
        let address = other.inner.machine.addresses.address_from(&self.inner.machine.addresses);
        address.ok_or_else(|| other.error("its address is not known"))
    }

    /// Runs a shell line, which must succeed, and returns what it wrote. If the future is dropped, the command is ended
    /// in the background.
    ///
    /// ```
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let kernel = host.run("uname -r").await?;
    /// println!("{} runs Linux {}", host.name(), kernel.stdout().trim());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`HostCommand::run`] has them.
    pub async fn run(&self, line: impl Into<String>) -> Result<Output, Error> {
        self.command(Command::shell(line)).run().await
    }

    /// Prepares a command to run on the machine.
    pub fn command(&self, command: Command) -> HostCommand {
        HostCommand {
            host: self.clone(),
            command,
            words: None,
            unobserved: false,
            timeout: None,
            cancel: None,
            despite_interruption: false,
            watcher: None,
        }
    }

    /// Runs commands of this machine one after another, each of which must succeed, and returns what they wrote. The
    /// first that does not ends the list, with the error that it would have by itself.
    ///
    /// All is as if each were [run](HostCommand::run) when the one before has ended: its events, its settings and its
    /// output are its own. But over a network they are sent at once, so that no time goes by between them.
    ///
    /// ```
    /// # use tsunami_core::{Command, Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let build = ["git clone -q https://example.org/it", "cd it && make", "sudo make -C it install"];
    /// host.run_all(build.map(|line| host.command(Command::shell(line)))).await?;
    /// # Ok(()) }
    /// ```
    pub async fn run_all(
        &self,
        commands: impl IntoIterator<Item = HostCommand>,
    ) -> Result<Vec<Output>, Error> {
        self.run_list(commands.into_iter().collect(), true).await
    }

    /// Runs commands one after another, and returns what they wrote if somebody wants to keep it.
    pub(crate) async fn run_list(
        &self,
        mut commands: Vec<HostCommand>,
        keep: bool,
    ) -> Result<Vec<Output>, Error> {
        if commands.len() < 2 {
            return match commands.pop() {
                Some(command) => Ok(vec![command.run().await?]),
                None => Ok(Vec::new()),
            };
        }
        self.run_in_turn(commands, keep, Arc::new(())).await
    }

    /// Runs commands one after another in one conversation, and lets `turns` hear of each.
    pub(crate) async fn run_in_turn(
        &self,
        commands: Vec<HostCommand>,
        keep: bool,
        turns: Arc<dyn Turns>,
    ) -> Result<Vec<Output>, Error> {
        if let Some(other) = commands.iter().find(|command| !Arc::ptr_eq(&command.host.inner, &self.inner)) {
            return Err(self.error(format!("a command of {} can't run here", other.host.name())));
        }
        let lines: Vec<Command> = commands.iter().map(|command| command.command.clone()).collect();
        let turn = CurrentTurn::first();
        let list = Arc::new(List { commands, keep, turns, turn, progress: Mutex::default() });
        let stop = self.inner.cancel.child_token();
        let running = self.inner.session.exec_all(&lines, list.clone(), &stop);
        let result = self.attend(&list.commands, &list.turn, &stop, running).await;
        let Progress { begun, ended, mut outputs } = std::mem::take(&mut *list.progress());
        match (result, list.commands.get(ended), begun) {
            (Ok(()), Some(_), Some(begun)) => {
                let error = self.error("its session does not say how a command has ended");
                list.settle(ended, begun, Err(error)).map(drop)
            }
            // It failed before a turn, which is the turn's failure.
            (Err(error), Some(_), begun) => {
                list.settle(ended, begun.unwrap_or_else(|| list.begin(ended)), Err(error)).map(drop)
            }
            (result, ..) => result,
        }?;
        if let Some(output) = outputs.pop_if(|output| !output.exit.success()) {
            list.commands[ended.saturating_sub(1)].succeeded(output)?;
        }
        if ended < list.commands.len() {
            return Err(self.error("its session has not run all of a list of commands"));
        }
        Ok(outputs)
    }

    /// Waits for commands that the session runs, and ends them at the time-out of the one whose turn it is, or when the
    /// run is cancelled.
    async fn attend<T>(
        &self,
        commands: &[HostCommand],
        current: &CurrentTurn,
        stop: &CancellationToken,
        mut running: impl Future<Output = Result<T, SessionError>> + Unpin,
    ) -> Result<T, Error> {
        let mut timed_out = None;
        let ended = loop {
            let turn = current.turn();
            let command = &commands[turn.index];
            tokio::select! {
                biased;
                result = &mut running => break Some(result),
                () = current.next.notified() => {}
                () = self.leaving(command.despite_interruption) => return Err(self.lost(Some(&command.line()))),
                () = passed(command.timeout.map(|timeout| turn.since + timeout)) => {
                    timed_out = Some(turn.index);
                    break None;
                }
                () = cancelled(command.cancel.as_ref()) => break None,
                () = self.inner.cancel.cancelled() => break None,
            }
        };
        let result = match ended {
            Some(result) => result,
            None => {
                stop.cancel();
                timeout(END_TIMEOUT, running).await.unwrap_or_else(not_confirmed)
            }
        };
        result.map_err(|error| match (timed_out, error.kind) {
            // The time-out of one may end the next, which had just begun.
            (Some(index), SessionErrorKind::Cancelled | SessionErrorKind::CancelledUnconfirmed) => {
                Error::Timeout {
                    machine: self.name().to_owned(),
                    stage: commands[index].host.stage.to_string(),
                    command: commands[index].line(),
                    after: commands[index].timeout.unwrap_or_default(),
                    gone: error.kind == SessionErrorKind::Cancelled,
                    stdout: String::new(),
                    stderr: String::new(),
                }
            }
            _ => {
                let command = &commands[current.turn().index];
                Error::session(self.name(), &command.host.stage, &command.line(), error)
            }
        })
    }

    /// Copies a local file or directory to the machine; see [`Session::upload`] for where it arrives. May be dropped at
    /// any await; what has arrived stays.
    ///
    /// What three or more machines of a run may want, and is larger than 4 MiB, leaves this computer once for each of their
    /// [networks](crate::Addresses::network), where the session can do that: others who want the same wait
    /// for it, and have it from those who have it. A file must get the same name on them.
    ///
    /// # Errors
    ///
    /// [`Error::Session`] if it can't be read here or written there, [`Error::Lost`] or [`Error::Interrupted`] if the
    /// machine ends meanwhile, [`Error::Cancelled`] if the run does.
    pub async fn upload(&self, from: impl AsRef<Path>, to: &str) -> Result<(), Error> {
        self.upload_without(from, to, &Exclude::default()).await
    }

    /// Does what [`upload`](Self::upload) does with a directory, without what is left out.
    ///
    /// # Errors
    ///
    /// As `upload` has them.
    pub async fn upload_without(
        &self,
        from: impl AsRef<Path>,
        to: &str,
        exclude: &Exclude,
    ) -> Result<(), Error> {
        let from = from.as_ref();
        self.uploaded(from, to, self.inner.spreads.upload(self, from, to, exclude)).await
    }

    /// Uploads a text in the place of the file that it was made from, whose name and mode it has. No other machine has it
    /// from this one.
    #[cfg(feature = "experiment")]
    pub(crate) async fn upload_text(&self, from: &Path, to: &str, text: String) -> Result<(), Error> {
        let source = from.to_owned();
        // The directory goes once the file is there, and is nobody else's.
        let written = tokio::task::spawn_blocking(move || {
            let directory = tempfile::Builder::new().prefix("tsunami-").tempdir()?;
            let file = directory.path().join(source.file_name().unwrap_or("text".as_ref()));
            std::fs::write(&file, text)?;
            std::fs::set_permissions(&file, std::fs::metadata(&source)?.permissions())?;
            Ok::<_, std::io::Error>((directory, file))
        });
        let (directory, file) = written.await.map_err(Error::other)?.map_err(|error| self.error(error))?;
        self.uploaded(from, to, self.inner.session.upload(&file, to)).await?;
        drop(directory);
        Ok(())
    }

    async fn uploaded(
        &self,
        from: &Path,
        to: &str,
        upload: impl Future<Output = Result<(), SessionError>>,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        let action = format!("upload of {} to {to}", from.display());
        self.attempt(&action, upload).await?;
        self.inner.events.emit(EventKind::Uploaded {
            machine: self.name().to_owned(),
            id: self.id(),
            stage: self.stage.to_string(),
            from: from.display().to_string(),
            to: to.to_owned(),
            took: cut(begun.elapsed()),
        });
        Ok(())
    }

    /// Brings files home and says how many matches each pattern had, in order. May be dropped at any await; what has
    /// come stays.
    ///
    /// # Errors
    ///
    /// As [`upload`](Self::upload) has them. One that names what was left out comes when all else is home.
    pub async fn download(&self, download: &Download) -> Result<Vec<usize>, Error> {
        let action = format!("download of {}", download.patterns.join(" "));
        let matches = self.attempt(&action, self.inner.session.download(download)).await?;
        self.inner.events.emit(EventKind::Collected {
            machine: self.name().to_owned(),
            id: self.id(),
            stage: self.stage.to_string(),
            into: download.into.display().to_string(),
            files: matches.iter().sum(),
        });
        Ok(matches)
    }

    /// What the kernel calls the present life of the computer that the machine is, or is on; see `condition`.
    pub(crate) fn boot(&self) -> &OnceLock<String> {
        &self.inner.boot
    }

    /// The time it is, by the clock that events have.
    pub(crate) fn now(&self) -> SystemTime {
        self.inner.events.now()
    }

    /// The machine's id, as events have it.
    fn id(&self) -> Option<MachineId> {
        Some(self.inner.machine.id.clone())
    }

    /// An error of the program's own, about this machine in its present stage.
    pub fn error(&self, error: impl Into<BoxError>) -> Error {
        Error::At { machine: self.name().to_owned(), stage: self.stage.to_string(), source: error.into() }
    }

    /// Runs a script that is about the machine and not about the experiment, as [`Session::administer`] does. No event
    /// tells of it; errors call it `action`. May be dropped at any await; the script goes on then.
    pub(crate) async fn administer(
        &self,
        action: &str,
        script: &str,
        args: &[String],
    ) -> Result<String, Error> {
        self.attempt(action, self.inner.session.administer(script, args)).await
    }

    /// Waits for something that the session does, unless the run is cancelled first.
    async fn attempt<T>(
        &self,
        action: &str,
        doing: impl Future<Output = Result<T, crate::SessionError>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.inner.cancel.cancelled() => Err(Error::Cancelled),
            () = self.leaving(true) => Err(self.lost(Some(action))),
            done = doing => done.map_err(|error| Error::session(self.name(), &self.stage, action, error)),
        }
    }

    /// Waits until the machine's provider says that it takes it back.
    pub(crate) async fn interrupted(&self) {
        self.until(|liveness| liveness.interrupted.is_some()).await;
    }

    /// Waits until the machine's provider says that it is gone, or that it takes it back, unless that is no matter.
    async fn leaving(&self, despite_interruption: bool) {
        let is_over =
            |liveness: &Liveness| liveness.gone || (liveness.interrupted.is_some() && !despite_interruption);
        self.until(is_over).await;
    }

    async fn until(&self, reached: impl Fn(&Liveness) -> bool) {
        loop {
            // It hears of whatever comes after the look.
            let changed = self.inner.changed.notified();
            if reached(&self.liveness()) {
                return;
            }
            changed.await;
        }
    }

    /// The error of a machine that its provider takes back, or took, before its time.
    pub fn interruption(&self) -> Option<Error> {
        let reason = self.liveness().interrupted.clone()?;
        let (machine, stage) = (self.name().to_owned(), self.stage.to_string());
        Some(Error::Interrupted { machine, id: self.inner.machine.id.clone(), stage, reason })
    }

    /// The error of a machine that is gone, or that its provider takes back, though nothing may run there that would tell.
    /// Of one that was seen on its way out, it waits until it is known which, unless the run ends.
    pub(crate) async fn departure(&self) -> Option<Error> {
        let is_known =
            |liveness: &Liveness| !liveness.is_out || liveness.gone || liveness.interrupted.is_some();
        tokio::select! {
            biased;
            () = self.until(is_known) => {}
            () = self.inner.cancel.cancelled() => {}
        }
        let is_gone = self.liveness().gone;
        if is_gone { Some(self.lost(None)) } else { self.interruption() }
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.liveness().interrupted.is_some()
    }

    pub(crate) fn session(&self) -> &Arc<dyn Session> {
        &self.inner.session
    }

    fn lost(&self, action: Option<&str>) -> Error {
        if let Some(interrupted) = self.interruption() {
            return interrupted;
        }
        Error::Lost {
            machine: self.name().to_owned(),
            stage: self.stage.to_string(),
            command: action.map(str::to_owned),
            source: format!("machine {} is gone", self.inner.machine.id).into(),
        }
    }
}

/// A command that is about to run on a machine.
#[derive(Clone, Debug)]
#[must_use = "a command does nothing until `run`, `output` or `start` is called"]
pub struct HostCommand {
    host: Host,
    command: Command,
    /// What it is called in place of its command line.
    words: Option<String>,
    unobserved: bool,
    timeout: Option<Duration>,
    cancel: Option<CancellationToken>,
    despite_interruption: bool,
    /// Who looks at its output, beside the observers.
    watcher: Option<Arc<dyn OutputWatcher>>,
}

impl HostCommand {
    /// Adds a variable to its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.command = self.command.env(name, value);
        self
    }

    /// Sets the directory it runs in.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.command = self.command.cwd(directory);
        self
    }

    /// Sets what it reads.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.command = self.command.stdin(stdin);
        self
    }

    /// Sets how long it may take. On time-out the command and its process group get TERM, five seconds, then
    /// KILL.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Lets `token` end it, beside the end of the run itself.
    pub fn cancel_on(mut self, token: CancellationToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Lets it run although the machine is interrupted, for as long as there is one: to clean up, to save what it
    /// has measured.
    pub fn despite_interruption(mut self) -> Self {
        self.despite_interruption = true;
        self
    }

    /// Lets events and errors call it by these words, where its command line is nobody's business: the program's own
    /// way to do something.
    pub fn called(mut self, words: impl Into<String>) -> Self {
        self.words = Some(words.into());
        self
    }

    /// Tells no observer of it or its output: it is none of the commands that the run is about.
    pub fn unobserved(mut self) -> Self {
        self.unobserved = true;
        self
    }

    /// Lets its output be watched.
    pub(crate) fn watched_by(mut self, watcher: Arc<dyn OutputWatcher>) -> Self {
        self.watcher = Some(watcher);
        self
    }

    /// Another command, which runs where and as this one does.
    pub(crate) fn alike(&self, mut other: Command) -> Self {
        other.env.extend(self.command.env.iter().cloned());
        other.cwd.clone_from(&self.command.cwd);
        Self { cancel: self.cancel.clone(), ..self.host.command(other) }
    }

    /// What events and errors call it.
    pub(crate) fn line(&self) -> String {
        self.words.clone().unwrap_or_else(|| self.command.to_string())
    }

    /// Runs it to its end, which must be status 0, and returns what it wrote. If the future is dropped, the command is
    /// ended in the background.
    ///
    /// # Errors
    ///
    /// [`Error::Command`] for any other end, and for the rest as [`output`](Self::output) has them.
    #[expect(clippy::manual_async_fn, reason = "an async function holds what it is given twice")]
    pub fn run(self) -> impl Future<Output = Result<Output, Error>> + Send {
        async move {
            let output = self.execute().await?;
            self.succeeded(output)
        }
    }

    /// What it wrote, if it has succeeded.
    fn succeeded(&self, output: Output) -> Result<Output, Error> {
        if output.exit.success() {
            return Ok(output);
        }
        Err(Error::Command {
            machine: self.host.name().to_owned(),
            stage: self.host.stage.to_string(),
            command: self.line(),
            exit: output.exit,
            stdout: output.last_lines(Stream::Stdout),
            stderr: output.last_lines(Stream::Stderr),
        })
    }

    /// Runs it to its end, whatever that is, and returns what it wrote. If the future is dropped, the command is ended in
    /// the background.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] once its time is over, [`Error::Cancelled`] when it is ended on purpose or the run ends,
    /// [`Error::Interrupted`] or [`Error::Lost`] when the machine does, and [`Error::Session`] where it could not be begun,
    /// or its output not be taken ([`OutputRefused`]).
    #[expect(clippy::manual_async_fn, reason = "an async function holds what it is given twice")]
    pub fn output(self) -> impl Future<Output = Result<Output, Error>> + Send {
        async move { self.execute().await }
    }

    async fn execute(&self) -> Result<Output, Error> {
        let begun = self.begin();
        let inner = &self.host.inner;
        let stop = inner.cancel.child_token();
        let running = inner.session.exec(&self.command, begun.capture.clone(), &stop);
        let result = self.host.attend(slice::from_ref(self), &CurrentTurn::first(), &stop, running).await;
        self.settle(begun, result)
    }

    /// Tells that it begins.
    fn begin(&self) -> Begun {
        let events = &self.host.inner.events;
        let command_id = (!self.unobserved).then(|| events.next_command());
        if let Some(command_id) = command_id {
            let (machine, id) = (self.host.name().to_owned(), self.host.id());
            let (stage, command) = (self.host.stage.to_string(), self.line());
            events.emit(EventKind::CommandStarted { machine, id, stage, command_id, command });
        }
        let (host, watcher) = (self.host.clone(), self.watcher.clone());
        let capture = Arc::new(Capture { host, command_id, watcher, kept: Mutex::default() });
        Begun { at: Instant::now(), capture }
    }

    /// Tells how it has ended, and returns what it wrote.
    fn settle(&self, begun: Begun, result: Result<Exit, Error>) -> Result<Output, Error> {
        let Begun { at, capture } = begun;
        if let Some(command_id) = capture.command_id {
            let (exit, error) = match &result {
                Ok(exit) => (Some(*exit), None),
                Err(error) => (None, Some(self.words_of(error))),
            };
            let cancelled = matches!(result, Err(Error::Cancelled));
            self.host.inner.events.emit(EventKind::CommandFinished {
                machine: self.host.name().to_owned(),
                id: self.host.id(),
                stage: self.host.stage.to_string(),
                command_id,
                command: self.line(),
                exit,
                error,
                cancelled,
                took: cut(at.elapsed()),
            });
        }
        let Kept { stdout, stderr, truncated, tails, refused } = std::mem::take(&mut *capture.kept());
        match result {
            Ok(exit) => Ok(Output { exit, stdout, stderr, truncated, tails }),
            Err(Error::Timeout { machine, stage, command, after, gone, .. }) => {
                let [stdout, stderr] = tails.map(|tail| tail.text());
                Err(Error::Timeout { machine, stage, command, after, gone, stdout, stderr })
            }
            Err(Error::Session { machine, stage, action, source }) => {
                let refused = refused.filter(|_| source.kind == SessionErrorKind::Local);
                let source = refused.into_iter().fold(source, SessionError::source);
                Err(Error::Session { machine, stage, action, source })
            }
            Err(error) => Err(error),
        }
    }

    /// An error of the command's, without what its event says beside it.
    fn words_of(&self, error: &Error) -> String {
        let text = error.to_string();
        let own = format!("{}: stage {}: `{}` ", self.host.name(), self.host.stage, shown(&self.line()));
        text.strip_prefix(&own).unwrap_or(&text).to_owned()
    }

    /// Starts it in the background, where it runs until [`Process::stop`], or until the process is dropped.
    ///
    /// ```
    /// # use tsunami_core::{Command, Error, Host};
    /// # async fn example(server: &Host, client: &Host) -> Result<(), Error> {
    /// let redis = server.command(Command::shell("redis-server --protected-mode no")).start();
    /// client.run(format!("redis-benchmark -h {}", client.ip_of(server)?)).await?;
    /// redis.stop().await?;
    /// # Ok(()) }
    /// ```
    pub fn start(mut self) -> Process {
        let stop = self.cancel.take().unwrap_or_default().child_token();
        let task = tokio::spawn(self.cancel_on(stop.clone()).output());
        Process { stop, state: ProcessState::Running(task) }
    }
}

/// A command that has begun.
struct Begun {
    at: Instant,
    capture: Arc<Capture>,
}

/// Whose turn it is of several commands, and since when.
#[derive(Clone, Copy)]
struct Turn {
    index: usize,
    since: Instant,
}

/// Tells the one who waits for them about the turns.
struct CurrentTurn {
    turn: Mutex<Turn>,
    next: Notify,
}

impl CurrentTurn {
    /// It is the first one's turn.
    fn first() -> Self {
        Self { turn: Mutex::new(Turn { index: 0, since: Instant::now() }), next: Notify::new() }
    }

    fn turn(&self) -> Turn {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, turn: Turn) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
        self.next.notify_one();
    }
}

/// Hears of commands that run one after another, by their places: right before events tell that one begins, and right
/// after they have told how it ended, which is a success or not.
pub(crate) trait Turns: Send + Sync {
    fn begins(&self, index: usize);
    fn ended(&self, index: usize, ok: bool);
}

/// Hears nothing.
impl Turns for () {
    fn begins(&self, _: usize) {}
    fn ended(&self, _: usize, _: bool) {}
}

/// Commands that run one after another.
struct List {
    commands: Vec<HostCommand>,
    /// Whether somebody wants all that they wrote.
    keep: bool,
    turns: Arc<dyn Turns>,
    turn: CurrentTurn,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    begun: Option<Begun>,
    /// How many have ended.
    ended: usize,
    outputs: Vec<Output>,
}

impl List {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, index: usize) -> Begun {
        self.turns.begins(index);
        self.commands[index].begin()
    }

    fn settle(&self, index: usize, begun: Begun, result: Result<Exit, Error>) -> Result<Output, Error> {
        let settled = self.commands[index].settle(begun, result);
        self.turns.ended(index, settled.as_ref().is_ok_and(|output| output.exit.success()));
        settled
    }
}

impl SequenceObserver for List {
    fn begins(&self, index: usize) -> Arc<dyn OutputSink> {
        let begun = self.begin(index);
        let capture = begun.capture.clone();
        self.turn.take(Turn { index, since: begun.at });
        self.progress().begun = Some(begun);
        capture
    }

    fn ended(&self, index: usize, exit: Exit) {
        let begun = self.progress().begun.take();
        let output = begun.and_then(|begun| self.settle(index, begun, Ok(exit)).ok());
        let mut progress = self.progress();
        if !self.keep {
            progress.outputs.clear();
        }
        progress.outputs.extend(output);
        progress.ended = index + 1;
    }
}

/// What ending a command comes to that had no answer in its time.
fn not_confirmed<T>(_: Elapsed) -> Result<T, SessionError> {
    let after = humantime::format_duration(END_TIMEOUT);
    let message = format!("whether the command is gone was not known {after} after it was told to end");
    Err(SessionError::new(SessionErrorKind::CancelledUnconfirmed, message))
}

/// Resolves when the time has come; never without one. It takes memory only where there is one, as for most commands there
/// isn't.
async fn passed(time: Option<Instant>) {
    match time {
        Some(time) => Box::pin(sleep_until(time)).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the token fires; never without one, which takes no memory.
async fn cancelled(token: Option<&CancellationToken>) {
    match token {
        Some(token) => Box::pin(token.cancelled()).await,
        None => std::future::pending().await,
    }
}

/// A command that runs in the background.
///
/// Dropping it begins to stop the command and returns at once; [`stop`](Self::stop) waits until it is gone.
#[derive(Debug)]
pub struct Process {
    stop: CancellationToken,
    state: ProcessState,
}

#[derive(Debug)]
enum ProcessState {
    Running(JoinHandle<Result<Output, Error>>),
    Ended(Output),
    /// Its error has been handed out.
    Failed,
}

impl Process {
    /// Waits until the command ends by itself. May be dropped and called again, also when it has ended; an error
    /// is told once.
    pub async fn wait(&mut self) -> Result<Output, Error> {
        let ended = match &mut self.state {
            ProcessState::Running(task) => task.await.map_err(Error::other).flatten(),
            ProcessState::Ended(output) => return Ok(output.clone()),
            ProcessState::Failed => return Err(Error::other("the process failed, as was told before")),
        };
        self.state = match &ended {
            Ok(output) => ProcessState::Ended(output.clone()),
            Err(_) => ProcessState::Failed,
        };
        ended
    }

    /// Whether the command has ended, so that nothing is left to wait for.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(&self.state, ProcessState::Running(task) if !task.is_finished())
    }

    /// Ends the command: TERM, five seconds, then KILL. Returns once it is confirmed gone, with how it ended if
    /// that happened before, and without an error that [`wait`](Self::wait) has told already.
    pub async fn stop(mut self) -> Result<Option<Output>, Error> {
        self.stop.cancel();
        if matches!(self.state, ProcessState::Failed) {
            return Ok(None);
        }
        match self.wait().await {
            Ok(output) => Ok(Some(output)),
            Err(Error::Cancelled) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What a command wrote, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// The first [`OUTPUT_LIMIT`] bytes of its standard output.
    pub stdout: Vec<u8>,
    /// The first [`OUTPUT_LIMIT`] bytes of its standard error.
    pub stderr: Vec<u8>,
    /// Whether there was more than that of either.
    pub truncated: bool,
    /// Of standard output, and of standard error.
    tails: [Tail; 2],
}

impl Output {
    /// Standard output as text; what isn't UTF-8 is replaced.
    pub fn stdout(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Standard error as text; what isn't UTF-8 is replaced.
    pub fn stderr(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }

    /// The last ten lines of a stream, however much came before them.
    pub fn last_lines(&self, stream: Stream) -> String {
        self.tails[usize::from(stream == Stream::Stderr)].text()
    }
}

/// Hands output on to the observers and keeps as much of it as [`Output`] promises.
struct Capture {
    host: Host,
    /// `None` where nobody is told of the command.
    command_id: Option<u64>,
    watcher: Option<Arc<dyn OutputWatcher>>,
    kept: Mutex<Kept>,
}

/// Looks at a command's output as it passes, and must not block.
pub(crate) trait OutputWatcher: Send + Sync + fmt::Debug {
    fn look(&self, stream: Stream, bytes: &[u8]);

    /// Whether nobody else wants the output, so that none of it is kept.
    fn takes_all(&self) -> bool {
        false
    }
}

#[derive(Default)]
struct Kept {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    tails: [Tail; 2],
    /// What an observer said that took no more.
    refused: Option<OutputRefused>,
}

impl Capture {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutputSink for Capture {
    fn write(&self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let mut kept = self.kept();
        kept.tails[usize::from(stream == Stream::Stderr)].push(bytes);
        let all = match stream {
            Stream::Stdout => &mut kept.stdout,
            Stream::Stderr => &mut kept.stderr,
        };
        let limit =
            if self.watcher.as_ref().is_some_and(|watcher| watcher.takes_all()) { 0 } else { OUTPUT_LIMIT };
        let room = bytes.len().min(limit - all.len());
        all.extend_from_slice(&bytes[..room]);
        kept.truncated |= room < bytes.len();
        drop(kept);
        if let Some(watcher) = &self.watcher {
            watcher.look(stream, bytes);
        }
        let Some(command_id) = self.command_id else { return Ok(()) };
        let id = Some(&self.host.inner.machine.id);
        let origin = Origin::new(self.host.name(), &self.host.stage).command(id, command_id);
        let taken = self.host.inner.events.output(&origin, stream, bytes);
        if let Err(error) = &taken {
            self.kept().refused = Some(OutputRefused(std::io::Error::new(error.kind(), error.to_string())));
        }
        taken
    }
}

/// What an observer said that could not take a command's output, as where the disk under a log is full. It ended the
/// command, and is among the sources of the command's error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OutputRefused(std::io::Error);

impl OutputRefused {
    /// Whether it is what an error stems from.
    pub fn is_source_of(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<Self>())
    }
}

/// The last few kilobytes of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(OUTPUT_TAIL_LIMIT)..]);
        self.0.drain(..self.0.len().saturating_sub(OUTPUT_TAIL_LIMIT));
    }

    /// The last ten lines.
    pub(crate) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventCounts;
    use crate::machine::MachineState;
    use crate::session::MockSession;

    #[tokio::test]
    async fn what_waits_for_a_command_is_small_since_ten_thousand_may_run_at_once() {
        let run = RunId::generate(SystemTime::UNIX_EPOCH, 1);
        let machine = Machine::new(MachineId::new("m-1"), run, "node", 0, MachineState::Running);
        let events = Events::new(&[], SystemTime::UNIX_EPOCH, EventCounts::default());
        let (session, spreads) = (Arc::new(MockSession::new()), Spreads::new(Vec::new(), events.clone()));
        let host = Host::new(machine.into(), session, events, spreads, CancellationToken::new());
        let bytes = size_of_val(&host.command(Command::shell("true")).run());
        assert!(bytes <= 1024, "{bytes} bytes");
    }

    #[test]
    fn a_tail_keeps_the_last_lines_whatever_the_cuts() {
        let mut tail = Tail::default();
        for i in 0..10_000 {
            tail.push(format!("line {i}\n").as_bytes());
        }
        tail.push(&[b'x'; 10]);
        let text = tail.text();
        assert_eq!(text.lines().count(), 10);
        assert!(text.ends_with("line 9999\nxxxxxxxxxx"));
        assert!(tail.0.len() <= OUTPUT_TAIL_LIMIT);
        tail.push(&vec![b'y'; 3 * OUTPUT_TAIL_LIMIT]);
        assert_eq!(tail.text().len(), OUTPUT_TAIL_LIMIT);
    }
}
