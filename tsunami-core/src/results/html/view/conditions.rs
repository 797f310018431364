//! What happened beside the experiment.

use std::collections::BTreeMap;

use super::DataTable;
use super::machines::{numbered, remarks};
use crate::results::side_by_side::by_number;
use crate::{Report, SetReport};

/// What happened beside the experiment: void trials, disturbances, and what machines accounted for.
pub(super) fn conditions(report: &Report, sets: &[&SetReport], limit: usize) -> Vec<DataTable> {
    let mut tables = Vec::new();
    let odd =
        sets.iter().flat_map(|set| numbered(set)).map(|(name, machine)| vec![name.clone(), remarks(machine)]);
    let mut odd: Vec<Vec<String>> = odd.filter(|row| !row[1].is_empty()).collect();
    if !odd.is_empty() {
        let more = odd.len().saturating_sub(limit);
        odd.truncate(limit);
        tables.push(DataTable {
            caption: "Machines that are to be known of".to_owned(),
            heads: ["machine", "remarks"].map(str::to_owned).into(),
            rows: odd,
            more,
        });
    }
    let mut void: Vec<Vec<String>> = report
        .trials
        .iter()
        .filter_map(|trial| {
            let voided = trial.voided.as_ref()?;
            let reason = serde_json::to_value(voided.reason).ok()?;
            let machines = voided.machines.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
            Some(vec![
                trial.name.clone(),
                voided.trial.clone(),
                reason.as_str()?.to_owned(),
                machines,
                voided.text.clone(),
            ])
        })
        .collect();
    if !void.is_empty() {
        let more = void.len().saturating_sub(limit);
        void.truncate(limit);
        tables.push(DataTable {
            caption: "Trials that don’t count".to_owned(),
            heads: ["attempt", "of trial", "cause", "machines", "what happened"].map(str::to_owned).into(),
            rows: void,
            more,
        });
    }
    let mut disturbed = Vec::new();
    for trial in &report.trials {
        for account in &trial.accounts {
            let mut said: Vec<String> = account.disturbed.iter().cloned().collect();
            said.extend(account.kernel_messages.iter().take(3).cloned());
            let kills = account.oom_kills.filter(|kills| *kills > 0);
            said.extend(kills.map(|kills| format!("killed for want of memory: {kills}")));
            if !said.is_empty() {
                disturbed.push(vec![trial.name.clone(), account.machine.clone(), said.join("; ")]);
            }
        }
    }
    if !disturbed.is_empty() {
        let more = disturbed.len().saturating_sub(limit);
        disturbed.truncate(limit);
        tables.push(DataTable {
            caption: "Disturbances".to_owned(),
            heads: ["trial", "machine", "what was seen"].map(str::to_owned).into(),
            rows: disturbed,
            more,
        });
    }
    tables.extend(accounts(report, limit));
    tables
}

/// What machines accounted for over all trials.
fn accounts(report: &Report, limit: usize) -> Option<DataTable> {
    let mut sums: BTreeMap<_, [Option<f64>; 8]> = BTreeMap::new();
    for account in report.trials.iter().flat_map(|trial| &trial.accounts) {
        let own = [
            Some(account.seconds),
            account.cpu,
            account.own_cpu,
            account.steal,
            account.cpu_pressure,
            account.memory_pressure,
            account.io_pressure,
            account.throttled,
        ];
        let known = sums.entry(by_number(&account.machine)).or_default();
        for (sum, value) in known.iter_mut().zip(own) {
            *sum = value.map(|value| sum.unwrap_or_default() + value).or(*sum);
        }
    }
    let heads = [
        "machine",
        "watched",
        "CPU",
        "own CPU",
        "stolen",
        "waited for CPU",
        "for memory",
        "for disks",
        "throttled",
    ];
    let rows = sums.iter().take(limit).map(|((.., machine), sums)| {
        let shown = sums.map(|sum| sum.map(|sum| format!("{sum:.1}")).unwrap_or_default());
        std::iter::once((*machine).to_owned()).chain(shown).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let mut table = DataTable {
        caption: "Seconds that machines accounted for, over all trials".to_owned(),
        heads: heads.map(str::to_owned).into(),
        more: sums.len() - rows.len(),
        rows,
    };
    table.drop_empty_columns();
    (!table.rows.is_empty()).then_some(table)
}
