//! `tsunami plan`: what a run would launch, checked as far as it can be without touching anything.

use std::fmt::Write as _;
use std::time::Duration;

use tsunami_core::registry::Backend;
use tsunami_core::results::Secrets;
use tsunami_core::{Plan as CorePlan, Price, Quote, RunStore, Tsunami};

use super::{Context, Execute, load};
use crate::args::FileArgs;
use crate::backend;
use crate::error::Error;
use crate::terminal::{one_line, print};

/// How many machines of a step are named.
const NAMED: usize = 20;

/// Check an experiment file and show what it would launch; touches nothing
#[derive(Debug, clap::Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    file: FileArgs,
}

impl Execute for Plan {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let experiment = load(&self.file, context.registry)?;
        let state = RunStore::standard()?;
        let Backend { provider, connector, .. } =
            backend::of(context.registry, &experiment, self.file.accept_new_hosts, &state).await?;
        let plan = experiment.plan();
        let quotes = Tsunami::new(provider, connector).quote(&plan).await?;
        let lifetime = humantime::format_duration(experiment.lifetime);
        let mut text = format!(
            "{}: {} machines, for at most {lifetime}\n",
            experiment.name,
            experiment.machines().count()
        );
        let width = experiment.groups.iter().map(|group| group.name.len()).max().unwrap_or_default();
        for (group, quote) in experiment.groups.iter().zip(&quotes) {
            let mut title = group.name.as_str();
            for offer in &quote.offers {
                let count = if title.is_empty() { "or".to_owned() } else { group.count.to_string() };
                let (what, price) = (one_line(&offer.description), price(offer.price));
                let _ = writeln!(text, "  {title:<width$} {count:>5} x {what}, {price}");
                title = "";
            }
        }
        // Groups have much in common.
        let mut noted = Vec::new();
        for note in quotes.iter().flat_map(|quote| &quote.notes) {
            if !noted.contains(&note) {
                let _ = writeln!(text, "  {}", one_line(note));
                noted.push(note);
            }
        }
        let crowded = crate::too_few_open_files(experiment.machines().count());
        for warning in Secrets::of(&experiment).warnings().chain(crowded) {
            let _ = writeln!(text, "  {}", one_line(&warning));
        }
        for step in &experiment.steps {
            let mut on = step.on.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            if step.on.len() > NAMED {
                let _ = write!(on, " and {} more", step.on.len() - NAMED);
            }
            let _ = writeln!(text, "  step {:<11} on {on}", step.name);
        }
        let most = plan.max_cost(&quotes);
        let _ = match most.map(|most| (most, hourly(&plan, &quotes))) {
            Some((0.0, _)) => writeln!(text, "costs nothing"),
            Some((most, Some(hourly))) => {
                writeln!(text, "${hourly:.4} an hour as it looks now, ${most:.2} at most in its whole life")
            }
            Some((most, None)) => writeln!(text, "${most:.2} at most in its whole life"),
            None => writeln!(text, "what it may cost is not known"),
        };
        if let Some(budget) = plan.budget {
            let _ = match most.is_some_and(|most| most <= budget) {
                true => writeln!(text, "that is within the budget of ${budget:.2}"),
                false => writeln!(text, "that is not within the budget of ${budget:.2}: it would not be run"),
            };
        }
        print(&text)?;
        Ok(0)
    }
}

fn price(price: Price) -> String {
    match price {
        Price::Free => "free".to_owned(),
        Price::PerHour(dollars) => format!("${dollars:.4}/h each"),
        _ => "price unknown".to_owned(),
    }
}

/// What an hour of all machines costs if each group gets what is offered first.
fn hourly(plan: &CorePlan, quotes: &[Quote]) -> Option<f64> {
    let hour = Duration::from_secs(3600);
    let first = |quote: &Quote| quote.offers.first().map_or(Price::Unknown, |offer| offer.price);
    plan.groups.iter().zip(quotes).map(|(group, quote)| first(quote).dollars(group.count, hour)).sum()
}
