//! `manifest.json`: the digests of all other files of a results directory.

use std::io;
use std::path::Path;

use serde::Serialize;

use super::built::Source;
use super::inputs::{DigestedFile, digest};
use super::json::escaped;
use crate::exclude::Exclude;

/// What the file is called.
pub(super) const NAME: &str = "manifest.json";

/// The number of the form of `manifest.json`.
pub(super) const MANIFEST_SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Manifest {
    schema: u32,
    files: Vec<DigestedFile>,
}

pub(super) fn build(source: &Source<'_>) -> io::Result<String> {
    let mut files = Vec::new();
    digest(source.directory, Path::new(""), &Exclude::default(), &mut files)?;
    files.retain(|file| file.path != NAME);
    let manifest = Manifest { schema: MANIFEST_SCHEMA, files };
    Ok(escaped(&serde_json::to_string_pretty(&manifest)?) + "\n")
}
