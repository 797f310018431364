//! Providers and connectors are foreign code: what they panic with is an error like any other, so that a teardown
//! goes on.

use std::any::Any;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::{FutureExt, TryFutureExt};
use tokio::time::Instant;

use crate::machine::{Login, Machine, MachineId, RunId};
use crate::provider::{
    Choice, Choices, LaunchRequest, Leftover, MachineSpec, Provider, ProviderError, ProviderErrorKind, Quote,
    RunFilter,
};
use crate::session::{Connector, Session, SessionError, SessionErrorKind};

/// How far listings of a provider may lag that panics when it is asked for that.
const CAUTIOUS_CONSISTENCY: Duration = Duration::from_secs(5);

/// Foreign code panicked, and what it said.
#[derive(Debug, thiserror::Error)]
#[error("that was a panic")]
pub(super) struct Panicked(String);

impl Panicked {
    fn new(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Self(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message").to_owned())
    }
}

/// Awaits foreign code.
pub(super) fn caught<T>(doing: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
    AssertUnwindSafe(doing).catch_unwind().map_err(|panic| Panicked::new(&*panic))
}

/// Calls foreign code.
pub(super) fn caught_call<T>(call: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| Panicked::new(&*panic))
}

/// Whether a request is as good as unanswered.
pub(super) fn has_panicked(error: &ProviderError) -> bool {
    error.source.as_ref().is_some_and(|source| source.is::<Panicked>())
}

/// A provider whose panics are errors.
#[derive(Debug)]
pub(super) struct Guarded<T: ?Sized>(pub(super) Arc<T>);

fn asked<T>(
    operation: &str,
    asking: impl Future<Output = Result<T, ProviderError>>,
) -> impl Future<Output = Result<T, ProviderError>> {
    caught(asking).map(move |answer| answer.map_err(|panic| panicked(operation, panic))?)
}

fn panicked(operation: &str, panic: Panicked) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Other, operation, panic.0.clone()).source(panic)
}

/// What a run's record says of its provider: the name, and what else another process must know.
pub(super) fn described(provider: &dyn Provider) -> Result<(String, serde_json::Value), ProviderError> {
    caught_call(|| (provider.name(), provider.settings())).map_err(|panic| panicked("describe", panic))
}

#[deny(clippy::missing_trait_methods, reason = "a method that is left out never reaches the provider")]
#[async_trait]
impl Provider for Guarded<dyn Provider> {
    // These two have no word for an error: the engine asks for them by `described`.
    fn name(&self) -> String {
        self.0.name()
    }

    fn settings(&self) -> serde_json::Value {
        self.0.settings()
    }

    async fn choose(&self, spec: &MachineSpec, known: &Choices) -> Result<Option<Choice>, ProviderError> {
        asked("choose", async { self.0.choose(spec, known).await }).await
    }

    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        asked("quote", async { self.0.quote(spec, count).await }).await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        asked("launch", async { self.0.launch(request).await }).await
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        asked("list", async { self.0.list(filter).await }).await
    }

    async fn verify(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        asked("verify", async { self.0.verify(machine, session).await }).await
    }

    async fn renew(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        asked("verify", async { self.0.renew(machine, session).await }).await
    }

    async fn interruption_notice(&self, machine: &Machine, session: &Arc<dyn Session>) -> String {
        match caught(async { self.0.interruption_notice(machine, session).await }).await {
            Ok(notice) => notice,
            Err(Panicked(panic)) => {
                tracing::error!(panic, "the provider hears no notice any more");
                std::future::pending().await
            }
        }
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        asked("extend", async { self.0.extend(run, until).await }).await
    }

    async fn extend_on(
        &self,
        machine: &Machine,
        session: &Arc<dyn Session>,
        until: SystemTime,
    ) -> Result<(), ProviderError> {
        asked("extend", async { self.0.extend_on(machine, session, until).await }).await
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        asked("terminate", async { self.0.terminate(run).await }).await
    }

    fn consistency(&self) -> Duration {
        caught_call(|| self.0.consistency()).unwrap_or(CAUTIOUS_CONSISTENCY)
    }
}

#[deny(clippy::missing_trait_methods, reason = "a method that is left out never reaches the connector")]
#[async_trait]
impl Connector for Guarded<dyn Connector> {
    async fn prepare(&self, run: &RunId, directory: &Path) -> Result<String, SessionError> {
        let prepared = caught(async { self.0.prepare(run, directory).await }).await;
        prepared.map_err(|panic| SessionError::new(SessionErrorKind::Local, panic.0.clone()).source(panic))?
    }

    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError> {
        let connected = caught(async { self.0.connect(machine, deadline).await }).await;
        connected
            .map_err(|panic| SessionError::new(SessionErrorKind::Connect, panic.0.clone()).source(panic))?
    }

    async fn resolve(&self, login: &Login) -> Result<String, SessionError> {
        let resolved = caught(async { self.0.resolve(login).await }).await;
        resolved.map_err(|panic| SessionError::new(SessionErrorKind::Local, panic.0.clone()).source(panic))?
    }

    async fn finish(&self, run: &RunId) {
        if let Err(Panicked(panic)) = caught(async { self.0.finish(run).await }).await {
            tracing::error!(panic, "the connector failed to finish");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::machine::{Deadline, MachineState};
    use crate::provider::MockProvider;
    use crate::session::{MockConnector, MockSession};

    fn refused() -> ProviderError {
        ProviderError::new(ProviderErrorKind::Unauthorized, "mock", "the mock was asked")
    }

    fn machine() -> Machine {
        let run = RunId::generate(SystemTime::UNIX_EPOCH, 1);
        Machine::new(MachineId::new("m-1"), run, "node", 0, MachineState::Running)
    }

    /// A method with a default that isn't handed on would compile, and answer in the provider's place.
    #[tokio::test]
    async fn everything_that_a_provider_is_asked_reaches_it() {
        let mut mock = MockProvider::new();
        mock.expect_name().return_const("mock".to_owned());
        mock.expect_settings().return_const(json!({ "region": "mars" }));
        mock.expect_choose().returning(|_, _| Err(refused()));
        mock.expect_quote().returning(|_, _| Err(refused()));
        mock.expect_launch().returning(|_| Err(refused()));
        mock.expect_list().returning(|_| Err(refused()));
        mock.expect_verify().returning(|_, _| Err(refused()));
        mock.expect_renew().returning(|_, _| Err(refused()));
        mock.expect_interruption_notice().returning(|_, _| "taken back".to_owned());
        mock.expect_extend().returning(|_, _| Err(refused()));
        mock.expect_extend_on().returning(|_, _, _| Err(refused()));
        mock.expect_terminate().returning(|_| Err(refused()));
        mock.expect_consistency().return_const(Duration::from_secs(77));
        let provider = Guarded::<dyn Provider>(Arc::new(mock));
        let session: Arc<dyn Session> = Arc::new(MockSession::new());
        let (machine, spec, until) = (machine(), MachineSpec::default(), SystemTime::UNIX_EPOCH);
        let deadline = Deadline { at: until, lifetime: Duration::from_secs(60) };
        let one = NonZeroU32::MIN;
        let request = LaunchRequest::new(machine.run.clone(), "node", one, spec.clone(), deadline);
        assert_eq!(described(&provider).unwrap(), ("mock".to_owned(), json!({ "region": "mars" })));
        assert_eq!(provider.consistency(), Duration::from_secs(77));
        assert_eq!(provider.interruption_notice(&machine, &session).await, "taken back");
        for answer in [
            provider.choose(&spec, &Choices::new()).await.err(),
            provider.quote(&spec, one).await.err(),
            provider.launch(&request).await.err(),
            provider.list(&RunFilter::Run(machine.run.clone())).await.err(),
            provider.verify(&machine, &session).await.err(),
            provider.renew(&machine, &session).await.err(),
            provider.extend(&machine.run, until).await.err(),
            provider.extend_on(&machine, &session, until).await.err(),
            provider.terminate(&machine.run).await.err(),
        ] {
            assert_eq!(answer.unwrap().message, "the mock was asked");
        }
    }

    #[tokio::test]
    async fn everything_that_a_connector_is_asked_reaches_it() {
        let refused = || SessionError::new(SessionErrorKind::Local, "the mock was asked");
        let mut mock = MockConnector::new();
        mock.expect_prepare().returning(move |_, _| Err(refused()));
        mock.expect_connect().returning(move |_, _| Err(refused()));
        mock.expect_resolve().returning(move |_| Err(refused()));
        mock.expect_finish().times(1).return_const(());
        let connector = Guarded::<dyn Connector>(Arc::new(mock));
        let machine = machine();
        connector.finish(&machine.run).await;
        for answer in [
            connector.prepare(&machine.run, Path::new("/")).await.err(),
            connector.connect(&machine, Instant::now()).await.err(),
            connector.resolve(&machine.login).await.err(),
        ] {
            assert_eq!(answer.unwrap().message, "the mock was asked");
        }
    }
}
