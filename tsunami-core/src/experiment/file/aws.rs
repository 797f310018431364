//! `[aws]`, and what a group says instead.

use std::num::NonZeroU32;

use crate::limits::USER_DATA_FILE_LIMIT;
use toml::de::{DeTable, DeValue};

use super::value::{entries, number};
use super::{Problem, Reader, Span, Value, suggest};
use crate::experiment::{Aws, Disk, Market, OnInterruption, SpotBlock, read_at_most};

/// The keys of `[aws]`, any of which a group may override.
pub(super) const AWS_KEYS: &[&str] = &[
    "region",
    "zone",
    "market",
    "max_price",
    "instance",
    "mixed",
    "image",
    "user",
    "disk",
    "subnet",
    "security_group",
    "ssh_from",
    "open_ports",
    "placement_group",
    "iam_profile",
    "user_data",
    "tags",
    "wait_for_cloud_init",
    "on_interruption",
    "spot_block",
    "profile",
];

impl Reader<'_> {
    /// What a table says about machines on EC2; for the rest it is like `base`.
    pub(super) fn aws(&mut self, table: &DeTable<'_>, base: &Aws) -> Aws {
        let mut aws = base.clone();
        for (key, span, value) in entries(table) {
            self.aws_key(&mut aws, key, &span, value);
        }
        aws
    }

    fn aws_key(&mut self, aws: &mut Aws, key: &str, span: &Span, value: &Value<'_>) {
        match key {
            "region" => aws.region = self.word(value).or(aws.region.take()),
            "zone" => aws.zone = self.word(value).or(aws.zone.take()),
            "market" => {
                let markets = self.one_or_more(value, |reader, value| reader.market(value));
                aws.market = markets.unwrap_or(std::mem::take(&mut aws.market));
            }
            "max_price" => aws.max_price = self.dollars(value).or(aws.max_price),
            "instance" => {
                let instances = self.one_or_more(value, |reader, value| reader.word(value));
                aws.instance = instances.unwrap_or(std::mem::take(&mut aws.instance));
            }
            "mixed" => aws.mixed = self.boolean(value).unwrap_or(aws.mixed),
            "image" => aws.image = self.word(value).or(aws.image.take()),
            "user" => aws.user = self.host(value).or(aws.user.take()),
            "disk" => aws.disk = self.disk(value).or(aws.disk.take()),
            "subnet" => aws.subnet = self.id(value, "subnet-").or(aws.subnet.take()),
            "security_group" => aws.security_group = self.id(value, "sg-").or(aws.security_group.take()),
            "ssh_from" => {
                let blocks = self.one_or_more(value, |reader, value| reader.word(value));
                aws.ssh_from = blocks.unwrap_or(std::mem::take(&mut aws.ssh_from));
            }
            "open_ports" => {
                if let Some(list) = self.list(value) {
                    aws.open_ports = list.iter().filter_map(|value| self.port(value)).collect();
                }
            }
            "placement_group" => {
                aws.placement_group = self.boolean(value).unwrap_or(aws.placement_group);
            }
            "iam_profile" => aws.iam_profile = self.word(value).or(aws.iam_profile.take()),
            "user_data" => aws.user_data = self.user_data(value).or(aws.user_data.take()),
            "tags" => {
                let table = self.table(value);
                for (key, span, value) in table.map(entries).unwrap_or_default() {
                    if key.starts_with("tsunami:") || key.to_lowercase().starts_with("aws:") {
                        self.note(Problem::at(span, format!("the tag `{key}` is not for users to set")));
                    } else if let Some(text) = self.text(value) {
                        aws.tags.retain(|(known, _)| known != key);
                        aws.tags.push((key.to_owned(), text.to_owned()));
                    }
                }
            }
            "wait_for_cloud_init" => {
                aws.wait_for_cloud_init = self.boolean(value).unwrap_or(aws.wait_for_cloud_init);
            }
            "on_interruption" => {
                let choices =
                    &[("fail", Some(OnInterruption::Fail)), ("replace", Some(OnInterruption::Replace))];
                aws.on_interruption = self.choice(value, key, choices).unwrap_or(aws.on_interruption);
            }
            "spot_block" => {
                let choices = &[("promise", Some(SpotBlock::Promise)), ("native", Some(SpotBlock::Native))];
                aws.spot_block = self.choice(value, key, choices).unwrap_or(aws.spot_block);
            }
            "profile" => {
                let profile = self.word(value);
                if self.in_group && profile.is_some() && profile != aws.profile {
                    let help = "say it once, in `[aws]`".to_owned();
                    let message =
                        "the machines of a run are in one account: a group can't have a profile of its own";
                    self.note(Problem::at(span.clone(), message).help(help));
                }
                aws.profile = profile.or(aws.profile.take());
            }
            // The others were looked at with the table they stand in.
            _ => {}
        }
    }

    fn market(&mut self, value: &Value<'_>) -> Option<Market> {
        let choices = &[
            ("on-demand", Some(Market::OnDemand)),
            ("spot", Some(Market::Spot)),
            ("spot-block", Some(Market::SpotBlock)),
        ];
        self.choice(value, "market", choices)
    }

    /// One thing, or a list of at least one.
    fn one_or_more<T>(
        &mut self,
        value: &Value<'_>,
        mut item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let DeValue::Array(list) = value.get_ref() else { return item(self, value).map(|item| vec![item]) };
        if list.is_empty() {
            self.note(Problem::at(value.span(), "this list is empty"));
            return None;
        }
        Some(list.iter().filter_map(|value| item(self, value)).collect())
    }

    /// A name or id of AWS: no spaces, nothing that could be taken for something else.
    fn word(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.text(value)?;
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) {
            return Some(text.to_owned());
        }
        self.note(Problem::at(value.span(), "this can't be empty or hold spaces"));
        None
    }

    fn id(&mut self, value: &Value<'_>, prefix: &str) -> Option<String> {
        let word = self.word(value)?;
        if !word.starts_with(prefix) {
            let message = format!("`{word}` is no id: it begins with `{prefix}`");
            self.note(Problem::at(value.span(), message));
            return None;
        }
        Some(word)
    }

    pub(super) fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            _ => {
                self.wrong_type(value, "true or false");
                None
            }
        }
    }

    /// An amount of US dollars.
    pub(super) fn dollars(&mut self, value: &Value<'_>) -> Option<f64> {
        let dollars = match value.get_ref() {
            DeValue::Float(float) => float.as_str().replace('_', "").parse::<f64>().ok(),
            DeValue::Integer(integer) => number(integer).map(f64::from),
            _ => {
                self.wrong_type(value, "an amount of US dollars, such as 2.5");
                return None;
            }
        };
        let dollars = dollars.filter(|dollars| dollars.is_finite() && *dollars > 0.0);
        if dollars.is_none() {
            self.note(Problem::at(value.span(), "this is no amount of US dollars above zero"));
        }
        dollars
    }

    fn disk(&mut self, value: &Value<'_>) -> Option<Disk> {
        let table = self.table(value)?;
        self.keys(table, &["size", "type", "iops", "throughput"], &[]);
        let gib = table.get("size").and_then(|value| self.gib(value));
        let kind = match table.get("type") {
            Some(value) => self.kind_of_disk(value),
            None => Some("gp3".to_owned()),
        };
        let iops = table.get("iops").and_then(|value| self.rate(value));
        let throughput = table.get("throughput").and_then(|value| self.rate(value));
        Some(Disk { gib, kind: kind?, iops, throughput })
    }

    fn kind_of_disk(&mut self, value: &Value<'_>) -> Option<String> {
        const KINDS: [&str; 5] = ["gp3", "gp2", "io2", "io1", "standard"];
        const NOT_TO_BOOT_FROM: [&str; 2] = ["st1", "sc1"];
        let kind = self.text(value)?;
        if NOT_TO_BOOT_FROM.contains(&kind) {
            let message = format!("a machine can't boot from a disk of type `{kind}`");
            self.note(Problem::at(value.span(), message).help("use `gp3`".to_owned()));
            return None;
        }
        if !KINDS.contains(&kind) {
            let help = suggest(kind, KINDS);
            self.note(Problem::at(value.span(), format!("`{kind}` is no type of disk")).help(help));
            return None;
        }
        Some(kind.to_owned())
    }

    /// A whole number of operations, or of MiB, a second.
    fn rate(&mut self, value: &Value<'_>) -> Option<u32> {
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(value, "a whole number");
            return None;
        };
        let rate = number(integer).filter(|rate| *rate > 0);
        if rate.is_none() {
            self.note(Problem::at(value.span(), "this is no whole number above zero, or far too large"));
        }
        rate
    }

    /// A size as `30GiB`, in whole GiB.
    fn gib(&mut self, value: &Value<'_>) -> Option<NonZeroU32> {
        let text = self.text(value)?;
        let gib = match text.strip_suffix("GiB") {
            Some(number) => number.trim().parse().ok(),
            None => text
                .strip_suffix("TiB")
                .and_then(|number| number.trim().parse::<u32>().ok()?.checked_mul(1024)),
        };
        let gib = gib.and_then(NonZeroU32::new);
        if gib.is_none() {
            let help = "write it as `30GiB`, or `2TiB`".to_owned();
            self.note(Problem::at(value.span(), format!("`{text}` is no size of a disk")).help(help));
        }
        gib
    }

    fn user_data(&mut self, value: &Value<'_>) -> Option<String> {
        let path = self.file(value)?;
        match read_at_most(&path, USER_DATA_FILE_LIMIT).map(|bytes| bytes.map(String::from_utf8)) {
            Ok(Some(Ok(text))) => Some(text),
            Ok(None) => {
                let limit = USER_DATA_FILE_LIMIT >> 10;
                let message = format!("`{}` is larger than {limit} KiB; EC2 takes less", path.display());
                self.note(Problem::at(value.span(), message));
                None
            }
            Ok(Some(Err(_))) => {
                let message =
                    format!("`{}` is not UTF-8 text; compressed user data isn't supported", path.display());
                self.note(Problem::at(value.span(), message));
                None
            }
            Err(error) => {
                self.note(super::value::unreadable(value, &path, &error));
                None
            }
        }
    }
}
