//! From a run, or from nothing but a provider's name, to the provider and the connector: by the registrations.

use tsunami_core::registry::{Backend, Registration, Registry, Survey, SurveyQuery};
use tsunami_core::{Error as CoreError, Leftover, RunEntry, RunStore, Tsunami};

use crate::args::CloudArgs;
use crate::error::Error;

/// What a recorded run was made with.
pub(crate) async fn recorded(
    registry: &Registry,
    directory: &RunEntry,
    state: &RunStore,
) -> Result<Backend, Error> {
    let record = directory.record()?;
    find(registry, &record.provider)?;
    registry.reconnect(&record, state).await.map_err(Error::Provider)
}

/// The engine for a recorded run.
pub(crate) async fn engine(
    registry: &Registry,
    directory: &RunEntry,
    state: &RunStore,
) -> Result<Tsunami, Error> {
    let Backend { provider, connector, .. } = recorded(registry, directory, state).await?;
    Ok(Tsunami::new(provider, connector).state(state.clone()))
}

/// The engine for a recorded run that is looked for or ended. Where its provider can't even be asked, all that is known
/// of the run may remain.
pub(crate) async fn engine_or_remains(
    registry: &Registry,
    directory: &RunEntry,
    state: &RunStore,
) -> Result<Tsunami, Error> {
    engine(registry, directory, state).await.map_err(|error| remains(registry, directory, state, error))
}

/// What is to be said of a run whose provider can't be asked: what is known of it may remain.
pub(crate) fn remains(registry: &Registry, directory: &RunEntry, state: &RunStore, error: Error) -> Error {
    let run = directory.id();
    let is_elsewhere =
        || registry.providers().any(|provider| provider.finds_by_tag() && keeps(&**provider, directory));
    let error = match error {
        Error::Provider(error) => CoreError::other(error),
        Error::Core(error @ CoreError::Other(_)) if is_elsewhere() => error,
        other => return other,
    };
    let why = "nobody could be asked for it";
    let mut leftovers: Vec<Leftover> =
        registry.providers().flat_map(|provider| provider.remembered(state.root(), &run, why)).collect();
    if leftovers.is_empty() {
        leftovers.push(Leftover::new("anything the run created", why));
    }
    Error::Core(CoreError::Remains { run, leftovers, cause: Some(Box::new(error)) })
}

/// Whether a provider keeps something in a run's directory: it does so under its own name.
pub(crate) fn keeps(provider: &dyn Registration, directory: &RunEntry) -> bool {
    directory.path().join(provider.name()).exists()
}

/// What one provider has found by tag, or why it could not be asked.
pub(crate) struct Surveyed {
    provider: &'static str,
    /// Whether others were asked too.
    is_one_of_many: bool,
    pub(crate) found: Result<(Backend, Survey), Error>,
}

impl Surveyed {
    /// Says why the provider could not be asked, if so. Returns the exit status for that.
    pub(crate) fn tell(&self) -> u8 {
        match &self.found {
            Ok(_) => 0,
            Err(error) if self.is_one_of_many => {
                error.show_of(self.provider);
                error.status()
            }
            Err(error) => {
                error.show();
                error.status()
            }
        }
    }
}

/// Looks for runs by tag, in the regions that are named; without any, in the usual one or, `everywhere`, in all. A
/// provider that can't be asked hides nothing of the others.
pub(crate) async fn survey(
    registry: &Registry,
    state: &RunStore,
    cloud: &CloudArgs,
    everywhere: bool,
) -> Result<Vec<Surveyed>, Error> {
    let providers = match &cloud.provider {
        Some(name) => vec![find(registry, name)?],
        None => registry.providers().map(|provider| &**provider).filter(|it| it.finds_by_tag()).collect(),
    };
    if providers.is_empty() {
        let absent = registry.absent_names().find_map(|name| registry.absent(name));
        return Err(Error::Usage(absent.unwrap_or("no provider here finds runs by tag").to_owned()));
    }
    let mut query = SurveyQuery::default().everywhere(everywhere);
    query.regions.clone_from(&cloud.region);
    query.profile.clone_from(&cloud.profile);
    let is_one_of_many = providers.len() > 1;
    let mut surveyed = Vec::new();
    for provider in providers {
        let found = registry.survey(provider.name(), &query, state).await.map_err(Error::Provider);
        surveyed.push(Surveyed { provider: provider.name(), is_one_of_many, found });
    }
    Ok(surveyed)
}

fn find<'a>(registry: &'a Registry, name: &str) -> Result<&'a dyn Registration, Error> {
    registry.find(name).map(|provider| &**provider).ok_or_else(|| {
        let unknown = format!("this tsunami knows no provider `{name}`");
        Error::Usage(registry.absent(name).map_or(unknown, str::to_owned))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use async_trait::async_trait;
    use tsunami_core::registry::{ConnectRequest, DiscoveredRun};
    use tsunami_core::{ProviderError, ProviderErrorKind, RunRecord};
    use tsunami_ssh::{LocalProvider, SshConnector, SshOptions};

    use super::*;

    /// Finds a run by tag, or can't be asked.
    #[derive(Debug)]
    pub(crate) struct Finds(pub(crate) &'static str, pub(crate) bool);

    #[async_trait]
    impl Registration for Finds {
        fn name(&self) -> &'static str {
            self.0
        }

        fn finds_by_tag(&self) -> bool {
            true
        }

        async fn connect(&self, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
            let provider = Arc::new(LocalProvider::new(Path::new("/nonexistent")));
            Ok(Backend::new(provider, Arc::new(SshConnector::new(SshOptions::default()))))
        }

        async fn reconnect(
            &self,
            _: &RunRecord,
            request: &ConnectRequest<'_>,
        ) -> Result<Backend, ProviderError> {
            self.connect(request).await
        }

        async fn survey(
            &self,
            _: &SurveyQuery,
            request: &ConnectRequest<'_>,
        ) -> Result<(Backend, Survey), ProviderError> {
            if !self.1 {
                return Err(ProviderError::new(ProviderErrorKind::Unauthorized, "survey", "no credentials"));
            }
            let (run, expires) = ("20231114-221320-abcd".parse().unwrap(), std::time::SystemTime::UNIX_EPOCH);
            let found = DiscoveredRun::new(run, expires, Vec::new());
            Ok((self.connect(request).await?, Survey::default().run(found)))
        }
    }

    #[tokio::test]
    async fn a_provider_that_cannot_be_asked_hides_nothing_of_the_others() {
        // The provider that "west" makes calls itself "local": what it has would be ended under another name.
        let all = [Finds("east", false), Finds("local", true), Finds("west", true)];
        let registry = all.into_iter().fold(Registry::new(), |registry, one| registry.with(Arc::new(one)));
        let state = RunStore::at("/nonexistent");
        let cloud = CloudArgs { provider: None, region: Vec::new(), profile: None };
        let surveyed = survey(&registry, &state, &cloud, true).await.unwrap();
        let found: Vec<_> = surveyed.iter().map(|one| one.found.as_ref().ok()).collect();
        let found: Vec<_> = found.into_iter().map(|found| Some(found?.1.runs.len())).collect();
        assert_eq!(found, [None, Some(1), None]);
        assert_eq!(surveyed.iter().map(|one| one.tell() == 0).collect::<Vec<_>>(), [false, true, false]);
        assert!(
            matches!(&surveyed[2].found, Err(Error::Provider(error)) if error.message.contains("calls itself"))
        );
    }
}
