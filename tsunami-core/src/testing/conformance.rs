//! The promises of [`Provider`] and [`Session`], one function each, and macros that make a test of each.
//!
//! A promise is an async function that panics when it is broken. Write a harness, and hand it to the macro:
//!
//! ```
//! # use std::num::NonZeroU32;
//! # use tsunami_core::testing::{FakeCloud, conformance};
//! # use tsunami_core::{MachineSpec, Provider};
//! #[derive(Debug)]
//! struct Fake(FakeCloud);
//!
//! impl conformance::ProviderHarness for Fake {
//!     fn provider(&self) -> &dyn Provider {
//!         &self.0
//!     }
//!     fn spec(&self, _count: NonZeroU32) -> MachineSpec {
//!         MachineSpec::default()
//!     }
//! }
//!
//! mod conforms {
//!     use super::*;
//!     tsunami_core::provider_conformance!(
//!         #[tokio::test(start_paused = true)],
//!         async { Fake(FakeCloud::new(1)) }
//!     );
//! }
//! # fn main() {}
//! ```

#[cfg(feature = "experiment")]
pub mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Command, Connector, Deadline, Download, Exclude, Exit, LaunchRequest, Machine, MachineSpec, MachineState,
    OutputSink, Price, Provider, ProviderError, RunFilter, RunId, SequenceObserver, Session, SessionError,
    SessionErrorKind, SharedContent, Stdin, Stream,
};

/// What a provider's suite needs.
pub trait ProviderHarness: Sync {
    /// The provider under test, with nothing running.
    fn provider(&self) -> &dyn Provider;

    /// What to ask for to get `count` machines.
    fn spec(&self, count: NonZeroU32) -> MachineSpec;

    /// The number of machines to launch.
    fn count(&self) -> NonZeroU32 {
        NonZeroU32::new(3).unwrap_or(NonZeroU32::MIN)
    }

    /// A run id for the `nth` run of a test, where the provider needs something prepared for it.
    fn run_id(&self, nth: u32) -> RunId {
        RunId::generate(SystemTime::UNIX_EPOCH, nth.into())
    }

    /// Whether machines of several runs can exist side by side.
    fn isolates_runs(&self) -> bool {
        true
    }

    /// What logs in to the provider's machines, and the run's own directory for it. Without one, the promises about
    /// logging in are left out.
    fn connector(&self, run: &RunId) -> Option<(&dyn Connector, PathBuf)> {
        let _ = run;
        None
    }

    /// Whether listings show that a machine has ended at its deadline, although nobody ever logged in to it.
    fn ends_machines(&self) -> bool {
        true
    }

    /// The lifetime of machines whose end a test waits for.
    fn short_lifetime(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Whether machines may be taken back, so that a launch replaces those that no longer count.
    fn replaces_machines(&self) -> bool {
        true
    }

    /// Whether the provider gives its machines their host keys.
    fn makes_host_keys(&self) -> bool {
        true
    }

    /// Whether the provider asks a new machine for its deadline, and refuses one that lives on.
    fn checks_deadlines(&self) -> bool {
        false
    }

    /// Takes a machine back before its time, having told the machine itself at once. Returns whether it can.
    fn take_back(&self, machine: &Machine) -> bool {
        let _ = machine;
        false
    }
}

/// Makes a test of every promise of a provider, given a test attribute and an async block that makes a harness.
#[macro_export]
macro_rules! provider_conformance {
    ($(#[$attribute:meta])+, $harness:expr) => {
        $crate::conformance_tests!(
            provider, [$(#[$attribute])+], $harness,
            a_quote_creates_nothing,
            a_machine_costs_no_more_than_was_quoted,
            launch_returns_as_many_machines_as_asked_for,
            launched_machines_run_with_addresses_of_their_own,
            launching_a_group_again_gives_the_same_machines,
            machines_carry_the_run_the_group_and_the_deadline,
            an_unknown_run_has_nothing_and_is_terminated_at_once,
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
            a_spec_of_another_provider_is_refused
        );
    };
}

/// Makes a test of every promise of a session, given a test attribute and an async block that makes a harness.
#[macro_export]
macro_rules! session_conformance {
    ($(#[$attribute:meta])+, $harness:expr) => {
        $crate::conformance_tests!(
            session, [$(#[$attribute])+], $harness,
            output_and_status_come_back,
            a_status_is_not_a_signal,
            a_command_reads_its_stdin,
            a_command_reads_what_is_written_while_it_runs,
            what_nobody_reads_any_more_cannot_be_written,
            a_cancelled_command_ends_and_says_so,
            a_dropped_command_does_not_break_the_session,
            more_commands_than_channels_all_run,
            a_sink_that_fails_ends_the_command,
            a_sink_that_is_not_ready_is_waited_for,
            a_command_reads_a_local_file,
            a_script_answers_or_says_why_not,
            files_go_out_and_come_home,
            an_upload_arrives_where_it_was_sent,
            an_upload_leaves_out_what_it_is_told,
            what_is_kept_can_be_taken_until_it_is_withdrawn,
            a_download_starts_in_its_directory,
            an_absolute_name_arrives_without_its_slash,
            a_name_that_climbs_arrives_nowhere_else,
            a_session_knows_whether_it_works,
            a_list_runs_in_order_and_stops_at_the_first_failure,
            each_command_of_a_list_is_told_of_as_it_begins_and_ends,
            each_command_of_a_list_has_its_own_output_and_status,
            cancelling_a_list_ends_the_running_one_and_begins_no_other,
            a_port_that_nobody_listens_on_is_refused_and_the_session_goes_on,
            a_pattern_that_matches_nothing_counts_nothing,
            closing_twice_is_fine
        );
    };
}

/// Makes a test of every promise that only a session to a real shell can keep.
#[macro_export]
macro_rules! shell_conformance {
    ($(#[$attribute:meta])+, $harness:expr) => {
        $crate::conformance_tests!(
            shell, [$(#[$attribute])+], $harness,
            arguments_pass_through_byte_for_byte,
            positional_parameters_reach_a_shell_line,
            environment_and_directory_are_set,
            a_missing_directory_is_named,
            a_failing_part_of_a_pipe_fails_the_command,
            a_connection_to_a_port_carries_all_both_ways_until_each_side_ends_it,
            statuses_and_signals_are_told_apart,
            a_script_runs_at_home_with_its_arguments_and_within_bounds,
            binary_output_arrives_unchanged,
            a_flood_of_output_arrives_whole,
            output_arrives_while_the_command_runs,
            cancelling_ends_the_whole_process_group,
            a_stubborn_command_is_killed,
            dropping_ends_the_command,
            what_a_command_leaves_in_the_background_does_not_hold_it,
            a_background_process_can_be_interrupted,
            directories_keep_modes_and_links,
            a_download_brings_directories_whole,
            awkward_file_names_survive,
            an_upload_of_nothing_is_an_error,
            each_command_of_a_list_has_its_own_environment_and_input,
            what_one_of_a_list_leaves_running_does_not_speak_in_the_next,
            a_list_of_floods_arrives_whole,
            the_error_of_a_list_is_that_of_the_one_that_ran,
            a_cancelled_command_of_a_list_that_succeeds_ends_the_list,
            dropping_a_list_ends_the_running_one_and_begins_no_other
        );
    };
}

/// Makes a test of every promise of a [`Registration`](crate::registry::Registration), given a registry, the provider's
/// name, and the keys of a group that can be read, as a file has them.
///
/// ```
/// mod conforms {
///     # use tsunami_core::registry::Registry;
///     tsunami_core::registration_conformance!(Registry::default(), "local", "count = 2");
/// }
/// # fn main() {}
/// ```
#[cfg(feature = "experiment")]
#[macro_export]
macro_rules! registration_conformance {
    ($registry:expr, $provider:expr, $group:expr) => {
        $crate::registration_conformance!(
            @each $registry, $provider, $group,
            every_key_is_read,
            every_key_of_connections_is_read,
            a_user_reaches_the_machines
        );
    };
    (@each $registry:expr, $provider:expr, $group:expr, $promise:ident $(, $more:ident)*) => {
        #[test]
        fn $promise() {
            $crate::testing::conformance::registration::$promise(&$registry, $provider, $group);
        }
        $($crate::registration_conformance!(@each $registry, $provider, $group, $more);)*
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($suite:ident, $attributes:tt, $harness:expr, $($promise:ident),+) => {
        $($crate::conformance_tests!(@one $suite, $attributes, $harness, $promise);)+
    };
    (@one $suite:ident, [$(#[$attribute:meta])+], $harness:expr, $promise:ident) => {
        $(#[$attribute])+
        async fn $promise() {
            let harness = $harness.await;
            $crate::testing::conformance::$suite::$promise(&harness).await;
        }
    };
}

/// What a provider must keep.
pub mod provider {
    use super::*;

    fn request(harness: &dyn ProviderHarness, nth: u32, group: &str) -> LaunchRequest {
        let lifetime = Duration::from_secs(600);
        LaunchRequest {
            run: harness.run_id(nth),
            experiment: "conformance".to_owned(),
            group: group.to_owned(),
            count: harness.count(),
            spec: harness.spec(harness.count()),
            deadline: Deadline { at: SystemTime::now() + lifetime, lifetime },
            authorized_key:
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhQ1mY0rN3Lk4T7m8O1x9vHb2cQnT6yZr0eWfXkUd5g".to_owned(),
            replace: Vec::new(),
            notes: crate::ProgressSink::default(),
        }
    }

    async fn listed(harness: &dyn ProviderHarness, run: &RunId) -> Vec<Machine> {
        let listed = harness.provider().list(&RunFilter::Run(run.clone())).await.expect("list");
        listed.into_iter().filter(|machine| machine.state != MachineState::Gone).collect()
    }

    async fn running(harness: &dyn ProviderHarness, run: &RunId) -> Vec<Machine> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let machines = listed(harness, run).await;
            if machines.iter().all(|machine| machine.state == MachineState::Running) {
                return machines;
            }
            assert!(Instant::now() < deadline, "not running: {machines:?}");
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Terminates until nothing is left, as the engine does.
    async fn terminate(harness: &dyn ProviderHarness, run: &RunId) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let leftovers = harness.provider().terminate(run).await.expect("terminate");
            if leftovers.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "still there: {leftovers:?}");
            sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(listed(harness, run).await, []);
    }

    /// Whoever asks what something would cost has not bought it.
    pub async fn a_quote_creates_nothing(harness: &dyn ProviderHarness) {
        let provider = harness.provider();
        let all = async || {
            let listed = provider.list(&RunFilter::All).await.expect("list all");
            listed.into_iter().map(|machine| machine.id).collect::<BTreeSet<_>>()
        };
        let before = all().await;
        provider.quote(&harness.spec(harness.count()), harness.count()).await.expect("quote");
        assert_eq!(all().await, before);
    }

    /// Budgets rest on the most that was quoted. What isn't known is told so, and fits no budget.
    pub async fn a_machine_costs_no_more_than_was_quoted(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        let quote = harness.provider().quote(&request.spec, request.count).await.expect("quote");
        harness.provider().launch(&request).await.expect("launch");
        let dollars = |price: Price| price.dollars(1, Duration::from_secs(3600));
        for machine in running(harness, &request.run).await {
            if let (Some(cost), Some(most)) = (dollars(machine.price), dollars(quote.max_price)) {
                assert!(cost <= most, "{machine:?} costs more than {:?}", quote.max_price);
            }
        }
        terminate(harness, &request.run).await;
    }

    /// The answer has one id for each machine, all different.
    pub async fn launch_returns_as_many_machines_as_asked_for(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        let ids: BTreeSet<_> =
            harness.provider().launch(&request).await.expect("launch").into_iter().collect();
        assert_eq!(ids.len(), request.count.get() as usize);
        terminate(harness, &request.run).await;
    }

    /// Every launched machine comes to run, with an address that no other machine has.
    pub async fn launched_machines_run_with_addresses_of_their_own(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        harness.provider().launch(&request).await.expect("launch");
        let machines = running(harness, &request.run).await;
        let address = |machine: &Machine| machine.addresses.external().map(str::to_owned);
        let addresses: BTreeSet<_> = machines.iter().filter_map(address).collect();
        assert_eq!(addresses.len(), request.count.get() as usize, "{machines:?}");
        terminate(harness, &request.run).await;
    }

    /// `launch` is idempotent for a run and group.
    pub async fn launching_a_group_again_gives_the_same_machines(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        let first = harness.provider().launch(&request).await.expect("launch");
        let second = harness.provider().launch(&request).await.expect("launch again");
        assert_eq!(first, second);
        assert_eq!(listed(harness, &request.run).await.len(), first.len());
        terminate(harness, &request.run).await;
    }

    /// What a listing says of a machine is what was asked for.
    pub async fn machines_carry_the_run_the_group_and_the_deadline(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        harness.provider().launch(&request).await.expect("launch");
        for machine in running(harness, &request.run).await {
            assert_eq!((&machine.run, machine.group.as_str()), (&request.run, "node"));
            assert!(machine.index < request.count.get());
            if let Some(expires) = machine.expires {
                let error =
                    expires.duration_since(request.deadline.at).unwrap_or_else(|error| error.duration());
                assert!(error < Duration::from_secs(5), "{expires:?} is not {:?}", request.deadline.at);
            }
        }
        terminate(harness, &request.run).await;
    }

    /// Nothing is known of a run that never was.
    pub async fn an_unknown_run_has_nothing_and_is_terminated_at_once(harness: &dyn ProviderHarness) {
        let run = harness.run_id(9);
        assert_eq!(listed(harness, &run).await, []);
        assert_eq!(harness.provider().terminate(&run).await.expect("terminate"), []);
    }

    /// `terminate` is idempotent.
    pub async fn terminate_leaves_nothing_and_may_be_repeated(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        harness.provider().launch(&request).await.expect("launch");
        terminate(harness, &request.run).await;
        terminate(harness, &request.run).await;
    }

    /// Whoever terminates a run may meet a launch that another has begun, or that begins afterwards. That may fail.
    pub async fn what_is_launched_while_a_run_is_terminated_ends_too(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        let meanwhile = harness.provider().terminate(&request.run);
        let (_, meanwhile) = tokio::join!(harness.provider().launch(&request), meanwhile);
        meanwhile.expect("terminate during a launch");
        terminate(harness, &request.run).await;
        let _ = harness.provider().launch(&request).await;
        terminate(harness, &request.run).await;
    }

    /// What no listing has any more has ended, and isn't only hidden. Where machines outlive their run, there is nothing to
    /// see.
    pub async fn what_is_gone_answers_no_more(harness: &dyn ProviderHarness) {
        if !harness.ends_machines() {
            return;
        }
        let mut request = request(harness, 1, "node");
        let Some((connector, sessions)) = log_in_to_all(harness, &mut request).await else { return };
        terminate(harness, &request.run).await;
        for (machine, session) in &sessions {
            let begun = Instant::now();
            while session.check().await.is_ok() {
                assert!(begun.elapsed() < GONE_TIMEOUT, "{} still answers", machine.name());
                sleep(Duration::from_millis(200)).await;
            }
            // There may be nobody left to take leave of.
            let _ = session.close().await;
        }
        connector.finish(&request.run).await;
    }

    /// How long a machine that is gone may seem to answer.
    const GONE_TIMEOUT: Duration = Duration::from_secs(30);

    /// Runs do not know each other.
    pub async fn terminating_one_run_leaves_the_other_alone(harness: &dyn ProviderHarness) {
        if !harness.isolates_runs() {
            return;
        }
        let (mine, other) = (request(harness, 1, "node"), request(harness, 2, "node"));
        harness.provider().launch(&mine).await.expect("launch");
        harness.provider().launch(&other).await.expect("launch the other");
        terminate(harness, &mine.run).await;
        assert_eq!(running(harness, &other.run).await.len(), other.count.get() as usize);
        terminate(harness, &other.run).await;
    }

    /// `extend` shows in listings, where deadlines do.
    pub async fn extend_moves_the_deadline(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        harness.provider().launch(&request).await.expect("launch");
        running(harness, &request.run).await;
        let until = request.deadline.at + Duration::from_secs(300);
        harness.provider().extend(&request.run, until).await.expect("extend");
        for expires in listed(harness, &request.run).await.into_iter().filter_map(|machine| machine.expires) {
            let error = expires.duration_since(until).unwrap_or_else(|error| error.duration());
            assert!(error < Duration::from_secs(5), "{expires:?} is not {until:?}");
        }
        terminate(harness, &request.run).await;
    }

    /// Indices are places in what the launch returned, and each place is taken once.
    pub async fn machines_have_the_places_that_the_launch_said(harness: &dyn ProviderHarness) {
        let request = request(harness, 1, "node");
        let ids = harness.provider().launch(&request).await.expect("launch");
        let machines = running(harness, &request.run).await;
        let places: BTreeMap<_, _> = machines.iter().map(|machine| (machine.index, &machine.id)).collect();
        let said: BTreeMap<_, _> = (0..).zip(&ids).collect();
        assert_eq!(places, said);
        terminate(harness, &request.run).await;
    }

    /// Who cleans up an account sees the machines of all runs.
    pub async fn every_run_is_in_the_list_of_all(harness: &dyn ProviderHarness) {
        let runs = if harness.isolates_runs() { 2 } else { 1 };
        let requests: Vec<_> = (1..=runs).map(|nth| request(harness, nth, "node")).collect();
        for request in &requests {
            let ids = harness.provider().launch(request).await.expect("launch");
            running(harness, &request.run).await;
            let all = harness.provider().list(&RunFilter::All).await.expect("list");
            let of_run: BTreeSet<_> =
                all.iter().filter(|machine| machine.run == request.run).map(|machine| &machine.id).collect();
            assert_eq!(of_run, ids.iter().collect());
        }
        for request in &requests {
            terminate(harness, &request.run).await;
        }
    }

    /// A machine that the request names as one to be replaced is, and no other.
    pub async fn a_machine_that_no_longer_counts_is_replaced_in_its_place(harness: &dyn ProviderHarness) {
        if !harness.replaces_machines() {
            return;
        }
        let mut request = request(harness, 1, "node");
        let before = harness.provider().launch(&request).await.expect("launch");
        running(harness, &request.run).await;
        let place = before.len() - 1;
        request.replace = vec![before[place].clone()];
        let after = harness.provider().launch(&request).await.expect("launch a replacement");
        assert_eq!((after.len(), &after[..place]), (before.len(), &before[..place]));
        assert!(!before.contains(&after[place]), "{after:?} replaces nothing of {before:?}");
        let again = harness.provider().launch(&request).await.expect("launch again");
        assert_eq!(again, after, "one replacement is enough");
        let machines = running(harness, &request.run).await;
        let replacement = machines.iter().find(|machine| machine.id == after[place]).expect("it is listed");
        assert_eq!((replacement.index as usize, replacement.group.as_str()), (place, "node"));
        terminate(harness, &request.run).await;
    }

    /// Waits until nothing of a run is there, and says how long after `begun` that was.
    async fn gone(harness: &dyn ProviderHarness, run: &RunId, begun: Instant, latest: Duration) -> Duration {
        while !listed(harness, run).await.is_empty() {
            assert!(begun.elapsed() < latest, "there after {latest:?}");
            sleep(Duration::from_millis(200)).await;
        }
        begun.elapsed()
    }

    fn short_lived(harness: &dyn ProviderHarness) -> LaunchRequest {
        let lifetime = harness.short_lifetime();
        let deadline = Deadline { at: SystemTime::now() + lifetime, lifetime };
        LaunchRequest { deadline, ..request(harness, 1, "node") }
    }

    /// How late a deadline may be kept.
    const DEADLINE_TOLERANCE: Duration = Duration::from_secs(20);

    /// A machine ends at its deadline though nobody ends it.
    pub async fn a_machine_ends_at_its_deadline(harness: &dyn ProviderHarness) {
        if !harness.ends_machines() {
            return;
        }
        let (request, begun) = (short_lived(harness), Instant::now());
        harness.provider().launch(&request).await.expect("launch");
        assert!(!listed(harness, &request.run).await.is_empty(), "nothing was launched");
        gone(harness, &request.run, begun, request.deadline.lifetime + DEADLINE_TOLERANCE).await;
        terminate(harness, &request.run).await;
    }

    /// Not before, and not much later.
    pub async fn an_extended_machine_ends_at_its_new_deadline(harness: &dyn ProviderHarness) {
        if !harness.ends_machines() {
            return;
        }
        let (mut request, begun) = (short_lived(harness), Instant::now());
        let logged_in = log_in_to_all(harness, &mut request).await;
        if logged_in.is_none() {
            harness.provider().launch(&request).await.expect("launch");
        }
        let longer = request.deadline.lifetime;
        let until = request.deadline.at + longer;
        for (machine, session) in logged_in.iter().flat_map(|(_, sessions)| sessions) {
            harness.provider().extend_on(machine, session, until).await.expect("extend on the machine");
        }
        harness.provider().extend(&request.run, until).await.expect("extend");
        log_out(&request.run, logged_in).await;
        let lived = gone(harness, &request.run, begun, longer * 2 + DEADLINE_TOLERANCE).await;
        // A second for clocks that count whole ones.
        assert!(lived + Duration::from_secs(1) >= longer * 2, "it ended after {lived:?}");
        terminate(harness, &request.run).await;
    }

    /// An end that was too far away by mistake need not be waited for.
    pub async fn an_end_can_be_moved_nearer(harness: &dyn ProviderHarness) {
        if !harness.ends_machines() {
            return;
        }
        let mut request = request(harness, 1, "node");
        let logged_in = log_in_to_all(harness, &mut request).await;
        if logged_in.is_none() {
            harness.provider().launch(&request).await.expect("launch");
        }
        let (begun, left) = (Instant::now(), harness.short_lifetime());
        let until = SystemTime::now() + left;
        for (machine, session) in logged_in.iter().flat_map(|(_, sessions)| sessions) {
            harness.provider().extend_on(machine, session, until).await.expect("shorten on the machine");
        }
        harness.provider().extend(&request.run, until).await.expect("shorten");
        log_out(&request.run, logged_in).await;
        gone(harness, &request.run, begun, left + DEADLINE_TOLERANCE).await;
        terminate(harness, &request.run).await;
    }

    /// What the provider has launched is what it promised.
    pub async fn a_machine_as_it_was_launched_is_admitted(harness: &dyn ProviderHarness) {
        let mut request = request(harness, 1, "node");
        let Some(logged_in) = log_in_to_all(harness, &mut request).await else { return };
        for (machine, session) in &logged_in.1 {
            let admitted = harness.provider().verify(machine, session).await;
            admitted.unwrap_or_else(|error| panic!("{}: {}", machine.name(), crate::ErrorChain(&error)));
        }
        log_out(&request.run, Some(logged_in)).await;
        terminate(harness, &request.run).await;
    }

    /// A machine whose own deadline is later than its provider says is not what was promised.
    pub async fn a_machine_that_lives_longer_than_promised_is_refused(harness: &dyn ProviderHarness) {
        if !harness.checks_deadlines() {
            return;
        }
        let mut request = request(harness, 1, "node");
        let Some(logged_in) = log_in_to_all(harness, &mut request).await else { return };
        for (machine, session) in &logged_in.1 {
            let earlier = machine.expires.expect("it has a deadline") - Duration::from_secs(400);
            let machine = Machine { expires: Some(earlier), ..machine.clone() };
            let admitted = harness.provider().verify(&machine, session).await;
            assert!(admitted.is_err(), "{machine:?} lives until {earlier:?}");
        }
        log_out(&request.run, Some(logged_in)).await;
        terminate(harness, &request.run).await;
    }

    /// No notice is heard of a machine that its provider does not take back.
    pub async fn a_machine_that_stays_hears_no_notice(harness: &dyn ProviderHarness) {
        let mut request = request(harness, 1, "node");
        let Some(logged_in) = log_in_to_all(harness, &mut request).await else { return };
        for (machine, session) in &logged_in.1 {
            let listening = harness.provider().interruption_notice(machine, session);
            let heard = tokio::time::timeout(Duration::from_secs(2), listening).await;
            assert!(heard.is_err(), "{} heard {heard:?}", machine.name());
        }
        log_out(&request.run, Some(logged_in)).await;
        terminate(harness, &request.run).await;
    }

    /// Also where that begins only when somebody listens already, and with words that say so.
    pub async fn a_machine_that_is_taken_back_hears_of_it(harness: &dyn ProviderHarness) {
        let mut request = request(harness, 1, "node");
        let Some(logged_in) = log_in_to_all(harness, &mut request).await else { return };
        let (machine, session) = &logged_in.1[0];
        let listening = harness.provider().interruption_notice(machine, session);
        let taken_back = async {
            sleep(Duration::from_secs(1)).await;
            harness.take_back(machine).then_some(()).ok_or(())
        };
        let within = tokio::time::timeout(Duration::from_secs(60), listening);
        // Where nobody can take it back, there is nothing to wait for.
        if let Ok(((), heard)) = tokio::try_join!(taken_back, async { Ok(within.await) }) {
            assert!(heard.is_ok_and(|heard| !heard.is_empty()), "{} heard nothing", machine.name());
        }
        log_out(&request.run, Some(logged_in)).await;
        terminate(harness, &request.run).await;
    }

    /// Machines with sessions to them.
    type LoggedIn<'a> = (&'a dyn Connector, Vec<(Machine, Arc<dyn Session>)>);

    /// Launches machines and logs in to each, if the harness has a connector.
    async fn log_in_to_all<'a>(
        harness: &'a dyn ProviderHarness,
        request: &mut LaunchRequest,
    ) -> Option<LoggedIn<'a>> {
        let (connector, machines) = launch_for(harness, request).await?;
        let mut sessions = Vec::new();
        for machine in machines {
            let connected = connector.connect(&machine, Instant::now() + Duration::from_secs(20)).await;
            let session =
                connected.unwrap_or_else(|error| panic!("{}: {}", machine.name(), crate::ErrorChain(&error)));
            sessions.push((machine, Arc::from(session)));
        }
        Some((connector, sessions))
    }

    async fn log_out(run: &RunId, logged_in: Option<LoggedIn<'_>>) {
        let Some((connector, sessions)) = logged_in else { return };
        for (machine, session) in sessions {
            session.close().await.unwrap_or_else(|error| panic!("{}: {error}", machine.name()));
        }
        connector.finish(run).await;
    }

    /// Launches machines for the key that the harness's connector prepares.
    async fn launch_for<'a>(
        harness: &'a dyn ProviderHarness,
        request: &mut LaunchRequest,
    ) -> Option<(&'a dyn Connector, Vec<Machine>)> {
        let (connector, directory) = harness.connector(&request.run)?;
        request.authorized_key = connector.prepare(&request.run, &directory).await.expect("prepare");
        harness.provider().launch(request).await.expect("launch");
        Some((connector, running(harness, &request.run).await))
    }

    /// As the engine does: nothing runs on a machine that its provider has not admitted.
    async fn log_in(
        harness: &dyn ProviderHarness,
        connector: &dyn Connector,
        machine: &Machine,
    ) -> Result<(), SessionError> {
        let session = connector.connect(machine, Instant::now() + Duration::from_secs(20)).await?;
        let session: Arc<dyn Session> = session.into();
        harness.provider().verify(machine, &session).await.expect("verify");
        let exit = session.exec(&Command::shell("true"), Arc::new(()), &CancellationToken::new()).await?;
        assert!(exit.success());
        session.close().await
    }

    /// Whoever has the run's key can log in to each machine.
    pub async fn the_authorized_key_gets_in(harness: &dyn ProviderHarness) {
        let mut request = request(harness, 1, "node");
        let Some((connector, machines)) = launch_for(harness, &mut request).await else { return };
        for machine in &machines {
            let entered = log_in(harness, connector, machine).await;
            entered.unwrap_or_else(|error| panic!("{}: {}", machine.name(), crate::ErrorChain(&error)));
        }
        connector.finish(&request.run).await;
        terminate(harness, &request.run).await;
    }

    /// A machine comes with the host key that it shows, so that no other machine is taken for it.
    pub async fn every_machine_has_a_host_key(harness: &dyn ProviderHarness) {
        if !harness.makes_host_keys() {
            return;
        }
        let mut request = request(harness, 1, "node");
        let other_key = request.authorized_key.clone();
        let with_connector = launch_for(harness, &mut request).await;
        if with_connector.is_none() {
            harness.provider().launch(&request).await.expect("launch");
        }
        let machines = running(harness, &request.run).await;
        for machine in &machines {
            let key = machine.login.host_key.as_deref().unwrap_or_default();
            assert!(key.split(' ').nth(1).is_some_and(|key| key.len() > 40), "{machine:?}");
        }
        if let Some((connector, _)) = with_connector {
            let mut machine = machines[0].clone();
            machine.login.host_key = Some(other_key);
            let entered = log_in(harness, connector, &machine).await.map_err(|error| error.kind);
            assert_eq!(entered, Err(SessionErrorKind::HostKey), "it showed another key than its own");
            connector.finish(&request.run).await;
        }
        terminate(harness, &request.run).await;
    }

    /// A provider says so when it is given what it does not understand.
    pub async fn a_spec_of_another_provider_is_refused(harness: &dyn ProviderHarness) {
        #[derive(Debug)]
        struct Foreign;
        if harness.spec(harness.count()).is_default() && harness.provider().name() == "fake" {
            return; // The fake takes everything.
        }
        let quote: Result<_, ProviderError> =
            harness.provider().quote(&MachineSpec::new(Foreign), harness.count()).await;
        assert!(quote.is_err(), "{quote:?}");
    }
}

/// Keeps all output.
#[derive(Debug, Default)]
struct Collect(Mutex<(Vec<u8>, Vec<u8>)>);

impl Collect {
    fn stdout(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner).1).into_owned()
    }
}

impl OutputSink for Collect {
    fn write(&self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stream {
            Stream::Stdout => kept.0.extend_from_slice(bytes),
            Stream::Stderr => kept.1.extend_from_slice(bytes),
        }
        Ok(())
    }
}

async fn exec(session: &dyn Session, command: Command) -> (Exit, Vec<u8>, String) {
    let output = Arc::new(Collect::default());
    let exit = session.exec(&command, output.clone(), &CancellationToken::new()).await;
    let exit = exit.unwrap_or_else(|error| panic!("{command}: {}", crate::ErrorChain(&error)));
    (exit, output.stdout(), output.stderr())
}

/// Follows a list of commands.
#[derive(Default)]
struct Followed {
    /// The places of those that began, with what they wrote.
    begun: Mutex<Vec<(usize, Arc<Collect>)>>,
    ended: Mutex<Vec<(usize, Exit)>>,
}

impl Followed {
    fn ended(&self) -> Vec<(usize, Exit)> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begun(&self) -> usize {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// What the commands wrote, each.
    fn stdouts(&self) -> Vec<String> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.iter().map(|(_, output)| String::from_utf8_lossy(&output.stdout()).into_owned()).collect()
    }
}

impl SequenceObserver for Followed {
    fn begins(&self, index: usize) -> Arc<dyn OutputSink> {
        let (output, ended) = (Arc::new(Collect::default()), self.ended());
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!((index, index), (begun.len(), ended.len()), "it is another one's turn");
        assert!(ended.iter().all(|(_, exit)| exit.success()), "{index} begins after a failure");
        begun.push((index, output.clone()));
        output
    }

    fn ended(&self, index: usize, exit: Exit) {
        assert_eq!(index + 1, self.begun(), "another one has begun");
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push((index, exit));
    }
}

/// Runs a list of commands to its end.
async fn exec_all(session: &dyn Session, commands: &[Command]) -> Arc<Followed> {
    let followed = Arc::new(Followed::default());
    let done = session.exec_all(commands, followed.clone(), &CancellationToken::new()).await;
    done.unwrap_or_else(|error| panic!("{commands:?}: {}", crate::ErrorChain(&error)));
    followed
}

async fn text(session: &dyn Session, command: Command) -> String {
    let (exit, stdout, stderr) = exec(session, command).await;
    assert!(exit.success(), "{exit}: {stderr}");
    String::from_utf8_lossy(&stdout).into_owned()
}

fn download(patterns: &[&str], into: &std::path::Path) -> Download {
    let patterns = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
    Download { patterns, cwd: None, into: into.to_owned() }
}

/// Waits until a shell line succeeds on the other side.
async fn eventually(session: &dyn Session, line: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (exit, _, _) = exec(session, Command::shell(line)).await;
        if exit.success() {
            return;
        }
        assert!(Instant::now() < deadline, "never true: {line}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// What every session must keep. The harness is anything that dereferences to a session.
pub mod session {
    use super::*;

    /// Output comes back, and the status with it.
    pub async fn output_and_status_come_back(session: &impl AsRef<dyn Session>) {
        let (exit, stdout, _) = exec(session.as_ref(), Command::shell("echo hello world")).await;
        assert_eq!((exit, stdout.as_slice()), (Exit::Status(0), b"hello world\n".as_slice()));
        for status in [1, 3, 125, 126, 127, 255] {
            let (exit, _, _) = exec(session.as_ref(), Command::shell(format!("exit {status}"))).await;
            assert_eq!(exit, Exit::Status(status));
        }
    }

    /// A command that a signal ended is not one that returned 128 and more.
    pub async fn a_status_is_not_a_signal(session: &impl AsRef<dyn Session>) {
        let (exit, _, _) = exec(session.as_ref(), Command::shell("exit 137")).await;
        assert_eq!(exit, Exit::Status(137));
        let (exit, _, _) = exec(session.as_ref(), Command::shell("kill -9 $$")).await;
        assert_eq!(exit, Exit::Signal(9));
    }

    /// Standard input arrives, and ends.
    pub async fn a_command_reads_its_stdin(session: &impl AsRef<dyn Session>) {
        let stdin = Stdin::Bytes(b"from here\n".as_slice().into());
        assert_eq!(text(session.as_ref(), Command::shell("cat").stdin(stdin)).await, "from here\n");
        assert_eq!(text(session.as_ref(), Command::shell("cat")).await, "");
    }

    /// What is written to a command arrives while it runs, and ends when the writer does.
    pub async fn a_command_reads_what_is_written_while_it_runs(session: &impl AsRef<dyn Session>) {
        let (session, output) = (session.as_ref(), Arc::new(Collect::default()));
        let stdin = Stdin::piped();
        let Stdin::Piped(piped) = &stdin else { panic!("{stdin:?}") };
        let mut writer = piped.writer().expect("nobody has it yet");
        let (command, cancel) = (Command::shell("cat").stdin(stdin.clone()), CancellationToken::new());
        let arrives = async |text: &str| {
            while output.stdout() != text.as_bytes() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let writing = async {
            writer.write_all(b"one\n").await.expect("write");
            arrives("one\n").await;
            writer.write_all(b"two").await.expect("write");
            arrives("one\ntwo").await;
            // It is more than is held on the way.
            writer.write_all(&[b'x'; 3 << 20]).await.expect("write");
            drop(writer);
        };
        let running = session.exec(&command, output.clone(), &cancel);
        let done = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(running, writing).0 });
        let exit = done.await.expect("it arrives, and ends").expect("a command");
        assert_eq!((exit, output.stdout().len()), (Exit::Status(0), 7 + (3 << 20)));
        // It was for one command, once.
        let again = session.exec(&command, output, &cancel).await.map_err(|error| error.kind);
        assert_eq!(again, Err(SessionErrorKind::Local));
    }

    /// Who writes to a command hears that it is gone, and holds up nobody by writing nothing.
    pub async fn what_nobody_reads_any_more_cannot_be_written(session: &impl AsRef<dyn Session>) {
        let stdin = Stdin::piped();
        let Stdin::Piped(piped) = &stdin else { panic!("{stdin:?}") };
        let mut writer = piped.writer().expect("nobody has it yet");
        let (command, cancel) = (Command::shell("cat").stdin(stdin.clone()), CancellationToken::new());
        let token = cancel.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(500)).await;
            token.cancel();
        });
        let ended = session.as_ref().exec(&command, Arc::new(()), &cancel);
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it ends");
        assert_eq!(ended.map_err(|error| error.kind), Err(SessionErrorKind::Cancelled));
        writer.write_all(b"too late").await.expect_err("nobody reads it");
    }

    /// What a local file holds arrives, and ends.
    pub async fn a_command_reads_a_local_file(session: &impl AsRef<dyn Session>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("input");
        fs::write(&path, "from a file\n").expect("write");
        let command = Command::shell("cat").stdin(Stdin::File(path));
        assert_eq!(text(session.as_ref(), command).await, "from a file\n");
    }

    /// What a provider asks a machine comes back, and what went wrong does.
    pub async fn a_script_answers_or_says_why_not(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        assert_eq!(session.administer("echo hello world", &[]).await.expect("a script"), "hello world\n");
        let failed = session.administer("exit 3", &[]).await.map_err(|error| error.kind);
        assert_eq!(failed, Err(SessionErrorKind::Remote));
        assert_eq!(session.administer("echo again", &[]).await.expect("a script"), "again\n");
    }

    /// Cancelling ends a command long before its time.
    pub async fn a_cancelled_command_ends_and_says_so(session: &impl AsRef<dyn Session>) {
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(500)).await;
            token.cancel();
        });
        let begun = Instant::now();
        let ended = session.as_ref().exec(&Command::shell("sleep 600"), Arc::new(()), &cancel).await;
        assert_eq!(ended.map_err(|error: SessionError| error.kind), Err(SessionErrorKind::Cancelled));
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    /// The session is as good as before.
    pub async fn a_dropped_command_does_not_break_the_session(session: &impl AsRef<dyn Session>) {
        let (command, cancel) = (Command::shell("sleep 600"), CancellationToken::new());
        let running = session.as_ref().exec(&command, Arc::new(()), &cancel);
        assert!(tokio::time::timeout(Duration::from_millis(500), running).await.is_err());
        assert_eq!(text(session.as_ref(), Command::shell("echo still here")).await, "still here\n");
    }

    /// sshd allows ten channels a connection; a session has no such limit.
    pub async fn more_commands_than_channels_all_run(session: &impl AsRef<dyn Session>) {
        let commands = (0..25).map(|_| exec(session.as_ref(), Command::shell("sleep 1")));
        for (exit, _, _) in futures_util::future::join_all(commands).await {
            assert!(exit.success());
        }
    }

    /// A full disk under the log is an error, not a loss.
    pub async fn a_sink_that_fails_ends_the_command(session: &impl AsRef<dyn Session>) {
        struct Full;
        impl OutputSink for Full {
            fn write(&self, _: Stream, _: &[u8]) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let (command, cancel) = (Command::shell("echo lost"), CancellationToken::new());
        let ended = session.as_ref().exec(&command, Arc::new(Full), &cancel).await;
        assert_eq!(ended.map_err(|error| error.kind), Err(SessionErrorKind::Local));
    }

    /// Where a session has no connections to ports, it says so.
    pub async fn a_port_that_nobody_listens_on_is_refused_and_the_session_goes_on(
        session: &impl AsRef<dyn Session>,
    ) {
        let session = session.as_ref();
        let kind = if session.dials() { SessionErrorKind::Remote } else { SessionErrorKind::Local };
        for _ in 0..2 {
            let refused = session.dial("localhost", 1).await.map_err(|error| error.kind);
            assert_eq!(refused.map(drop), Err(kind));
        }
        session.check().await.expect("it goes on");
        assert_eq!(text(session, Command::shell("echo on")).await, "on\n");
    }

    /// Nothing is handed to a sink that takes nothing yet.
    pub async fn a_sink_that_is_not_ready_is_waited_for(session: &impl AsRef<dyn Session>) {
        /// It is ready once the token fires.
        struct Later(CancellationToken, Collect);
        impl OutputSink for Later {
            fn write(&self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
                assert!(self.0.is_cancelled(), "it was not ready");
                self.1.write(stream, bytes)
            }

            fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
                let (ready, waker) = (self.0.clone(), cx.waker().clone());
                if ready.is_cancelled() {
                    return Poll::Ready(());
                }
                tokio::spawn(async move {
                    ready.cancelled().await;
                    waker.wake();
                });
                Poll::Pending
            }
        }
        let ready = CancellationToken::new();
        let sink = Arc::new(Later(ready.clone(), Collect::default()));
        tokio::spawn(async move {
            sleep(Duration::from_secs(1)).await;
            ready.cancel();
        });
        let (command, cancel) = (Command::shell("echo waited"), CancellationToken::new());
        let exit = session.as_ref().exec(&command, sink.clone(), &cancel).await;
        assert_eq!(exit.map_err(|error| error.kind), Ok(Exit::Status(0)));
        assert_eq!(sink.1.stdout(), b"waited\n");
    }

    /// What was uploaded can be read there and downloaded again.
    pub async fn files_go_out_and_come_home(session: &impl AsRef<dyn Session>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let (here, home) = (directory.path().join("here.txt"), directory.path().join("home"));
        fs::write(&here, "content\n").expect("write");
        session.as_ref().upload(&here, "there.txt").await.expect("upload");
        assert_eq!(text(session.as_ref(), Command::shell("cat there.txt")).await, "content\n");
        let matches = session.as_ref().download(&download(&["there.*"], &home)).await.expect("download");
        assert_eq!(matches, [1]);
        assert_eq!(fs::read(home.join("there.txt")).expect("read"), b"content\n");
    }

    /// What a machine keeps it gives to who has the offer, where its session can do that. Elsewhere it is uploaded.
    pub async fn what_is_kept_can_be_taken_until_it_is_withdrawn(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        let directory = tempfile::tempdir().expect("temporary directory");
        let here = directory.path().join("here.txt");
        fs::write(&here, "content\n").expect("write");
        let [kept, taken] = ["kept", "taken"].map(|name| SharedContent::new(name, 8));
        session.upload_kept(&here, "one/it.txt", &kept).await.expect("upload");
        assert_eq!(text(session, Command::shell("cat one/it.txt")).await, "content\n");
        if session.spreads() {
            let offer = session.offer(&kept).await.expect("offer");
            session.take(&offer, &here, "two/it.txt", &taken).await.expect("take");
            assert_eq!(text(session, Command::shell("cat two/it.txt")).await, "content\n");
            for _ in 0..2 {
                session.withdraw(&kept).await.expect("withdraw");
            }
            session.take(&offer, &here, "two/it.txt", &taken).await.expect_err("it was withdrawn");
            session.withdraw(&taken).await.expect("withdraw");
        }
        session.offer(&kept).await.expect_err("it is not there any more");
        assert_eq!(text(session, Command::shell("cat one/it.txt")).await, "content\n");
    }

    /// No command begins after one that did not succeed.
    pub async fn a_list_runs_in_order_and_stops_at_the_first_failure(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        let success = Exit::Status(0);
        for (line, exit) in [("exit 3", Exit::Status(3)), ("exit 137", Exit::Status(137))]
            .into_iter()
            .chain([("exit 255", Exit::Status(255)), ("kill -9 $$", Exit::Signal(9))])
        {
            let lines = ["echo one", "echo two", line, "echo unreached"];
            let followed = exec_all(session, &lines.map(Command::shell)).await;
            assert_eq!(followed.ended(), [(0, success), (1, success), (2, exit)], "{line}");
        }
        assert_eq!(exec_all(session, &[]).await.ended(), []);
        let many = vec![Command::shell("echo again"); 30];
        let followed = exec_all(session, &many).await;
        assert_eq!(followed.stdouts(), vec!["again\n"; 30]);
        assert!(followed.ended().len() == 30);
    }

    /// Their ends are told as they happen, and not when the list is over.
    pub async fn each_command_of_a_list_is_told_of_as_it_begins_and_ends(session: &impl AsRef<dyn Session>) {
        let (followed, cancel) = (Arc::new(Followed::default()), CancellationToken::new());
        let commands = ["echo one", "sleep 600"].map(Command::shell);
        let running = session.as_ref().exec_all(&commands, followed.clone(), &cancel);
        let told = async {
            while (followed.begun(), followed.ended().len()) != (2, 1) {
                sleep(Duration::from_millis(20)).await;
            }
            cancel.cancel();
        };
        let both = async { tokio::join!(running, told).0 };
        let ended = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it is told of");
        assert_eq!(ended.map_err(|error| error.kind), Err(SessionErrorKind::Cancelled));
    }

    /// Nothing that one wrote is another's.
    pub async fn each_command_of_a_list_has_its_own_output_and_status(session: &impl AsRef<dyn Session>) {
        let stdin = Stdin::Bytes(b"from here\n".as_slice().into());
        let commands = [
            Command::shell("echo one"),
            Command::shell("exit 0"),
            Command::shell("cat").stdin(stdin),
            Command::shell("cat"),
            Command::shell("echo two"),
            Command::shell("exit 7"),
        ];
        let followed = exec_all(session.as_ref(), &commands).await;
        assert_eq!(followed.stdouts(), ["one\n", "", "from here\n", "", "two\n", ""]);
        let exits = [0, 0, 0, 0, 0, 7].map(Exit::Status);
        assert_eq!(followed.ended(), exits.into_iter().enumerate().collect::<Vec<_>>());
    }

    /// The rest of the list has no turn.
    pub async fn cancelling_a_list_ends_the_running_one_and_begins_no_other(
        session: &impl AsRef<dyn Session>,
    ) {
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(2)).await;
            token.cancel();
        });
        let (begun, followed) = (Instant::now(), Arc::new(Followed::default()));
        let commands = ["echo one", "sleep 600", "echo unreached"].map(Command::shell);
        let ended = session.as_ref().exec_all(&commands, followed.clone(), &cancel).await;
        assert_eq!(ended.map_err(|error| error.kind), Err(SessionErrorKind::Cancelled));
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert_eq!((followed.begun(), followed.ended()), (2, vec![(0, Exit::Status(0))]));
    }

    async fn send(session: &dyn Session, to: &str, content: &str) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let here = directory.path().join("here.txt");
        fs::write(&here, content).expect("write");
        session.upload(&here, to).await.unwrap_or_else(|error| panic!("{to}: {}", crate::ErrorChain(&error)));
    }

    async fn cat(session: &dyn Session, path: &str) -> String {
        text(session, Command::program("cat").arg(path)).await
    }

    /// A file under its new name or, in a directory, its own; a directory's contents in their new place.
    pub async fn an_upload_arrives_where_it_was_sent(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        send(session, "into/named.txt", "named\n").await;
        assert_eq!(cat(session, "into/named.txt").await, "named\n");
        send(session, "into/", "slash\n").await;
        assert_eq!(cat(session, "into/here.txt").await, "slash\n");
        send(session, "new/deep/", "deep\n").await;
        assert_eq!(cat(session, "new/deep/here.txt").await, "deep\n");
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(directory.path().join("sub")).expect("mkdir");
        fs::write(directory.path().join("sub/leaf.txt"), "leaf\n").expect("write");
        for to in ["tree", "slashed/"] {
            session.upload(directory.path(), to).await.expect("upload of a directory");
            assert_eq!(cat(session, &format!("{}/sub/leaf.txt", to.trim_end_matches('/'))).await, "leaf\n");
        }
    }

    /// Of a directory, in whatever depth; and what is in a directory that is left out.
    pub async fn an_upload_leaves_out_what_it_is_told(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        let directory = tempfile::tempdir().expect("temporary directory");
        for (path, text) in
            [("a.o", "a"), ("keep/b.o", "b"), ("keep/leaf.txt", "leaf\n"), ("target/x/deep", "d")]
        {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        let exclude = Exclude::new(["*.o", "/target/"]).expect("patterns");
        let uploaded = session.upload_without(directory.path(), "part", &exclude).await;
        // Whoever can't says so, and uploads nothing.
        if uploaded.as_ref().is_err_and(|error| error.kind == SessionErrorKind::Local) {
            let none = session.download(&download(&["part/*"], directory.path())).await;
            assert_eq!(none.expect("download"), [0]);
            return;
        }
        uploaded.expect("upload of a directory");
        assert_eq!(cat(session, "part/keep/leaf.txt").await, "leaf\n");
        let home = tempfile::tempdir().expect("temporary directory");
        let all = ["part/*.o", "part/keep/*", "part/target/*", "part/target/x/*"];
        session.download(&download(&all, home.path())).await.expect("download");
        assert_eq!(names_below(home.path()), ["part/keep/leaf.txt"]);
    }

    fn names_below(directory: &Path) -> Vec<String> {
        let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
        let mut names = Vec::new();
        for entry in entries {
            let path = entry.expect("read").path();
            let name = path.strip_prefix(directory).expect("below").display().to_string();
            match path.is_dir() {
                true => names.extend(names_below(&path).iter().map(|below| format!("{name}/{below}"))),
                false => names.push(name),
            }
        }
        names.sort();
        names
    }

    /// Patterns and names are relative to it.
    pub async fn a_download_starts_in_its_directory(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        send(session, "place/one.csv", "1\n").await;
        send(session, "place/below/two.csv", "2\n").await;
        send(session, "three.csv", "3\n").await;
        let home = tempfile::tempdir().expect("temporary directory");
        let cwd = Some("place".to_owned());
        let download = Download { cwd, ..download(&["*.csv", "below/*.csv"], home.path()) };
        assert_eq!(session.download(&download).await.expect("download"), [1, 1]);
        assert_eq!(names_below(home.path()), ["below/two.csv", "one.csv"]);
    }

    /// The rest of it is as it was there.
    pub async fn an_absolute_name_arrives_without_its_slash(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        send(session, "whole/one.csv", "1\n").await;
        let there = text(session, Command::shell("pwd")).await;
        let pattern = format!("{}/whole/*.csv", there.trim_end());
        let home = tempfile::tempdir().expect("temporary directory");
        assert_eq!(session.download(&download(&[&pattern], home.path())).await.expect("download"), [1]);
        let name = pattern.trim_start_matches('/').replace('*', "one");
        assert_eq!(names_below(home.path()), [name]);
    }

    /// Nothing arrives outside of the place for it: what climbs arrives below, or the error names it. All else does.
    pub async fn a_name_that_climbs_arrives_nowhere_else(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        send(session, "above.csv", "1\n").await;
        send(session, "place/good.csv", "2\n").await;
        let outside = tempfile::tempdir().expect("temporary directory");
        let home = outside.path().join("a/b");
        let cwd = Some("place".to_owned());
        let download = Download { cwd, ..download(&["../above.csv", "good.csv"], &home) };
        let arrived = match session.download(&download).await {
            Ok(matches) => {
                assert_eq!(matches, [1, 1]);
                vec!["a/b/above.csv", "a/b/good.csv"]
            }
            Err(error) => {
                assert!(crate::ErrorChain(&error).to_string().contains("above.csv"), "{error}");
                vec!["a/b/good.csv"]
            }
        };
        assert_eq!(names_below(outside.path()), arrived);
    }

    /// One that was closed does not.
    pub async fn a_session_knows_whether_it_works(session: &impl AsRef<dyn Session>) {
        session.as_ref().check().await.expect("it works");
        session.as_ref().close().await.expect("close");
        assert!(session.as_ref().check().await.is_err(), "it is closed");
    }

    /// Whether that is an error is not the session's to decide.
    pub async fn a_pattern_that_matches_nothing_counts_nothing(session: &impl AsRef<dyn Session>) {
        let home = tempfile::tempdir().expect("temporary directory");
        let none = download(&["no-such-*", "neither.txt"], home.path());
        assert_eq!(session.as_ref().download(&none).await.expect("download"), [0, 0]);
    }

    /// `close` is idempotent.
    pub async fn closing_twice_is_fine(session: &impl AsRef<dyn Session>) {
        session.as_ref().close().await.expect("close");
        session.as_ref().close().await.expect("close again");
    }
}

/// What only a session to a real shell can keep.
pub mod shell {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    /// No shell sees a program's arguments.
    pub async fn arguments_pass_through_byte_for_byte(session: &impl AsRef<dyn Session>) {
        let every_byte: Vec<u8> = (1..=255).collect();
        let awkward: [&[u8]; 9] = [
            b"",
            b" ",
            b"a b",
            b"'",
            b"\"",
            b"\\",
            b"$HOME `id` $(id) !! ~ *",
            b"line\nbreak\n",
            &every_byte,
        ];
        for argument in awkward {
            let command = Command::program("printf").arg("%s").arg(OsString::from_vec(argument.to_vec()));
            let (exit, stdout, _) = exec(session.as_ref(), command).await;
            assert!(exit.success());
            assert_eq!(stdout, argument);
        }
    }

    /// A shell line gets values as `$1`, not by pasting.
    pub async fn positional_parameters_reach_a_shell_line(session: &impl AsRef<dyn Session>) {
        let command = Command::shell("printf '<%s>' \"$@\"").arg("a b").arg("$(id)");
        assert_eq!(text(session.as_ref(), command).await, "<a b><$(id)>");
    }

    /// Variables and directory reach the command, whatever characters they hold.
    pub async fn environment_and_directory_are_set(session: &impl AsRef<dyn Session>) {
        text(session.as_ref(), Command::shell("mkdir -p 'some dir'")).await;
        let command = Command::shell("basename \"$PWD\"; printf '%s' \"$VALUE\"");
        let command = command.cwd("some dir").env("VALUE", "it's\n$odd\\");
        assert_eq!(text(session.as_ref(), command).await, "some dir\nit's\n$odd\\");
    }

    /// A command without its directory is not started, and the directory is named.
    pub async fn a_missing_directory_is_named(session: &impl AsRef<dyn Session>) {
        let (command, cancel) = (Command::shell("true").cwd("no/such/dir"), CancellationToken::new());
        let error =
            session.as_ref().exec(&command, Arc::new(()), &cancel).await.expect_err("it has no directory");
        assert_eq!(error.kind, SessionErrorKind::Remote);
        assert!(crate::ErrorChain(&error).to_string().contains("no/such/dir"), "{error}");
    }

    /// `bash -eo pipefail`.
    pub async fn a_failing_part_of_a_pipe_fails_the_command(session: &impl AsRef<dyn Session>) {
        let (exit, _, _) = exec(session.as_ref(), Command::shell("false | cat")).await;
        assert_eq!(exit, Exit::Status(1));
        let (exit, stdout, _) = exec(session.as_ref(), Command::shell("false; echo unreached")).await;
        assert_eq!((exit, stdout.as_slice()), (Exit::Status(1), b"".as_slice()));
    }

    /// A server on the machine gets all that is sent, and its end, and answers after that. It is left out where there is
    /// nothing to make a server of.
    pub async fn a_connection_to_a_port_carries_all_both_ways_until_each_side_ends_it(
        session: &impl AsRef<dyn Session>,
    ) {
        let session = session.as_ref();
        let server = "command -v python3 >/dev/null || { echo 0; exit; }\nexec python3 -uc 'import socket\n\
                      listening = socket.create_server((\"127.0.0.1\", 0))\n\
                      print(listening.getsockname()[1])\n\
                      taken, _ = listening.accept()\n\
                      came = b\"\".join(iter(lambda: taken.recv(65536), b\"\"))\n\
                      taken.sendall(came[::-1])'";
        let (output, cancel) = (Arc::new(Collect::default()), CancellationToken::new());
        let serving = async { session.exec(&Command::shell(server), output.clone(), &cancel).await };
        let asking = async {
            let said = || String::from_utf8_lossy(&output.stdout()).into_owned();
            while !said().ends_with('\n') {
                sleep(Duration::from_millis(10)).await;
            }
            let port = said().trim().parse().expect("a port");
            if port == 0 || !session.dials() {
                return cancel.cancel();
            }
            let connection = session.dial("127.0.0.1", port).await.expect("it listens");
            let (mut from, mut to) = tokio::io::split(connection);
            let sent: Vec<u8> = (0..3_000_000_u32).map(|place| (place % 251) as u8).collect();
            to.write_all(&sent).await.expect("it takes it");
            to.shutdown().await.expect("it takes the end");
            let mut came = Vec::new();
            from.read_to_end(&mut came).await.expect("it answers");
            came.reverse();
            assert!(came == sent, "{} of {} bytes came back", came.len(), sent.len());
        };
        let both = async { tokio::join!(serving, asking).0 };
        let ended = tokio::time::timeout(Duration::from_secs(60), both).await.expect("both sides end it");
        assert!(
            matches!(ended, Ok(Exit::Status(0))) || cancel.is_cancelled(),
            "{ended:?}: {}",
            output.stderr()
        );
    }

    /// Every status is itself, and so is every signal.
    pub async fn statuses_and_signals_are_told_apart(session: &impl AsRef<dyn Session>) {
        for status in [0, 1, 127, 129, 137, 143, 145, 254, 255] {
            let (exit, _, _) = exec(session.as_ref(), Command::shell(format!("exit {status}"))).await;
            assert_eq!(exit, Exit::Status(status));
        }
        for signal in [1, 2, 9, 11, 13, 15] {
            let (exit, _, _) = exec(session.as_ref(), Command::shell(format!("kill -{signal} $$"))).await;
            assert_eq!(exit, Exit::Signal(signal));
        }
    }

    /// A script of several lines, whatever the login shell is and whatever it is given.
    pub async fn a_script_runs_at_home_with_its_arguments_and_within_bounds(
        session: &impl AsRef<dyn Session>,
    ) {
        let session = session.as_ref();
        let odd = "it's\n\"odd\" $HOME !! `x` \\".to_owned();
        let script = "# for people\nif true; then\n    printf '%s|%s' \"$1\" \"$2\"\nfi\necho noise >&2";
        let said = session.administer(script, &[odd.clone(), String::new()]).await.expect("a script");
        assert_eq!(said, format!("{odd}|"));
        let said = session
            .administer("cd \"$HOME\" && home=$PWD && cd - >/dev/null && [ \"$PWD\" = \"$home\" ]", &[]);
        assert_eq!(said.await.expect("it is at home"), "");
        let error = session.administer("echo why >&2; exit 3", &[]).await.expect_err("it fails");
        assert!(error.message.contains("why"), "{error}");
        let flood = "head -c 1000000 /dev/zero | tr '\\0' x";
        assert!(session.administer(flood, &[]).await.is_err(), "it says too much");
        assert_eq!(session.administer("echo still here", &[]).await.expect("a script"), "still here\n");
    }

    /// Bytes are bytes.
    pub async fn binary_output_arrives_unchanged(session: &impl AsRef<dyn Session>) {
        let octal: String = (0..=255).map(|byte| format!("\\{byte:03o}")).collect();
        let command = Command::shell(format!("printf '{octal}'; printf '{octal}' >&2"));
        let output = Arc::new(Collect::default());
        session.as_ref().exec(&command, output.clone(), &CancellationToken::new()).await.expect("exec");
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(output.stdout(), all);
        assert_eq!(output.0.lock().expect("not poisoned").1, all);
    }

    /// A line of ten megabytes, and as much on the other stream.
    pub async fn a_flood_of_output_arrives_whole(session: &impl AsRef<dyn Session>) {
        let line = "head -c 10000000 /dev/zero | tr '\\0' x; head -c 10000000 /dev/zero | tr '\\0' y >&2";
        let (exit, stdout, stderr) = exec(session.as_ref(), Command::shell(line)).await;
        assert!(exit.success());
        assert_eq!(stdout.iter().filter(|&&byte| byte == b'x').count(), 10_000_000);
        assert_eq!(stderr.bytes().filter(|&byte| byte == b'y').count(), 10_000_000);
    }

    /// Nobody has to wait for a command's end to see what it says.
    pub async fn output_arrives_while_the_command_runs(session: &impl AsRef<dyn Session>) {
        let output = Arc::new(Collect::default());
        let (command, cancel) = (Command::shell("echo first; sleep 600"), CancellationToken::new());
        let running = session.as_ref().exec(&command, output.clone(), &cancel);
        let seen = async {
            while output.stdout() != b"first\n" {
                sleep(Duration::from_millis(20)).await;
            }
            cancel.cancel();
        };
        let (ended, ()) =
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(running, seen) })
                .await
                .expect("the output arrives");
        assert!(ended.is_err());
    }

    /// Variables, directory, mask, traps and what it reads are a command's own.
    pub async fn each_command_of_a_list_has_its_own_environment_and_input(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        text(session, Command::shell("mkdir -p 'one dir'; rm -f reached")).await;
        let show = Command::shell("printf '%s|' \"$ODD\" \"${PWD##*/}\" \"$(umask)\" \"$*\"; trap; cat");
        let odd = show.clone().env("ODD", "it's\n$odd\\").cwd("one dir").arg("a b");
        let changing = Command::shell("umask 0; cd /; export ODD=1; trap '' HUP TERM; exec >&- 2>&-; exit 0");
        let commands = [show.clone(), odd.clone(), changing, show.clone(), odd.clone()];
        let stdouts = exec_all(session, &commands).await.stdouts();
        let expected = [text(session, show).await, text(session, odd).await];
        assert_eq!(stdouts[..2], expected);
        assert_eq!(stdouts[3..], expected);
    }

    /// Neither in the command's group nor outside of it.
    pub async fn what_one_of_a_list_leaves_running_does_not_speak_in_the_next(
        session: &impl AsRef<dyn Session>,
    ) {
        for start in
            ["(sleep 1.2; echo late; echo late >&2) &", "setsid sh -c 'sleep 1.2; echo late' & sleep 0.1"]
        {
            let begun = Instant::now();
            let lines = ["echo one", start, "echo two; sleep 2", "echo three"];
            let followed = exec_all(session.as_ref(), &lines.map(Command::shell)).await;
            assert_eq!(followed.stdouts(), ["one\n", "", "two\n", "three\n"], "{start}");
            assert_eq!(followed.ended().len(), 4);
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
    }

    /// Megabytes on both outputs, without a final line break, and not a byte in the next command's.
    pub async fn a_list_of_floods_arrives_whole(session: &impl AsRef<dyn Session>) {
        let flood = |out: char, err: char| {
            let line = format!(
                "head -c 3000000 /dev/zero | tr '\\0' {out}; head -c 3000000 /dev/zero | tr '\\0' {err} >&2"
            );
            Command::shell(line)
        };
        let commands = [flood('a', 'b'), Command::shell("printf '\\036\\000'"), flood('c', 'd')];
        let followed = exec_all(session.as_ref(), &commands).await;
        let begun = followed.begun.lock().expect("not poisoned");
        for (index, out, err) in [(0, b'a', b'b'), (2, b'c', b'd')] {
            let (stdout, stderr) = (begun[index].1.stdout(), begun[index].1.stderr().into_bytes());
            assert!(stdout.len() == 3_000_000 && stdout.iter().all(|&byte| byte == out), "{index}");
            assert!(stderr.len() == 3_000_000 && stderr.iter().all(|&byte| byte == err), "{index}");
        }
        assert_eq!(begun[1].1.stdout(), b"\x1e\0");
    }

    /// A directory that is missing, a supervisor that is ended: the rest has no turn, and the session is as good as before.
    pub async fn the_error_of_a_list_is_that_of_the_one_that_ran(session: &impl AsRef<dyn Session>) {
        let session = session.as_ref();
        let lost = Command::shell("kill -9 $PPID; sleep 1");
        for (wrong, part) in [(Command::shell("true").cwd("no/such/dir"), "no/such/dir"), (lost, "")] {
            let (followed, cancel) = (Arc::new(Followed::default()), CancellationToken::new());
            let commands = [Command::shell("echo one"), wrong, Command::shell("touch unreached")];
            let error = session.exec_all(&commands, followed.clone(), &cancel).await.expect_err("it fails");
            assert_eq!(error.kind, SessionErrorKind::Remote);
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!((followed.begun(), followed.ended()), (2, vec![(0, Exit::Status(0))]));
        }
        text(session, Command::shell("! test -e unreached")).await;
    }

    /// One that takes TERM for a reason to succeed is no reason to go on.
    pub async fn a_cancelled_command_of_a_list_that_succeeds_ends_the_list(
        session: &impl AsRef<dyn Session>,
    ) {
        let (followed, cancel) = (Arc::new(Followed::default()), CancellationToken::new());
        let polite = Command::shell("trap 'exit 0' TERM; touch polite; while :; do sleep 0.1; done");
        let commands = [Command::shell("true"), polite, Command::shell("touch unreached")];
        let running = session.as_ref().exec_all(&commands, followed.clone(), &cancel);
        let begun = async {
            eventually(session.as_ref(), "test -e polite").await;
            cancel.cancel();
        };
        let (ended, ()) = tokio::join!(running, begun);
        assert_eq!(ended.map_err(|error| error.kind), Err(SessionErrorKind::Cancelled));
        assert_eq!(followed.begun(), 2);
        text(session.as_ref(), Command::shell("sleep 0.5; ! test -e unreached")).await;
    }

    /// As of a single command.
    pub async fn dropping_a_list_ends_the_running_one_and_begins_no_other(session: &impl AsRef<dyn Session>) {
        let (followed, cancel) = (Arc::new(Followed::default()), CancellationToken::new());
        let commands = ["true", "sleep 631", "touch unreached"].map(Command::shell);
        let running = session.as_ref().exec_all(&commands, followed.clone(), &cancel);
        let begun = async { eventually(session.as_ref(), "pgrep -f '^sleep 631'").await };
        tokio::select! {
            _ = running => panic!("it ended by itself"),
            () = begun => {}
        }
        eventually(session.as_ref(), "! pgrep -f '^sleep 631'").await;
        text(session.as_ref(), Command::shell("sleep 0.5; ! test -e unreached")).await;
    }

    /// Children and grandchildren end with the command.
    pub async fn cancelling_ends_the_whole_process_group(session: &impl AsRef<dyn Session>) {
        let cancel = CancellationToken::new();
        let command = Command::shell("sleep 611 & (sleep 612 & sleep 613); wait");
        let token = cancel.clone();
        let ended = async {
            eventually(session.as_ref(), "pgrep -f '^sleep 613'").await;
            token.cancel();
        };
        let (result, ()) = tokio::join!(session.as_ref().exec(&command, Arc::new(()), &cancel), ended);
        assert_eq!(result.map_err(|error| error.kind), Err(SessionErrorKind::Cancelled));
        text(session.as_ref(), Command::shell("! pgrep -f '^sleep 61[123]'")).await;
    }

    /// TERM is a request; KILL follows.
    pub async fn a_stubborn_command_is_killed(session: &impl AsRef<dyn Session>) {
        let cancel = CancellationToken::new();
        let command = Command::shell("trap '' TERM; touch deaf; while :; do sleep 0.2; done");
        let token = cancel.clone();
        let ended = async {
            eventually(session.as_ref(), "test -e deaf").await;
            token.cancel();
        };
        let (result, ()) = tokio::join!(session.as_ref().exec(&command, Arc::new(()), &cancel), ended);
        assert_eq!(result.map_err(|error| error.kind), Err(SessionErrorKind::Cancelled));
        text(session.as_ref(), Command::shell("! pgrep -f '[t]ouch deaf'")).await;
    }

    /// Dropping the future ends the command as well, and `close` waits for that.
    pub async fn dropping_ends_the_command(session: &impl AsRef<dyn Session>) {
        let (command, cancel) = (Command::shell("sleep 621"), CancellationToken::new());
        let running = session.as_ref().exec(&command, Arc::new(()), &cancel);
        let begun = async { eventually(session.as_ref(), "pgrep -f '^sleep 621'").await };
        tokio::select! {
            _ = running => panic!("it ended by itself"),
            () = begun => {}
        }
        eventually(session.as_ref(), "! pgrep -f '^sleep 621'").await;
    }

    /// A daemon that holds the outputs open does not hold the command.
    pub async fn what_a_command_leaves_in_the_background_does_not_hold_it(session: &impl AsRef<dyn Session>) {
        let begun = Instant::now();
        let (exit, stdout, _) = exec(session.as_ref(), Command::shell("sleep 30 & echo begun")).await;
        assert_eq!((exit, stdout.as_slice()), (Exit::Status(0), b"begun\n".as_slice()));
        assert!(begun.elapsed() < Duration::from_secs(20));
        exec(session.as_ref(), Command::shell("pkill -f '^sleep 30$'")).await;
    }

    /// Commands do not inherit an ignored interrupt.
    pub async fn a_background_process_can_be_interrupted(session: &impl AsRef<dyn Session>) {
        let (exit, _, _) = exec(session.as_ref(), Command::shell("kill -INT $$; echo survived")).await;
        assert_eq!(exit, Exit::Signal(2));
    }

    /// A tree arrives as it was.
    pub async fn directories_keep_modes_and_links(session: &impl AsRef<dyn Session>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("sub")).expect("mkdir");
        fs::write(tree.join("sub/run.sh"), "#!/bin/sh\necho ran\n").expect("write");
        fs::set_permissions(tree.join("sub/run.sh"), PermissionsExt::from_mode(0o750)).expect("chmod");
        std::os::unix::fs::symlink("sub/run.sh", tree.join("link")).expect("symlink");
        session.as_ref().upload(&tree, "deep/er/tree").await.expect("upload");
        let seen =
            text(session.as_ref(), Command::shell("cd deep/er/tree; ./link; stat -c %a sub/run.sh")).await;
        assert_eq!(seen, "ran\n750\n");
        let into = Command::shell("mkdir -p bin");
        text(session.as_ref(), into).await;
        session.as_ref().upload(&tree.join("sub/run.sh"), "bin/").await.expect("upload into a directory");
        assert_eq!(text(session.as_ref(), Command::program("bin/run.sh")).await, "ran\n");
    }

    /// A pattern that matches a directory brings all of it.
    pub async fn a_download_brings_directories_whole(session: &impl AsRef<dyn Session>) {
        let line = "mkdir -p out/a/b; echo 1 > out/a/one; echo 2 > out/a/b/two; chmod 640 out/a/one; echo 3 > out.csv";
        text(session.as_ref(), Command::shell(line)).await;
        let home = tempfile::tempdir().expect("temporary directory");
        let matches =
            session.as_ref().download(&download(&["out", "*.csv"], home.path())).await.expect("download");
        assert_eq!(matches, [1, 1]);
        assert_eq!(fs::read_to_string(home.path().join("out/a/b/two")).expect("read"), "2\n");
        assert_eq!(fs::read_to_string(home.path().join("out.csv")).expect("read"), "3\n");
        let mode = fs::metadata(home.path().join("out/a/one")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    /// Names are data.
    pub async fn awkward_file_names_survive(session: &impl AsRef<dyn Session>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let name = "-it's a $(name) *?.txt";
        fs::write(directory.path().join(name), "x").expect("write");
        session
            .as_ref()
            .upload(&directory.path().join(name), &format!("some place/{name}"))
            .await
            .expect("upload");
        let home = tempfile::tempdir().expect("temporary directory");
        let back = download(&["some place/-it*.txt"], home.path());
        assert_eq!(session.as_ref().download(&back).await.expect("download"), [1]);
        assert!(home.path().join("some place").join(name).exists());
    }

    /// A source that is not there is named.
    pub async fn an_upload_of_nothing_is_an_error(session: &impl AsRef<dyn Session>) {
        let missing = std::path::Path::new("/no/such/file");
        let error = session.as_ref().upload(missing, "x").await.expect_err("there is nothing to upload");
        assert!(crate::ErrorChain(&error).to_string().contains("/no/such/file"), "{error}");
    }
}
