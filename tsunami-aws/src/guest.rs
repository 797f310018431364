//! What is said with a machine over its first connection: its deadline, cloud-init, its interruption.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tsunami_core::{Command, Exit, Machine, OutputSink, ProviderError, ProviderErrorKind, Session, Stream};

use crate::clock::Clock;
use crate::interruption::{INTERRUPTION_NOTICE, is_notice};
use crate::limits::{VERIFY_OUTPUT_LIMIT, VERIFY_TIMEOUT};
use crate::model::timestamp;
use crate::text;
use crate::user_data::DEADLINE_DIGITS;

/// How far a machine's own deadline may be from the one in its tags: they are told to the second, at once.
const DEADLINE_TOLERANCE: Duration = Duration::from_secs(60);

/// Waits for cloud-init.
const WAIT_FOR_CLOUD_INIT: &str = include_str!("cloud_init.sh");

/// Fails unless a machine says that it is armed to end when its tags say so.
pub(crate) async fn verify_deadline(
    machine: &Machine,
    session: &Arc<dyn Session>,
    clock: Clock,
) -> Result<(), ProviderError> {
    let status = Command::shell("tsunami-deadline status");
    let armed = within(VERIFY_TIMEOUT, remote(machine, session, status)).await?;
    let at = armed_at(&armed).map(|at| clock.ours(at));
    let fits = at.zip(machine.expires).is_some_and(|(at, expires)| at <= expires + DEADLINE_TOLERANCE);
    if fits {
        return Ok(());
    }
    let expires = machine.expires.map(timestamp).unwrap_or_default();
    let message =
        format!("its deadline is not the promised one, {expires}: it says `{}`", text::line(&armed));
    Err(ProviderError::new(ProviderErrorKind::Other, "deadline", message))
}

/// Moves the end that a machine is armed with.
pub(crate) async fn move_deadline(
    machine: &Machine,
    session: &Arc<dyn Session>,
    clock: Clock,
    until: SystemTime,
) -> Result<(), ProviderError> {
    let at = clock.theirs(until).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let before = machine.expires.unwrap_or(until);
    let (longer, shorter) = match until.duration_since(before) {
        Ok(longer) => (longer.as_secs(), 0),
        Err(error) => (0, error.duration().as_secs()),
    };
    // What is promised in seconds of life moves by as much as the hour does.
    let line = format!(
        "set -- $(tsunami-deadline status) && [ $# = 3 ] && tool=$(command -v tsunami-deadline) && \
         if [ \"$(id -u)\" = 0 ]; then sudo=; else sudo='sudo -n'; fi && \
         $sudo \"$tool\" extend {at} $(($3 + {longer} - {shorter}))"
    );
    within(VERIFY_TIMEOUT, remote(machine, session, Command::shell(line))).await.map(drop)
}

/// Waits until cloud-init has set the machine up.
pub(crate) async fn wait_for_cloud_init(
    machine: &Machine,
    session: &Arc<dyn Session>,
) -> Result<(), ProviderError> {
    remote(machine, session, Command::shell(WAIT_FOR_CLOUD_INIT)).await.map(drop)
}

/// Waits until a machine is told that EC2 takes it back. An error if it does not listen.
pub(crate) async fn interruption_notice(
    machine: &Machine,
    session: &Arc<dyn Session>,
) -> Result<String, ProviderError> {
    // Isolated, so that no module in the home directory passes for one of Python's own.
    let listen = Command::program("python3").arg("-I").arg("-c").arg(INTERRUPTION_NOTICE);
    let said = remote(machine, session, listen).await?;
    match is_notice(&said) {
        true => {
            Ok(format!("EC2 takes the spot machine back, as the machine was told: {}", text::line(&said)))
        }
        false => {
            let message = format!("it said `{}` in place of a notice", text::line(&said));
            Err(ProviderError::new(ProviderErrorKind::Other, "interruption notice", message))
        }
    }
}

/// When a machine says that it ends itself: `armed AT FOR`, both in seconds, and nothing beside that.
fn armed_at(status: &str) -> Option<SystemTime> {
    let number = |word: &str| {
        let digits = word.len() <= DEADLINE_DIGITS && word.bytes().all(|byte| byte.is_ascii_digit());
        word.parse().ok().filter(|_| digits)
    };
    let line = status.strip_suffix('\n').unwrap_or(status);
    let [at, lifetime] = line.strip_prefix("armed ")?.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let _: u64 = number(lifetime)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(number(at)?))
}

/// Gives a machine a while to say something.
async fn within<T>(
    limit: Duration,
    said: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    let limit_over = |_| {
        let message = format!("no answer within {}", humantime::format_duration(limit));
        Err(ProviderError::new(ProviderErrorKind::Other, "first connection", message))
    };
    tokio::time::timeout(limit, said).await.unwrap_or_else(limit_over)
}

/// Runs a command on a machine, which must succeed, and returns what it wrote.
async fn remote(
    machine: &Machine,
    session: &Arc<dyn Session>,
    command: Command,
) -> Result<String, ProviderError> {
    let failed = |message: String| ProviderError::new(ProviderErrorKind::Other, "first connection", message);
    let output = Arc::new(CapturedOutput::default());
    let exit = session.exec(&command, output.clone(), &Default::default()).await;
    let exit = exit.map_err(|error| {
        let user = machine.login.user.as_deref().unwrap_or("whoever logs in");
        let help = format!("if the image takes no commands from {user}, name its own user: `user`");
        failed("a command could not be run".to_owned()).source(error).help(help)
    })?;
    let (stdout, stderr) = output.text();
    match exit {
        Exit::Status(0) => Ok(stdout),
        exit => Err(failed(format!(
            "`{}` ended with {exit}: {}",
            command.to_string().lines().next().unwrap_or_default(),
            text::line(&stderr)
        ))),
    }
}

/// Keeps the beginning of what a command says.
#[derive(Debug, Default)]
struct CapturedOutput(Mutex<(Vec<u8>, Vec<u8>)>);

impl CapturedOutput {
    fn text(&self) -> (String, String) {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (String::from_utf8_lossy(&said.0).into_owned(), String::from_utf8_lossy(&said.1).into_owned())
    }
}

impl OutputSink for CapturedOutput {
    fn write(&self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = if stream == Stream::Stdout { &mut said.0 } else { &mut said.1 };
        kept.extend_from_slice(&bytes[..bytes.len().min(VERIFY_OUTPUT_LIMIT.saturating_sub(kept.len()))]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_believed_its_deadline_only_in_the_words_that_were_agreed_on() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(armed_at("armed 1800000000 2700\n"), at(1_800_000_000));
        for lie in [
            "",
            "armed",
            "armed 1800000000",
            "armed +1800000000 2700",
            "armed -1 2700",
            "disarmed 1800000000 2700",
            "armed 1800000000 2700 3",
            "armed 1800000000 2700\n\n",
            "armed 1800000000\n2700",
            "armed 18446744073709551615 2700",
            "armed 1800000000 99999999999999999999",
        ] {
            assert_eq!(armed_at(lie), None, "{lie:?}");
        }
    }
}
