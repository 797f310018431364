//! What is brought to machines: files, directories without what is left out of them, and files that are templates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use toml::de::{DeTable, DeValue};

use super::value::{entries, unreadable};
use super::{
    Problem, Reader, Span, Template, TemplateRole, TemplateScope, TemplateSite, Value, file_problem,
};
use crate::exclude::Exclude;
use crate::experiment::keys::UPLOAD_KEYS;
use crate::experiment::values::{Value as PlacedValue, Values};
use crate::experiment::{Upload, read_at_most};
use crate::limits::TEMPLATE_OUTPUT_LIMIT;

/// A file that is a template.
#[derive(Debug)]
pub(super) struct TemplateFile {
    /// Whose it is, as [`Dependency::of`](super::sets::Dependency::of).
    pub(super) of: String,
    pub(super) path: PathBuf,
    pub(super) template: Template,
}

impl Reader<'_> {
    pub(super) fn upload(&mut self, value: &Value<'_>, used: &TemplateScope) -> Option<Upload> {
        let table = self.table(value)?;
        self.keys(table, UPLOAD_KEYS);
        let from = self.required(table, "from", value.span());
        let to = self.required(table, "to", value.span());
        let is_template = table.get("template").and_then(|value| self.boolean(value)).unwrap_or_default();
        let exclude = table.get("exclude").map(|value| (value.span(), self.exclude(value)));
        let from = from.and_then(|value| {
            let (path, metadata) = match self.prepares && !is_template {
                true => self.perhaps_existing(value)?,
                false => self.existing_or_told(value, is_template)?,
            };
            let Some(metadata) = metadata else { return Some((path, None)) };
            // To read a pipe or a device might take forever.
            if !metadata.is_file() && !metadata.is_dir() {
                let message = format!("`{}` is neither a file nor a directory", path.display());
                self.note(Problem::at(value.span(), message));
                return None;
            }
            if let Some((span, _)) = exclude.as_ref().filter(|_| !metadata.is_dir()) {
                let message = format!("`exclude` is for directories, and `{}` is a file", path.display());
                self.note(Problem::at(span.clone(), message));
            }
            match is_template {
                true => {
                    self.template_file(value.span(), &path, &metadata, used).map(|file| (path, Some(file)))
                }
                false => Some((path, None)),
            }
        });
        let to = to.and_then(|value| self.template(value, TemplateRole::Path, used));
        let ((from, template), to) = (from?, to?);
        Some(Upload {
            from,
            to,
            template,
            exclude: exclude.and_then(|(_, exclude)| exclude).unwrap_or_default(),
        })
    }

    fn exclude(&mut self, value: &Value<'_>) -> Option<Exclude> {
        if value.get_ref().as_array().is_some_and(|list| list.is_empty()) {
            return Some(Exclude::default());
        }
        let mut is_whole = true;
        let pattern = |values: &mut Values<'_, '_>, value: PlacedValue<'_>| {
            let pattern = values.text(value)?;
            let checked = Exclude::new([pattern]);
            is_whole &= checked.is_ok();
            checked
                .err()
                .into_iter()
                .for_each(|error| values.problem(&value.place(), error.to_string(), None));
            Some(pattern.to_owned())
        };
        let patterns = Values(self).one_or_more(PlacedValue(value), pattern)?;
        if is_whole { Exclude::new(patterns).ok() } else { None }
    }

    /// What is there. A template is read before anything is prepared, which is told where that might have made it.
    fn existing_or_told(
        &mut self,
        value: &Value<'_>,
        is_template: bool,
    ) -> Option<(PathBuf, Option<fs::Metadata>)> {
        let path = self.path(value)?;
        match fs::metadata(&path) {
            Ok(metadata) => Some((path, Some(metadata))),
            Err(error) => {
                let is_missing = error.kind() == io::ErrorKind::NotFound;
                let help = "a template is there before `prepare` runs, so that it can be checked".to_owned();
                let help = (is_template && self.prepares && is_missing).then_some(help);
                self.note(unreadable(value.span(), &path, &error).help(help));
                None
            }
        }
    }

    /// A file that is rendered for each machine, as it is now.
    fn template_file(
        &mut self,
        span: Span,
        path: &Path,
        metadata: &fs::Metadata,
        used: &TemplateScope,
    ) -> Option<Template> {
        if metadata.is_dir() {
            let message = format!("`{}` is a directory, and a template is a file", path.display());
            let help = "upload the files in it that are templates one by one".to_owned();
            self.note(Problem::at(span, message).help(help));
            return None;
        }
        let file: Arc<Path> = path.into();
        let text = match self.text_of(path) {
            Ok(text) => text,
            Err(problem) => {
                self.templates_are_whole = false;
                self.note(problem.moved(span));
                return None;
            }
        };
        match Template::new(&*text) {
            Ok(template) => {
                let TemplateScope { machines, used } = used.clone();
                let (role, file) = (TemplateRole::File, Some(file));
                self.placed.push(TemplateSite {
                    template: template.clone(),
                    span,
                    role,
                    file,
                    machines,
                    used,
                });
                Some(template)
            }
            Err(error) => {
                self.templates_are_whole = false;
                self.note(file_problem(&span, &file, &text, error));
                None
            }
        }
    }

    /// The text of a template, which is read once.
    fn text_of(&mut self, path: &Path) -> Result<Arc<str>, Problem> {
        self.texts.entry(path.to_owned()).or_insert_with(|| text(path)).clone()
    }

    /// The files that are templates, by the groups that have them.
    pub(super) fn template_files(&mut self, root: &DeTable<'_>) -> Vec<TemplateFile> {
        let groups = root.get("group").and_then(|value| value.get_ref().as_table());
        let mut found = Vec::new();
        for (name, _, value) in groups.map(entries).unwrap_or_default() {
            let uploads = value.get_ref().as_table().and_then(|table| table.get("upload"));
            for upload in
                uploads.and_then(|value| value.get_ref().as_array()).into_iter().flat_map(|list| list.iter())
            {
                let Some(upload) = upload.get_ref().as_table() else { continue };
                let is_template = upload
                    .get("template")
                    .is_some_and(|value| matches!(value.get_ref(), DeValue::Boolean(true)));
                let from = upload.get("from").and_then(|value| value.get_ref().as_str());
                // Whatever is wrong with it is noted where it is read.
                let path = from.filter(|_| is_template).map(|from| self.local(from));
                let Some(path) = path.filter(|path| path.is_file()) else { continue };
                let template = self.text_of(&path).ok().and_then(|text| Template::new(&*text).ok());
                let of = format!("the group `{name}`");
                found.extend(template.map(|template| TemplateFile { of, path, template }));
            }
        }
        found
    }
}

/// The text of a file, if it is one that can be rendered.
fn text(path: &Path) -> Result<Arc<str>, Problem> {
    let bytes = match read_at_most(path, TEMPLATE_OUTPUT_LIMIT as u64) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            let message = format!(
                "`{}` is larger than {} KiB, which is too much for a template",
                path.display(),
                TEMPLATE_OUTPUT_LIMIT >> 10
            );
            let help = "without `template`, a file of any size is uploaded as it is".to_owned();
            return Err(Problem::general(message).help(help));
        }
        Err(error) => return Err(unreadable(0..0, path, &error)),
    };
    let file: Arc<Path> = path.into();
    let wrong = |at: usize, length, message: &str| {
        let help = "a template is a text; without `template`, any file is uploaded as it is".to_owned();
        let text = String::from_utf8_lossy(&bytes);
        Problem::general(message).help(help).within(&file, &text, Some(at..at + length))
    };
    match std::str::from_utf8(&bytes) {
        Err(error) => {
            let length = char::REPLACEMENT_CHARACTER.len_utf8();
            Err(wrong(error.valid_up_to(), length, "this file isn't UTF-8 from here on"))
        }
        // The engine's own delimiters have it.
        Ok(text) => match text.find('\0') {
            Some(at) => Err(wrong(at, 1, "this file holds a NUL character, which no text does")),
            None => Ok(text.into()),
        },
    }
}
