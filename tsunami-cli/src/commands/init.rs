//! `tsunami init`: an experiment file to begin with.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::{Context, Execute};
use crate::error::Error;
use crate::reporter::Verbosity;
use crate::terminal::{one_line, print, say};

/// Write an experiment file to begin with
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Init {
    /// The file, which must not be there yet, or `-` to print it
    #[arg(default_value = "experiment.toml")]
    file: PathBuf,
    /// What it is to show
    #[arg(long, value_enum, default_value_t = Template::First)]
    template: Template,
}

const EXAMPLES: &str = "\
Examples:
  tsunami init
  tsunami init redis.toml --template server
  tsunami init - --template sweep | less";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Template {
    /// Two machines on this computer that do one thing, with every key that most experiments need
    First,
    /// A server that clients are pointed at
    Server,
    /// A parameter with several values, measured and compared
    Sweep,
    /// Machines on Amazon EC2
    Aws,
}

impl Template {
    fn text(self) -> &'static str {
        match self {
            Self::First => include_str!("init/first.toml"),
            Self::Server => include_str!("init/server.toml"),
            Self::Sweep => include_str!("init/sweep.toml"),
            Self::Aws => include_str!("init/aws.toml"),
        }
    }
}

impl Execute for Init {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let text = self.template.text();
        if self.file == Path::new("-") {
            print(text)?;
            return Ok(0);
        }
        // Somebody's work of an hour may have the name.
        let created = OpenOptions::new().write(true).create_new(true).open(&self.file);
        let mut file = created.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Error::Usage(format!(
                "{} is there already, and is not overwritten: name another file, or `-` to print it",
                self.file.display()
            )),
            _ => Error::file("write", &self.file)(error),
        })?;
        file.write_all(text.as_bytes()).map_err(Error::file("write", &self.file))?;
        if context.verbosity != Verbosity::Quiet {
            let shown = self.file.to_string_lossy();
            let quoted = shlex::try_quote(&shown).unwrap_or_default();
            say(&format!("wrote {}", one_line(&shown)));
            say(&format!(
                "`tsunami plan {quoted}` shows what it would launch, `tsunami run {quoted}` runs it"
            ));
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use tsunami_core::experiment::Loader;

    use super::*;

    /// What those for this computer do when they are run is seen end to end.
    #[test]
    fn each_template_is_a_valid_file_without_anything_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let registry = crate::registry();
        for template in Template::value_variants() {
            let file = directory.path().join("x.toml");
            std::fs::write(&file, template.text()).unwrap();
            let loaded = Loader::new().registry(&registry).load(&file);
            if matches!(template, Template::Aws) && cfg!(not(feature = "aws")) {
                assert!(loaded.unwrap_err().to_string().contains("built without the provider"));
                continue;
            }
            assert!(loaded.is_ok(), "{template:?}: {}", loaded.unwrap_err());
        }
    }
}
