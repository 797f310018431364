//! The requests that create something: written down, made, and settled.

mod fleet;
mod output;

use std::io;

use aws_sdk_ec2::types::{Filter, PlacementStrategy, ResourceType, SecurityGroup};
use aws_smithy_types::Blob;
use tsunami_core::ProviderErrorKind;

pub(crate) use self::fleet::delete_fleets;
pub(crate) use self::output::CreateOutput;
use crate::error::{AwsError, Result};
use crate::journal::{Entry, Journal, Outcome};
use crate::model::{CreateKind, CreateRequest, Template, token};
use crate::region::Region;
use crate::tag;

impl CreateRequest {
    /// Makes the request, having written it down. What it is known to have created is not asked for again.
    pub(crate) async fn make(&self, region: &Region, journal: &Journal) -> Result<CreateOutput, MakeError> {
        let earlier = journal.entry(self).await?;
        let again = earlier.as_ref().is_some_and(Entry::is_open);
        match earlier.and_then(|entry| entry.outcome) {
            Some(Outcome::Created(ids)) => return Ok(CreateOutput { ids, ..CreateOutput::default() }),
            _ => journal.begin(self).await?,
        }
        let answer = self.ask(region).await;
        match &answer {
            Err(failure) if failure.is_inside_aws() && self.makes_instances() => {
                journal.end(self, Outcome::Failed(failure.code.clone())).await?;
            }
            answer if self.settles(answer, again) => self.settle(journal, answer).await?,
            _ => {}
        }
        Ok(answer?)
    }

    /// Whether an answer tells what the request created, also where it is made again as its first answer was lost.
    pub(crate) fn settles(&self, answer: &Result<CreateOutput>, again: bool) -> bool {
        match answer {
            Ok(_) => true,
            Err(failure) => failure.answered && !(again && failure.is_beside_the_point()),
        }
    }

    /// Writes down what came of the request.
    pub(crate) async fn settle(&self, journal: &Journal, answer: &Result<CreateOutput>) -> io::Result<()> {
        let outcome = match answer {
            Ok(made) => Outcome::Created(made.ids.clone()),
            Err(failure) => Outcome::Refused(failure.code.clone()),
        };
        journal.end(self, outcome).await
    }

    /// Makes the request, without writing it down.
    pub(crate) async fn ask(&self, region: &Region) -> Result<CreateOutput> {
        let made = match &self.kind {
            CreateKind::SecurityGroup { vpc } => self.security_group(region, vpc).await,
            CreateKind::KeyPair { public_key } => self.key_pair(region, public_key).await,
            CreateKind::PlacementGroup => self.placement_group(region).await,
            CreateKind::LaunchTemplate(template) => self.launch_template(region, template).await,
            // Where a request for several types is refused as a whole, the first stands for them all.
            CreateKind::Fleet(fleet) => {
                return self.create_fleet(region, fleet).await.map_err(|error| fleet.about(error));
            }
            CreateKind::Instances(fleet) => {
                return self.run_instances(region, fleet).await.map_err(|error| fleet.about(error));
            }
        };
        match made {
            // What has our name is ours, made by a request whose answer was lost.
            Err(failure) if failure.is_duplicate() => self.existing(region).await,
            made => made.map(CreateOutput::one),
        }
    }

    async fn security_group(&self, region: &Region, vpc: &str) -> Result<String> {
        let request = region.ec2.create_security_group().group_name(&self.name).vpc_id(vpc);
        let request = request
            .description("The machines of one run of tsunami")
            .tag_specifications(tag::specification(&self.tags, ResourceType::SecurityGroup));
        let made = region.call("CreateSecurityGroup", || request.clone().send()).await?;
        Ok(made.group_id.unwrap_or_default())
    }

    async fn key_pair(&self, region: &Region, public_key: &str) -> Result<String> {
        let request = region.ec2.import_key_pair().key_name(&self.name);
        let request = request
            .public_key_material(Blob::new(public_key))
            .tag_specifications(tag::specification(&self.tags, ResourceType::KeyPair));
        region.call("ImportKeyPair", || request.clone().send()).await?;
        Ok(self.name.clone())
    }

    async fn placement_group(&self, region: &Region) -> Result<String> {
        let request = region.ec2.create_placement_group().group_name(&self.name);
        let request = request
            .strategy(PlacementStrategy::Cluster)
            .tag_specifications(tag::specification(&self.tags, ResourceType::PlacementGroup));
        region.call("CreatePlacementGroup", || request.clone().send()).await?;
        Ok(self.name.clone())
    }

    async fn launch_template(&self, region: &Region, template: &Template) -> Result<String> {
        let request = region.ec2.create_launch_template().launch_template_name(&self.name);
        let request = request
            .client_token(token(&[&self.region, &self.name]))
            .launch_template_data(template.data(&self.tags))
            .tag_specifications(tag::specification(&self.tags, ResourceType::LaunchTemplate));
        region.call("CreateLaunchTemplate", || request.clone().send()).await?;
        Ok(self.name.clone())
    }

    /// What is there under the request's name.
    async fn existing(&self, region: &Region) -> Result<CreateOutput> {
        let CreateKind::SecurityGroup { vpc } = &self.kind else { return Ok(CreateOutput::one(&self.name)) };
        let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
        let request = region.ec2.describe_security_groups();
        let request = request.filters(filter("group-name", &self.name)).filters(filter("vpc-id", vpc));
        let found = region.call("DescribeSecurityGroups", || request.clone().send()).await?;
        // Looked at here too: an endpoint may know no filters.
        let ours = |group: &&SecurityGroup| {
            let run = tag::value(group.tags(), tag::RUN);
            group.group_name() == Some(&self.name) && run == self.tags.get(tag::RUN).map(String::as_str)
        };
        let id = found.security_groups().iter().find(ours).and_then(|group| group.group_id());
        id.map(CreateOutput::one).ok_or_else(|| {
            let message = format!("the security group {} is there, but can't be seen yet", self.name);
            let (kind, operation) = (ProviderErrorKind::Unavailable, "DescribeSecurityGroups");
            let error = AwsError::ours(kind, "NotSeenYet", message, operation, &self.region);
            AwsError { answered: false, ..error }
        })
    }
}

/// Why a request was not made, or not answered well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error(transparent)]
    Refused(#[from] AwsError),
    /// What can't be written down is not asked for.
    #[error("the run's journal")]
    Journal(#[from] io::Error),
}
