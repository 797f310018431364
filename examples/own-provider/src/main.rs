//! A `tsunami` that knows one provider more.

use std::process::ExitCode;
use std::sync::Arc;

use own_provider::NamespacesRegistration;

fn main() -> ExitCode {
    tsunami_cli::main(tsunami_cli::registry().with(Arc::new(NamespacesRegistration)))
}
