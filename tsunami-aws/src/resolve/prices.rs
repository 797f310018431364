//! What machines cost.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::InstanceType;
use aws_sdk_pricing::types::{Filter, FilterType};
use aws_smithy_types::DateTime;
use serde_json::Value;
use tsunami_core::{ProviderError, ProviderErrorKind};

use super::ResolveKey;
use crate::error::{AwsError, Result};
use crate::limited::pages;
use crate::region::Region;

/// What spot machines cost now, by type and zone, in US dollars an hour.
pub(super) async fn spot_prices(
    key: &ResolveKey,
    region: &Region,
) -> Result<BTreeMap<(String, String), f64>, ProviderError> {
    let mut prices = BTreeMap::new();
    if !key.markets.iter().any(|market| market.is_spot()) {
        return Ok(prices);
    }
    let types: Vec<_> = key.instances.iter().map(|name| InstanceType::from(name.as_str())).collect();
    let now = DateTime::from(std::time::SystemTime::now());
    let request = region.ec2.describe_spot_price_history().set_instance_types(Some(types));
    let request = request.product_descriptions("Linux/UNIX").start_time(now);
    for price in pages!(region, "DescribeSpotPriceHistory", request.clone(), spot_price_history) {
        let dollars = price.spot_price().and_then(|price| price.parse().ok());
        let dollars = dollars.filter(|dollars: &f64| dollars.is_finite() && *dollars > 0.0);
        if let (Some(kind), Some(zone), Some(dollars)) =
            (price.instance_type(), price.availability_zone(), dollars)
        {
            // The latest comes first.
            prices.entry((kind.as_str().to_owned(), zone.to_owned())).or_insert(dollars);
        }
    }
    Ok(prices)
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
    fn a_price_is_found_in_the_price_list() {
        let product = r#"{"terms":{"OnDemand":{"A":{"priceDimensions":{
            "A.0":{"unit":"Hrs","pricePerUnit":{"USD":"0.0728000000"}}}}}}}"#;
        assert_eq!(hourly(product), Some(0.0728));
        assert_eq!(hourly(r#"{"terms":{}}"#), None);
        let several = product.replace("\"A.0\"", "\"A.1\":{\"pricePerUnit\":{\"USD\":\"0.1\"}},\"A.0\"");
        assert_eq!(hourly(&several), Some(0.1));
    }
}
