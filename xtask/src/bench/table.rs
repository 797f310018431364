//! What came of the runs, as a table in Markdown.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::contenders::{MINIMAL_OPENSSH, MINIMAL_RUSSH};

/// One run of one contender.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// From its start to its end.
    pub(super) wall: Duration,
    /// What the contender and all that it started have used of processors.
    pub(super) controller: Duration,
    /// What the hosts have.
    pub(super) server: Duration,
    /// What anybody else has meanwhile, as a share of all processors.
    pub(super) others: f64,
    pub(super) connections: usize,
    pub(super) sessions: usize,
    /// How many hosts are set up, by the word of the contender and by what is found on them.
    pub(super) finished: usize,
    /// The most memory that the controller's processes held at a time, in bytes; in a run that is not timed.
    pub(super) memory: Option<u64>,
}

/// The runs of one contender.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) runs: Vec<Run>,
    pub(super) memory: Option<u64>,
}

/// Many contenders with one workload on so many machines.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) workload: &'static str,
    pub(super) machines: usize,
    /// In milliseconds.
    pub(super) round_trip: u64,
    pub(super) critical_path: Duration,
    pub(super) processors: usize,
    /// How processor time was counted.
    pub(super) means: &'static str,
    pub(super) rows: Vec<Row>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

impl Row {
    fn median(&self, value: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(value).collect())
    }

    fn wall(&self) -> f64 {
        self.median(|run| run.wall.as_secs_f64())
    }

    fn server(&self) -> f64 {
        self.median(|run| run.server.as_secs_f64())
    }

    /// On how many hosts it did its work in every run.
    fn finished(&self) -> usize {
        self.runs.iter().map(|run| run.finished).min().unwrap_or_default()
    }
}

impl Table {
    fn is_whole(&self, row: &Row) -> bool {
        row.finished() == self.machines
    }

    /// What the hosts themselves need at least, on this computer, by what they needed for the contender who asked least
    /// of them. In seconds; of contenders who did all of the work.
    fn least_server(&self) -> Option<f64> {
        self.rows.iter().filter(|row| self.is_whole(row)).map(Row::server).min_by(f64::total_cmp)
    }

    /// How long it takes a contender who needs no time for anything himself, in seconds.
    fn bound(&self) -> Option<f64> {
        let servers = self.least_server()? / self.processors as f64;
        Some(servers.max(self.critical_path.as_secs_f64()))
    }

    /// How often the time of a contender who did all of the work is in that of another one.
    fn ratio(&self, row: &Row, to: &str) -> Option<f64> {
        let to = self.rows.iter().find(|row| row.name == to && self.is_whole(row))?;
        self.is_whole(row).then(|| row.wall() / to.wall())
    }

    /// As Markdown: those who did all of the work first, the fastest first.
    pub(super) fn markdown(&self) -> String {
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| !row.runs.is_empty()).collect();
        rows.sort_by(|a, b| {
            let whole = self.is_whole(b).cmp(&self.is_whole(a));
            whole.then(a.wall().total_cmp(&b.wall()))
        });
        let mut text = format!("**{} on {} machines", self.workload, self.machines);
        if self.round_trip > 0 {
            let _ = write!(text, ", {} ms of latency", self.round_trip);
        }
        text += "**: ";
        text += &match (self.bound(), self.least_server()) {
            (Some(bound), Some(server)) => format!(
                "bound {bound:.2} s (critical path {:.2} s; least server CPU {server:.2} s on {} processors)",
                self.critical_path.as_secs_f64(),
                self.processors,
            ),
            _ => "no bound, since nobody finished".to_owned(),
        };
        let others = self.rows.iter().flat_map(|row| &row.runs).map(|run| run.others).fold(0.0, f64::max);
        let _ = writeln!(
            text,
            ". CPU by {}. Others used up to {:.0} % of the processors.\n",
            self.means,
            100.0 * others
        );
        text += "| contender | wall s | min–max | / bound | / minimal openssh | / minimal russh | controller CPU ms a \
                 host | server CPU s | sessions a host | peak PSS MiB | finished |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
        for row in rows {
            let walls: Vec<f64> = row.runs.iter().map(|run| run.wall.as_secs_f64()).collect();
            let least = walls.iter().copied().fold(f64::INFINITY, f64::min);
            let most = walls.iter().copied().fold(0.0, f64::max);
            let machines = self.machines as f64;
            let controller = 1000.0 * row.median(|run| run.controller.as_secs_f64()) / machines;
            let bound = self.bound().filter(|_| self.is_whole(row)).map(|bound| row.wall() / bound);
            let _ = writeln!(
                text,
                "| {} | {:.2} | {least:.2}–{most:.2} | {} | {} | {} | {controller:.1} | {:.2} | {:.1} | {} | {}/{} |",
                row.name,
                row.wall(),
                or_nothing(bound, 2),
                or_nothing(self.ratio(row, MINIMAL_OPENSSH), 2),
                or_nothing(self.ratio(row, MINIMAL_RUSSH), 2),
                row.server(),
                row.median(|run| run.sessions as f64) / machines,
                or_nothing(row.memory.map(|bytes| bytes as f64 / f64::from(1 << 20)), 0),
                row.finished(),
                self.machines,
            );
        }
        text
    }

    /// A line of JSON a contender, with all that was measured.
    pub(super) fn json(&self) -> String {
        let run = |run: &Run| {
            json!({
                "wall": run.wall.as_secs_f64(),
                "controller_cpu": run.controller.as_secs_f64(),
                "server_cpu": run.server.as_secs_f64(),
                "others": run.others,
                "connections": run.connections,
                "sessions": run.sessions,
                "finished": run.finished,
            })
        };
        let row = |row: &Row| {
            json!({
                "workload": self.workload,
                "machines": self.machines,
                "rtt_ms": self.round_trip,
                "processors": self.processors,
                "accounting": self.means,
                "bound": self.bound(),
                "contender": row.name,
                "runs": row.runs.iter().map(run).collect::<Vec<Value>>(),
                "peak_memory": row.memory,
            })
        };
        self.rows.iter().map(|it| format!("{}\n", row(it))).collect()
    }
}

fn or_nothing(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, walls: &[f64], server: f64, finished: usize) -> Row {
        let run = |wall: &f64| Run {
            wall: Duration::from_secs_f64(*wall),
            controller: Duration::from_millis(80),
            server: Duration::from_secs_f64(server),
            others: 0.0,
            connections: 4,
            sessions: 28,
            finished,
            memory: None,
        };
        Row { name, runs: walls.iter().map(run).collect(), memory: Some(3 << 20) }
    }

    fn table(critical_path: f64, rows: Vec<Row>) -> Table {
        Table {
            workload: "W2",
            machines: 4,
            round_trip: 0,
            critical_path: Duration::from_secs_f64(critical_path),
            processors: 2,
            means: "nothing",
            rows,
        }
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn a_bound_takes_no_word_of_who_did_not_do_all_of_the_work() {
        let rows = vec![
            row("tsunami", &[6.0, 5.0, 4.0], 8.0, 4),
            row(MINIMAL_RUSSH, &[2.5, 2.5], 3.0, 4),
            row(MINIMAL_OPENSSH, &[0.1], 0.1, 3),
        ];
        let table = table(1.0, rows);
        assert_eq!(table.bound(), Some(1.5));
        assert_eq!(table.ratio(&table.rows[0], MINIMAL_RUSSH), Some(2.0));
        assert_eq!(table.ratio(&table.rows[0], MINIMAL_OPENSSH), None);
        assert_eq!(table.ratio(&table.rows[2], MINIMAL_RUSSH), None);
        let text = table.markdown();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        assert_eq!(
            lines,
            [
                "| minimal-russh | 2.50 | 2.50–2.50 | 1.67 | – | 1.00 | 20.0 | 3.00 | 7.0 | 3 | 4/4 |",
                "| tsunami | 5.00 | 4.00–6.00 | 3.33 | – | 2.00 | 20.0 | 8.00 | 7.0 | 3 | 4/4 |",
                "| minimal-openssh | 0.10 | 0.10–0.10 | – | – | – | 20.0 | 0.10 | 7.0 | 3 | 3/4 |",
            ]
        );
    }

    #[test]
    fn the_critical_path_bounds_what_servers_do_not() {
        assert_eq!(table(1.0, vec![row("a", &[2.0], 0.5, 4)]).bound(), Some(1.0));
        assert_eq!(table(1.0, vec![row("a", &[2.0], 0.5, 3)]).bound(), None);
    }
}
