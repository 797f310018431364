//! Images: by the names that people know them by, and what they are.

use std::time::SystemTime;

use tsunami_core::ProviderError;

use super::ResolveKey;
use crate::error::Result;
use crate::region::Region;
use crate::spec::is_general_purpose;

/// An image, as far as it matters to machines.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) root_device: String,
    pub(crate) gib: u32,
    /// The sizes of further volumes, in GiB.
    pub(crate) more_gib: u32,
    /// Why what it costs is not known: software that is paid for, or volumes of an uncommon type.
    pub(crate) unpriced: Option<String>,
    pub(crate) user: String,
    /// When it was made.
    #[cfg_attr(not(feature = "experiment"), expect(dead_code, reason = "only an examination tells it"))]
    pub(crate) created: Option<SystemTime>,
    /// When its maker stops caring for it.
    #[cfg_attr(not(feature = "experiment"), expect(dead_code, reason = "only an examination tells it"))]
    pub(crate) deprecated: Option<SystemTime>,
}

/// A distribution's images, by the name that people know them by.
struct Alias {
    parameter: String,
    user: &'static str,
}

/// Where an alias stands among the public parameters of SSM, for an architecture.
///
/// <https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/>,
/// <https://wiki.debian.org/Cloud/AmazonEC2Image>,
/// <https://docs.aws.amazon.com/linux/al2023/ug/ec2.html>
fn alias(image: &str, architecture: &str) -> Option<Alias> {
    let short = if architecture == "x86_64" { "amd64" } else { architecture };
    if let Some(version) = image.strip_prefix("ubuntu-") {
        // Noble was the first to have its images on gp3.
        let disk = if version < "23.10" { "ebs-gp2" } else { "ebs-gp3" };
        let parameter = format!(
            "/aws/service/canonical/ubuntu/server/{version}/stable/current/{short}/hvm/{disk}/ami-id"
        );
        return Some(Alias { parameter, user: "ubuntu" });
    }
    if let Some(version) = image.strip_prefix("debian-") {
        let parameter = format!("/aws/service/debian/release/{version}/latest/{short}");
        return Some(Alias { parameter, user: "admin" });
    }
    if matches!(image, "al2023" | "amazon-linux-2023") {
        let parameter =
            format!("/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{architecture}");
        return Some(Alias { parameter, user: "ec2-user" });
    }
    None
}

/// Finds the image of a spec, which must be for the architecture of its types.
pub(super) async fn image(
    key: &ResolveKey,
    region: &Region,
    architecture: &str,
) -> Result<Image, ProviderError> {
    let alias = alias(&key.image, architecture);
    let parameter = alias.as_ref().map(|alias| alias.parameter.as_str()).or(key.image.strip_prefix("ssm:"));
    let id = match parameter {
        Some(parameter) => parameter_value(region, parameter, &key.image).await?,
        None if key.image.starts_with("ami-") => key.image.clone(),
        None => {
            let message = format!("`{}` names no image", key.image);
            return Err(region.invalid(message).key("image")
                .help("use an alias such as \"ubuntu-24.04\", \"debian-12\" or \"al2023\", an \"ami-…\", or \"ssm:/path\""));
        }
    };
    let request = region.ec2.describe_images().image_ids(&id);
    let answer = region.call("DescribeImages", || request.clone().send()).await?;
    let Some(image) = answer.images().first() else {
        return Err(region.invalid(format!("there is no image {id} in {}", region.name)).key("image"));
    };
    let name = image.name().unwrap_or_default().to_owned();
    let of_image = image.architecture().map_or("", |architecture| architecture.as_str());
    if of_image != architecture {
        let message = format!(
            "image {id} ({name}) is for {of_image}, and {} for {architecture}",
            key.instances.join(", ")
        );
        let help = "choose an image of the same architecture, or an alias";
        return Err(region.invalid(message).key("image").help(help));
    }
    // The API says "windows", whatever its model has.
    let platform = image.platform().map_or("", |platform| platform.as_str());
    if platform.eq_ignore_ascii_case("windows") {
        let message =
            format!("image {id} ({name}) is of Windows: nothing in it would end the machine in time");
        return Err(region.invalid(message).key("image").help("choose an image of Linux with cloud-init"));
    }
    let root_device = image.root_device_name().unwrap_or("/dev/xvda").to_owned();
    let root = image.block_device_mappings().iter().find(|device| device.device_name() == Some(&root_device));
    let gib = root.and_then(|device| device.ebs()).and_then(|ebs| ebs.volume_size()).unwrap_or(8);
    let known = || {
        let name = name.to_lowercase();
        let users =
            [("ubuntu", "ubuntu"), ("debian", "admin"), ("al2023", "ec2-user"), ("amzn2", "ec2-user")];
        users.into_iter().find(|(part, _)| name.contains(part)).map(|(_, user)| user)
    };
    let volumes = image
        .block_device_mappings()
        .iter()
        .filter_map(|device| Some((device.device_name()?, device.ebs()?)));
    let further = || volumes.clone().filter(|(name, _)| *name != root_device);
    let more_gib = further().map(|(_, ebs)| ebs.volume_size().unwrap_or(8)).sum::<i32>();
    let kept = volumes.clone().filter(|(name, _)| *name != root_device || key.disk.is_none());
    let odd = kept.filter_map(|(_, ebs)| ebs.volume_type()).find(|kind| !is_general_purpose(kind.as_str()));
    // Plain Linux is billed under this very name.
    // <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/billing-info-fields.html>
    let billed = image.usage_operation().filter(|operation| *operation != "RunInstances");
    let unpriced = match (billed, image.product_codes(), odd) {
        (Some(operation), ..) => Some(format!("its software is billed as {operation}")),
        (None, [code, ..], _) => Some(format!(
            "its software has a price of its own ({})",
            code.product_code_id().unwrap_or_default()
        )),
        (None, [], Some(kind)) => Some(format!("it has a volume of type {kind}")),
        (None, [], None) => None,
    };
    let user = key.user.as_deref().or(alias.map(|alias| alias.user)).or_else(known);
    let Some(user) = user else {
        return Err(region
            .invalid(format!("who logs in to image {id} ({name}) is not known"))
            .key("image")
            .help("say so with `user = \"...\"`"));
    };
    let user = user.to_owned();
    let gib = u32::try_from(gib).unwrap_or_default();
    let more_gib = u32::try_from(more_gib).unwrap_or_default();
    let time = |text: Option<&str>| text.and_then(|text| humantime::parse_rfc3339(text).ok());
    let (created, deprecated) = (time(image.creation_date()), time(image.deprecation_time()));
    Ok(Image { id, name, root_device, gib, more_gib, unpriced, user, created, deprecated })
}

async fn parameter_value(region: &Region, name: &str, image: &str) -> Result<String, ProviderError> {
    let request = region.ssm.get_parameter().name(name);
    match region.call("GetParameter", || request.clone().send()).await {
        Ok(answer) => {
            let value =
                answer.parameter().and_then(|parameter| parameter.value()).unwrap_or_default().to_owned();
            match value.starts_with("ami-") {
                true => Ok(value),
                false => {
                    let message = format!("the parameter {name} holds `{value}`, not the id of an image");
                    Err(region.invalid(message).key("image"))
                }
            }
        }
        Err(failure) if failure.code == "ParameterNotFound" => {
            let message =
                format!("there is no image `{image}` in {}: no public parameter {name}", region.name);
            let help = "see that the alias or path is right, or give an \"ami-…\"";
            Err(region.invalid(message).key("image").help(help))
        }
        Err(failure) => Err(failure.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_stand_where_the_distributions_put_them() {
        let at = |image, architecture| alias(image, architecture).map(|alias| (alias.parameter, alias.user));
        let ubuntu = "/aws/service/canonical/ubuntu/server/24.04/stable/current/arm64/hvm/ebs-gp3/ami-id";
        assert_eq!(at("ubuntu-24.04", "arm64"), Some((ubuntu.to_owned(), "ubuntu")));
        let jammy = "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id";
        assert_eq!(at("ubuntu-22.04", "x86_64"), Some((jammy.to_owned(), "ubuntu")));
        assert_eq!(at("debian-12", "x86_64").unwrap().0, "/aws/service/debian/release/12/latest/amd64");
        let amazon = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64";
        assert_eq!(at("al2023", "x86_64"), Some((amazon.to_owned(), "ec2-user")));
        assert_eq!(at("windows", "x86_64"), None);
    }
}
