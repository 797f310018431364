//! What comes of a request that creates something.

use crate::error::AwsError;
use crate::model::Pool;

/// What a request created.
#[derive(Debug, Default)]
pub(crate) struct CreateOutput {
    pub(crate) ids: Vec<String>,
    /// The pool of the first machine.
    pub(crate) pool: Option<Pool>,
    /// The pools that gave nothing, and why.
    pub(crate) failures: Vec<(Option<Pool>, AwsError)>,
}

impl CreateOutput {
    pub(super) fn one(id: impl Into<String>) -> Self {
        Self { ids: vec![id.into()], ..Self::default() }
    }
}
