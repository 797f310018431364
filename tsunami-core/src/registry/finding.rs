//! What an examination finds.

use serde::{Serialize, Serializer};

use crate::error::ErrorChain;
use crate::provider::ProviderError;

/// What was found out about one thing that runs need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, in a word or a few: `ssh`, `host me@10.0.0.5`.
    pub check: String,
    /// How it is.
    pub result: FindingResult,
    /// What is there; or what is the matter, or why it was not checked.
    pub found: String,
    /// What mends it: a command, or a line for a file, to be pasted, with words about it if need be.
    pub fix: Option<String>,
}

/// How something is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingResult {
    /// As it should be.
    Ok,
    /// Runs are made all the same; something should be known, or is worth mending.
    Warning,
    /// Runs that need it fail.
    Failed,
    /// It can't be known, or may not.
    NotChecked,
}

impl FindingResult {
    /// The result in words, which are its JSON, too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotChecked => "not checked",
        }
    }
}

impl Serialize for FindingResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Finding {
    /// What was found out about `check`.
    pub fn new(check: impl Into<String>, result: FindingResult, found: impl Into<String>) -> Self {
        Self { check: check.into(), result, found: found.into(), fix: None }
    }

    /// It is as it should be.
    pub fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, FindingResult::Ok, found)
    }

    /// Runs are made all the same, but this should be known.
    pub fn warning(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, FindingResult::Warning, found)
    }

    /// Runs that need it fail.
    pub fn failed(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, FindingResult::Failed, found)
    }

    /// It can't be known, or may not, and why.
    pub fn not_checked(check: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(check, FindingResult::NotChecked, why)
    }

    /// A provider's refusal, with where the file says what is refused, all that it stems from, and its help as the fix.
    pub fn refused(check: impl Into<String>, error: &ProviderError) -> Self {
        let place = error.place.as_ref().map_or(String::new(), |place| format!("{place}: "));
        Self { fix: error.help.clone(), ..Self::failed(check, format!("{place}{}", ErrorChain(error))) }
    }

    /// Sets what mends it.
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Whether runs that need it fail.
    pub fn is_failed(&self) -> bool {
        self.result == FindingResult::Failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ProviderErrorKind;

    #[test]
    fn a_refusal_is_told_whole_with_its_help_as_the_fix() {
        let error = ProviderError::new(ProviderErrorKind::Quota, "launch", "too many").help("ask for fewer");
        let finding = Finding::refused("quota", &error.source("a cause"));
        assert!(finding.is_failed() && finding.found.contains("too many"), "{finding:?}");
        assert!(finding.found.ends_with("a cause"), "{finding:?}");
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!((&json["result"], &json["fix"]), (&"failed".into(), &"ask for fewer".into()));
        let unknown = Finding::not_checked("x", "it may not be asked");
        assert_eq!(serde_json::to_value(&unknown).unwrap()["result"], "not checked");
    }
}
