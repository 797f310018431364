//! That EC2 takes a spot machine back: what it says of it, and what the machine itself is told.

use std::collections::HashMap;

use tsunami_core::RunFilter;

use crate::error::Result;
use crate::limited::{MAX_PAGE, pages};
use crate::region::Region;
use crate::{tag, text};

/// Waits on a machine for the notice of its interruption.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>
pub(crate) const INTERRUPTION_NOTICE: &str = include_str!("notice.py");

/// What the service says of spot machines that it means to take back, or took, by instance.
pub(crate) async fn interruptions(region: &Region, filter: &RunFilter) -> Result<HashMap<String, String>> {
    let request =
        region.ec2.describe_spot_instance_requests().filters(tag::filter(filter)).max_results(MAX_PAGE);
    let requests = pages!(region, "DescribeSpotInstanceRequests", request.clone(), spot_instance_requests);
    let interrupted = requests.into_iter().filter_map(|request| {
        let status = request.status?;
        let code = status.code.filter(|code| is_interruption(code))?;
        let message = text::line(&status.message.unwrap_or_default());
        Some((request.instance_id?, format!("EC2 takes the spot machine back ({code}): {message}")))
    });
    Ok(interrupted.collect())
}

/// The statuses that mean that the service, and not the user, ends a machine.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-request-status.html>
fn is_interruption(code: &str) -> bool {
    match code {
        "instance-terminated-by-user" | "instance-terminated-launch-group-constraint" => false,
        "marked-for-termination" | "marked-for-stop" => true,
        code => code.starts_with("instance-terminated-") || code.starts_with("instance-stopped-"),
    }
}

/// Whether a machine says what EC2 says there: what happens to it, and when.
pub(crate) fn is_notice(said: &str) -> bool {
    let words: Vec<&str> = said.trim_end().split(' ').collect();
    matches!(words[..], ["terminate" | "stop" | "hibernate", "at", time] if humantime::parse_rfc3339(time).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_service_does_by_itself_is_an_interruption() {
        for code in [
            "marked-for-termination",
            "instance-terminated-by-price",
            "instance-terminated-no-capacity",
            "instance-terminated-by-service",
            "instance-stopped-no-capacity",
        ] {
            assert!(is_interruption(code), "{code}");
        }
        for code in [
            "fulfilled",
            "instance-terminated-by-user",
            "pending-fulfillment",
            "request-canceled-and-instance-running",
        ] {
            assert!(!is_interruption(code), "{code}");
        }
    }

    #[test]
    fn a_machine_is_believed_its_end_only_in_the_words_of_ec2() {
        assert!(is_notice("terminate at 2026-11-27T06:00:00Z\n"));
        for lie in [
            "",
            "terminate",
            "terminate at noon",
            "dance at 2026-11-27T06:00:00Z",
            "x\nterminate at 2026-11-27T06:00:00Z",
        ] {
            assert!(!is_notice(lie), "{lie:?}");
        }
    }
}
