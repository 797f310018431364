//! Which of the account's quotas of virtual processors a type counts against.

/// A family of types that share a quota: the letters that their names begin with, what the quota calls it, and the
/// codes for on-demand and spot.
/// <https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html>
struct Family {
    begins: &'static [&'static str],
    name: &'static str,
    on_demand: &'static str,
    spot: Option<&'static str>,
}

const fn family(
    begins: &'static [&'static str],
    name: &'static str,
    on_demand: &'static str,
    spot: Option<&'static str>,
) -> Family {
    Family { begins, name, on_demand, spot }
}

const FAMILIES: &[Family] = &[
    family(&["dl"], "DL", "L-6E869C2A", Some("L-85EED4F7")),
    family(&["f"], "F", "L-74FC7D96", Some("L-88CF9481")),
    family(&["g", "gr", "vt"], "G and VT", "L-DB2E81BA", Some("L-3819A6DF")),
    family(&["hpc"], "HPC", "L-F7808C92", None),
    family(&["inf"], "Inf", "L-1945791B", Some("L-B5D1601B")),
    family(&["p"], "P", "L-417A185B", Some("L-7212CCBC")),
    family(&["trn"], "Trn", "L-2C3B7624", Some("L-6B0D517C")),
    family(&["u"], "High Memory", "L-43DA4232", None),
    family(&["x"], "X", "L-7295265B", Some("L-E3A00192")),
];
const STANDARD: Family =
    family(&[], "Standard (A, C, D, H, I, M, R, T, Z)", "L-1216C47A", Some("L-34B43A08"));

/// As spot, p5 has a quota beside that of the other P types.
const P5: Family = family(&["p"], "P5", "L-417A185B", Some("L-C4BD4855"));

/// A quota of virtual processors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quota {
    pub(crate) code: &'static str,
    pub(crate) name: String,
}

impl Quota {
    /// The one that machines of a type count against.
    pub(crate) fn of(instance: &str, spot: bool) -> Self {
        let letters: String = instance.chars().take_while(char::is_ascii_lowercase).collect();
        let family = match FAMILIES.iter().find(|family| family.begins.contains(&letters.as_str())) {
            Some(_) if spot && instance.starts_with("p5") => &P5,
            Some(family) => family,
            None => &STANDARD,
        };
        match (spot, family.spot) {
            (true, Some(code)) => Self { code, name: format!("All {} Spot Instance Requests", family.name) },
            _ => {
                Self { code: family.on_demand, name: format!("Running On-Demand {} instances", family.name) }
            }
        }
    }

    /// How to have more of it.
    pub(crate) fn help(&self, region: &str) -> String {
        format!(
            "ask for more with `aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {} \
             --region {region} --desired-value N`, or ask for fewer or smaller machines",
            self.code
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_that_of_the_family() {
        for (instance, spot, name, code) in [
            ("c7g.large", false, "On-Demand Standard", "L-1216C47A"),
            ("im4gn.large", false, "On-Demand Standard", "L-1216C47A"),
            ("g5.xlarge", false, "On-Demand G and VT", "L-DB2E81BA"),
            ("u-6tb1.metal", false, "On-Demand High Memory", "L-43DA4232"),
            ("p4d.24xlarge", true, "All P Spot", "L-7212CCBC"),
            ("p5.48xlarge", true, "All P5 Spot", "L-C4BD4855"),
            ("p5.48xlarge", false, "On-Demand P instances", "L-417A185B"),
            ("inf2.xlarge", true, "All Inf Spot", "L-B5D1601B"),
            ("t3.micro", true, "All Standard", "L-34B43A08"),
        ] {
            let quota = Quota::of(instance, spot);
            assert!(quota.name.contains(name) && quota.code == code, "{instance}: {quota:?}");
        }
    }
}
