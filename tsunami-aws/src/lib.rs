//! tsunami's provider for Amazon EC2: on-demand machines, spot machines, and spot blocks.
//!
//! [`Ec2Provider`] launches machines that end themselves: each carries its deadline and its host key in its
//! user data, from before its first boot. It is found by tag, torn down by tag, and its requests are written
//! down before they are made, so that nothing it creates is lost: not with an answer, not with the process.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tsunami_aws::{Ec2Options, Ec2Provider, Ec2Spec, Market};
//! use tsunami_core::{Connector, Error, Group, MachineSpec, Plan, RunStore, Tsunami};
//!
//! # async fn example(connector: Arc<dyn Connector>) -> Result<(), Error> {
//! let state = RunStore::standard()?;
//! let options = Ec2Options { regions: vec!["eu-west-1".into()], ..Ec2Options::default() };
//! let provider = Ec2Provider::connect(state.root(), options).await.map_err(Error::other)?;
//! let spec = MachineSpec::new(Ec2Spec {
//!     instances: vec!["c7g.large".into(), "c6g.large".into()],
//!     markets: vec![Market::Spot, Market::OnDemand],
//!     ..Ec2Spec::default()
//! });
//! // `connector` is a `tsunami_ssh::SshConnector`.
//! let tsunami = Tsunami::new(Arc::new(provider), connector).state(state);
//! let plan = Plan::new("hello").group(Group::new("node", spec).count(3)).budget(1.0);
//! tsunami.run(plan, |cluster| async move { cluster.hosts()[0].run("uname -a").await }).await?;
//! # Ok(()) }
//! ```

mod address;
mod clock;
mod codes;
mod connect;
mod discovery;
mod error;
mod guest;
mod interruption;
mod inventory;
mod journal;
mod launch;
mod limited;
mod model;
mod provider;
mod quota;
mod region;
#[cfg(feature = "experiment")]
mod registration;
mod requests;
mod resolve;
mod settings;
mod spec;
mod tag;
mod teardown;
mod text;
mod trust;
mod user_data;

pub use discovery::{DiscoveredRun, Survey};
pub use journal::recorded_options;
pub use provider::Ec2Provider;
#[cfg(feature = "experiment")]
pub use registration::Ec2Registration;
pub use settings::{ADDRESS_SERVICE, Ec2Options, Ec2Settings};
pub use spec::{Disk, Ec2Spec, InvalidMarket, Market};
pub use teardown::recorded_leftovers;
pub use user_data::{InvalidUserData, USER_DATA_LIMIT, UserData};
