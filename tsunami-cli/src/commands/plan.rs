//! `tsunami plan`: what a run would launch, checked as far as it can be without touching anything.

use std::fmt::Write as _;

use tsunami_core::{Price, State, Tsunami};

use super::load;
use crate::args::FileArgs;
use crate::compose::{self, Backend};
use crate::error::Error;
use crate::terminal::print;

pub(crate) async fn plan(args: &FileArgs) -> Result<u8, Error> {
    let experiment = load(args)?;
    let Backend { provider, connector } =
        Backend::of(&experiment, args.accept_new_hosts, &State::standard()?);
    let plan = compose::plan(&experiment)?;
    let quotes = Tsunami::new(provider, connector).quote(&plan).await?;
    let lifetime = humantime::format_duration(experiment.lifetime);
    let mut text =
        format!("{}: {} machines, for at most {lifetime}\n", experiment.name, experiment.machines().count());
    let mut total = Some(0.0);
    for (group, quote) in experiment.groups.iter().zip(quotes) {
        let price = match quote.price {
            Price::Free => "free".to_owned(),
            Price::PerHour(dollars) => {
                total = total.map(|total| total + dollars * f64::from(group.size.count()));
                format!("${dollars:.4}/h each")
            }
            Price::Unknown => {
                total = None;
                "price unknown".to_owned()
            }
        };
        let _ =
            writeln!(text, "  {:<16} {:>5} x {}, {price}", group.name, group.size.count(), quote.description);
    }
    for step in &experiment.steps {
        let _ = writeln!(text, "  step {:<11} on {}", step.name, step.on.join(", "));
    }
    let _ = match total.map(|hourly| (hourly, hourly * experiment.lifetime.as_secs_f64() / 3600.0)) {
        Some((0.0, _)) => writeln!(text, "costs nothing"),
        Some((hourly, most)) => writeln!(text, "${hourly:.2} an hour, ${most:.2} at most"),
        None => writeln!(text, "the price is not known"),
    };
    print(&text)?;
    Ok(0)
}
