//! tsunami's provider for Amazon EC2: on-demand machines, spot machines, and spot blocks.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tsunami_aws::{Ec2Options, Ec2Provider, Ec2Spec, Market};
//! use tsunami_core::{Connector, Error, Group, MachineSpec, Plan, RunStore, Tsunami};
//!
//! # async fn example(connector: Arc<dyn Connector>) -> Result<(), Error> {
//! let state = RunStore::standard()?;
//! let options = Ec2Options::default().regions(["eu-west-1"]);
//! let provider = Ec2Provider::connect(state.root(), options).await.map_err(Error::other)?;
//! let spec = Ec2Spec::new(["c7g.large", "c6g.large"]).markets([Market::Spot, Market::OnDemand]);
//! // `connector` is a `tsunami_ssh::SshConnector`.
//! let tsunami = Tsunami::new(Arc::new(provider), connector).state(state);
//! let plan = Plan::new("hello").group(Group::new("node", MachineSpec::new(spec)).count(3)).budget(1.0);
//! tsunami.run(plan, |cluster| async move { cluster.hosts()[0].run("uname -a").await }).await?;
//! # Ok(()) }
//! ```
//!
//! [`Ec2Provider`] launches machines that end themselves, finds them again by tag, and ends whatever it created, also
//! what a lost answer or a dead process left behind. What a run is and what is guaranteed of it is [`tsunami_core`]'s.
//!
//! Groups of one plan may be in several [regions](Ec2Spec::region), whose machines reach each other at
//! [`open_ports`](Ec2Spec::open_ports).
//!
//! # What it does
//!
//! A group is one request for a fleet, however large. Its machines are alike: one instance type in one zone, of those
//! that the [`Ec2Spec`] allows the one that price and capacity favour, unless the group is [`mixed`](Ec2Spec::mixed).
//! [Markets](Market) are tried in their order. A pool without capacity is passed over for a while, one that is refused is
//! left out, and a market that fails inside EC2, or whose quota is used up, gives way to the next.
//!
//! [`quote`](tsunami_core::Provider::quote) creates nothing. It looks up image, types, zones, network, prices and the
//! account's quotas, and refuses what can't be had. What it may not look at it says to be unchecked; a price that AWS
//! does not tell is unknown, and never fits a budget.
//!
//! # What it guarantees
//!
//! - **Tagged from birth.** Everything it creates carries the run's tag from the request that creates it. What does not
//!   carry it is never touched, whatever a listing shows.
//! - **Written down first.** Each request that creates something is in the run's journal, synced, before it is made,
//!   with its idempotency token or a name derived from the run. One whose answer is lost is made again, byte for byte,
//!   by whoever continues or tears down: the answer tells what it created.
//! - **A deadline from the first boot.** User data arms it before sshd accepts anyone and powers the machine off where
//!   that fails; EC2 terminates what powers itself off. It needs neither this program nor a network. On the first
//!   connection a machine is refused that is armed otherwise. Deadlines go by EC2's clock.
//! - **Known from the first byte.** The run's host key is delivered in the user data and pinned; no login key is in it.
//! - **Ended without being seen.** Known machines are told to end before anything is looked at, all at once, or one by
//!   one where EC2 refuses that; then listings by tag show what else there is. Nothing is said to be gone while a request
//!   is not settled or a kind of things can't be listed. What stays is named by its id, with the reason.
//! - **Nobody else's account.** Credentials of another account, or another endpoint, than a run was made with are
//!   refused before anything is asked.
//!
//! # When it is dropped or cancelled
//!
//! `launch`, `terminate` and `extend` are awaited to their end by the engine. Dropped all the same, a launch may have
//! created what its future no longer tells: the journal has the request, and
//! [`terminate`](tsunami_core::Provider::terminate), from this process or another, learns what came of it. Everything
//! else may be dropped at any await. Dropping an [`Ec2Provider`] ends nothing: machines live until they are terminated or
//! until their deadline.
//!
//! Where nothing but the journal is left of a run, [`recorded_options`] finds the account and regions, and
//! [`recorded_leftovers`] names what it is known to have created.
//!
//! # Errors
//!
//! Every error is a [`ProviderError`](tsunami_core::ProviderError): its kind says whether to wait, to try elsewhere, or to
//! stop, and its help what a person can do. AWS's codes are classed in one table, with where AWS says so. Throttled
//! requests wait together, an action and a region at a time; a refusal that no repetition changes ends at once.
//!
//! # Credentials
//!
//! They are found as every AWS tool finds them: environment, profiles, SSO, roles, `credential_process`.
//! `AWS_ENDPOINT_URL`, `AWS_CA_BUNDLE` and the proxy variables are honoured, as are `endpoint_url` and `ca_bundle` of a
//! profile. A profile of `aws login` is not known: `aws configure export-credentials` translates it.

mod address;
mod clock;
mod codes;
mod connect;
mod discovery;
mod error;
#[cfg(feature = "experiment")]
mod examination;
mod guest;
mod interruption;
mod inventory;
mod journal;
mod launch;
mod limited;
pub mod limits;
mod model;
mod provider;
mod quota;
mod region;
#[cfg(feature = "experiment")]
mod registration;
mod requests;
mod resolve;
mod settings;
mod shape;
mod spec;
mod tag;
mod teardown;
mod text;
mod trust;
mod user_data;

/// An account as the AWS SDK takes it, for [`Ec2Provider::with_config`].
pub use aws_config::SdkConfig;

pub use journal::recorded_options;
pub use provider::Ec2Provider;
#[cfg(feature = "experiment")]
pub use registration::Ec2Registration;
pub use settings::{ADDRESS_SERVICE, Ec2Options, Ec2Settings};
pub use shape::{Amount, Generation, Shape};
pub use spec::{Disk, Ec2Spec, InvalidMarket, Market, Reach, Reservation};
pub use teardown::recorded_leftovers;
pub use user_data::{InvalidUserData, USER_DATA_LIMIT, UserData};
