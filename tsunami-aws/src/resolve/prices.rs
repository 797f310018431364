//! What machines cost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::InstanceType;
use aws_sdk_pricing::types::{Filter, FilterType};
use aws_smithy_types::DateTime;
use serde_json::Value;
use tsunami_core::{ProviderError, ProviderErrorKind};

use super::ResolveKey;
use crate::error::{AwsError, Result};
use crate::limited::pages;
use crate::region::Region;

/// How far back spot prices are looked at.
const SPOT_HISTORY: Duration = Duration::from_secs(24 * 3600);

/// What an hour of a spot machine costs, in US dollars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SpotPrice {
    /// Now.
    pub(crate) now: f64,
    /// The least and the most of the last day.
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// Spot prices, by type and zone.
pub(super) async fn spot_prices(
    key: &ResolveKey,
    region: &Region,
) -> Result<BTreeMap<(String, String), SpotPrice>, ProviderError> {
    if !key.markets.iter().any(|market| market.is_spot()) {
        return Ok(BTreeMap::new());
    }
    let types: Vec<_> = key.instances.iter().map(|name| InstanceType::from(name.as_str())).collect();
    // The answer also has the price in effect at the start.
    // <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html>
    let start = DateTime::from(SystemTime::now() - SPOT_HISTORY);
    let request = region.ec2.describe_spot_price_history().set_instance_types(Some(types));
    let request = request.product_descriptions("Linux/UNIX").start_time(start);
    let history = pages!(region, "DescribeSpotPriceHistory", request.clone(), spot_price_history);
    let entries = history.iter().filter_map(|entry| {
        let dollars = entry.spot_price()?.parse().ok().filter(|it: &f64| it.is_finite() && *it > 0.0)?;
        let pool = (entry.instance_type()?.as_str().to_owned(), entry.availability_zone()?.to_owned());
        Some((pool, *entry.timestamp()?, dollars))
    });
    Ok(of_the_day(entries))
}

/// What entries of the history come to, in whatever order they are.
fn of_the_day(
    entries: impl Iterator<Item = ((String, String), DateTime, f64)>,
) -> BTreeMap<(String, String), SpotPrice> {
    let mut prices: BTreeMap<_, (DateTime, SpotPrice)> = BTreeMap::new();
    for (pool, at, dollars) in entries {
        let first = (at, SpotPrice { now: dollars, least: dollars, most: dollars });
        let (latest, price) = prices.entry(pool).or_insert(first);
        if at > *latest {
            (*latest, price.now) = (at, dollars);
        }
        (price.least, price.most) = (price.least.min(dollars), price.most.max(dollars));
    }
    prices.into_iter().map(|(pool, (_, price))| (pool, price)).collect()
}

/// What the types cost on demand, where that can be found out, and what to say where it can't.
pub(super) async fn on_demand_prices(
    key: &ResolveKey,
    region: &Region,
    pricing: &aws_sdk_pricing::Client,
) -> (BTreeMap<String, f64>, Vec<String>) {
    let asked =
        key.instances.iter().map(async |instance| (instance, on_demand(instance, region, pricing).await));
    let (mut prices, mut notes) = (BTreeMap::new(), Vec::new());
    for (instance, price) in futures_util::future::join_all(asked).await {
        match price {
            Ok(Some(price)) => drop(prices.insert(instance.clone(), price)),
            Ok(None) => notes.push(format!("AWS lists no on-demand price for {instance} in {}", region.name)),
            Err(failure) => notes.push(format!("the on-demand price of {instance} is not known: {failure}")),
        }
    }
    (prices, notes)
}

async fn on_demand(
    instance: &str,
    region: &Region,
    pricing: &aws_sdk_pricing::Client,
) -> Result<Option<f64>> {
    let products = products(("instanceType", instance), region, pricing).await?;
    // Which of several it is that a launch is billed as is not told: a bound takes the most.
    Ok(products.iter().filter_map(|product| hourly(product)).reduce(f64::max))
}

/// What all types with so many virtual processors cost on demand, as far as that can be found out.
pub(super) async fn on_demand_by_processors(
    processors: &BTreeSet<u32>,
    region: &Region,
    pricing: &aws_sdk_pricing::Client,
) -> BTreeMap<String, f64> {
    let asked = processors
        .iter()
        .map(async |count| products(("vcpu", count.to_string().as_str()), region, pricing).await);
    let mut prices: BTreeMap<String, f64> = BTreeMap::new();
    for products in futures_util::future::join_all(asked).await {
        for product in products.unwrap_or_default() {
            if let (Some(instance), Some(price)) = (instance_of(&product), hourly(&product)) {
                prices.entry(instance).and_modify(|most| *most = most.max(price)).or_insert(price);
            }
        }
    }
    prices
}

/// The products of the price list that are plain machines, of one kind or size.
async fn products(
    of: (&str, &str),
    region: &Region,
    pricing: &aws_sdk_pricing::Client,
) -> Result<Vec<String>> {
    let filters = [
        of,
        ("regionCode", region.name.as_str()),
        ("operatingSystem", "Linux"),
        ("tenancy", "Shared"),
        ("preInstalledSw", "NA"),
        ("capacitystatus", "Used"),
        ("marketoption", "OnDemand"),
        ("licenseModel", "No License required"),
        ("operation", "RunInstances"),
    ];
    let mut request = pricing.get_products().service_code("AmazonEC2").format_version("aws_v1");
    for (field, value) in filters {
        let filter = Filter::builder().r#type(FilterType::TermMatch).field(field).value(value).build();
        request = request.filters(filter.map_err(|error| {
            let kind = ProviderErrorKind::Other;
            AwsError::ours(kind, "NotSent", error.to_string(), "GetProducts", &region.name)
        })?);
    }
    Ok(pages!(region, "GetProducts", request.clone(), price_list))
}

/// The instance type of a product of the price list.
fn instance_of(product: &str) -> Option<String> {
    let product: Value = serde_json::from_str(product).ok()?;
    Some(product.pointer("/product/attributes/instanceType")?.as_str()?.to_owned())
}

/// The price of a product of the price list, in US dollars an hour.
fn hourly(product: &str) -> Option<f64> {
    let product: Value = serde_json::from_str(product).ok()?;
    let terms = product.pointer("/terms/OnDemand")?.as_object()?;
    let dimensions = terms.values().filter_map(|term| term.get("priceDimensions")?.as_object());
    let dimensions = dimensions.flat_map(|dimensions| dimensions.values());
    let dollars = dimensions.filter_map(|it| it.pointer("/pricePerUnit/USD")?.as_str()?.parse::<f64>().ok());
    dollars.filter(|dollars| *dollars > 0.0).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_price_now_is_the_latest_of_the_day_whatever_comes_first() {
        let pool = || ("c7g.large".to_owned(), "eu-west-1a".to_owned());
        let entries = [(200, 0.02), (300, 0.03), (100, 0.05)];
        let entries = entries.map(|(at, dollars)| (pool(), DateTime::from_secs(at), dollars));
        let day = SpotPrice { now: 0.03, least: 0.02, most: 0.05 };
        assert_eq!(of_the_day(entries.into_iter()), BTreeMap::from([(pool(), day)]));
    }

    #[test]
    fn a_price_is_found_in_the_price_list() {
        let product = r#"{"terms":{"OnDemand":{"A":{"priceDimensions":{
            "A.0":{"unit":"Hrs","pricePerUnit":{"USD":"0.0728000000"}}}}}}}"#;
        assert_eq!(hourly(product), Some(0.0728));
        assert_eq!(hourly(r#"{"terms":{}}"#), None);
        let several = product.replace("\"A.0\"", "\"A.1\":{\"pricePerUnit\":{\"USD\":\"0.1\"}},\"A.0\"");
        assert_eq!(hourly(&several), Some(0.1));
    }
}
