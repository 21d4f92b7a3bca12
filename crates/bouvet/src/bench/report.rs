//! What a run found out: its rows, what was left out, and the tables that people read.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::machine::Machine;
use super::targets::Verdict;

/// What a row's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Ms,
    /// Megabytes, of 10^6 bytes.
    #[serde(rename = "MB")]
    Mb,
    /// Megabytes a second.
    #[serde(rename = "MB/s")]
    MbPerSecond,
    /// So many a second.
    #[serde(rename = "/s")]
    PerSecond,
    /// Hundredths.
    #[serde(rename = "%")]
    Percent,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::Mb => "MB",
            Self::MbPerSecond => "MB/s",
            Self::PerSecond => "/s",
            Self::Percent => "%",
        }
    }
}

/// What was measured of one thing.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    /// Names the row in targets, and from one run to the next.
    pub(super) id: String,
    /// What was done, for people.
    pub(super) scenario: String,
    pub(super) unit: Unit,
    /// How many values there are.
    pub(super) runs: usize,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) targets: Vec<Verdict>,
}

impl Row {
    /// `None` without values.
    pub(super) fn new(id: &str, scenario: &str, unit: Unit, mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Self {
            id: id.to_owned(),
            scenario: scenario.to_owned(),
            unit,
            runs: values.len(),
            p50: percentile(&values, 50)?,
            p95: percentile(&values, 95)?,
            p99: percentile(&values, 99)?,
            min: *values.first()?,
            max: *values.last()?,
            targets: Vec::new(),
        })
    }
}

/// The least of the sorted values that at least `percent` of them do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied()
}

/// Milliseconds.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Something that was not measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Skipped {
    pub(super) scenario: String,
    pub(super) reason: String,
}

/// All of it. As JSON it is what `--json` writes; docs/performance.md describes it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) rows: Vec<Row>,
    pub(super) skipped: Vec<Skipped>,
    /// What is worth a sentence beside the figures.
    pub(super) notes: Vec<String>,
    /// What went wrong. A run with any ends in an error.
    pub(super) failures: Vec<String>,
}

impl Report {
    pub(super) fn add(&mut self, id: &str, scenario: &str, unit: Unit, values: Vec<f64>) {
        self.rows.extend(Row::new(id, scenario, unit, values));
    }

    pub(super) fn add_times(&mut self, id: &str, scenario: &str, times: &[Duration]) {
        self.add(id, scenario, Unit::Ms, times.iter().copied().map(ms).collect());
    }

    pub(super) fn skip(&mut self, scenario: &str, reason: impl Into<String>) {
        self.skipped.push(Skipped { scenario: scenario.to_owned(), reason: reason.into() });
    }

    /// The tables, in Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.machine);
        if !self.rows.is_empty() {
            text += "| scenario | runs | unit | p50 | p95 | p99 | min | max |\n";
            text += "|---|---|---|---|---|---|---|---|\n";
        }
        for row in &self.rows {
            let Row { runs, p50, p95, p99, min, max, .. } = row;
            let [p50, p95, p99, min, max] = [p50, p95, p99, min, max].map(|value| number(*value));
            let (scenario, unit) = (cell(&row.scenario), row.unit.name());
            // Writing to a string cannot fail.
            writeln!(text, "| {scenario} | {runs} | {unit} | {p50} | {p95} | {p99} | {min} | {max} |").ok();
        }
        let verdicts: Vec<_> =
            self.rows.iter().flat_map(|row| row.targets.iter().map(move |verdict| (row, verdict))).collect();
        if !verdicts.is_empty() {
            text += "\n| target | | wanted | measured | met |\n|---|---|---|---|---|\n";
        }
        for (row, verdict) in verdicts {
            let (scenario, statistic) = (cell(&row.scenario), verdict.statistic.name());
            let (wanted, measured) = (cell(&verdict.wanted(row.unit)), verdict.found(row.unit));
            let met = match verdict.met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            writeln!(text, "| {scenario} | {statistic} | {wanted} | {measured} | {met} |").ok();
        }
        let skipped =
            self.skipped.iter().map(|Skipped { scenario, reason }| format!("SKIPPED {scenario}: {reason}"));
        let failures = self.failures.iter().map(|failure| format!("FAILED {failure}"));
        let remarks: Vec<String> = self.notes.iter().cloned().chain(skipped).chain(failures).collect();
        if !remarks.is_empty() {
            writeln!(text, "\n- {}", remarks.join("\n- ")).ok();
        }
        text
    }
}

/// As many digits as say something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Text that stays within one cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: Vec<f64>) -> Row {
        Row::new("id", "a scenario", Unit::Ms, values).unwrap()
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred = row((1..=100).rev().map(f64::from).collect());
        assert_eq!((hundred.p50, hundred.p95, hundred.p99), (50.0, 95.0, 99.0));
        assert_eq!((hundred.min, hundred.max, hundred.runs), (1.0, 100.0, 100));
        let four = row(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((four.p50, four.p95, four.p99), (2.0, 4.0, 4.0));
        let one = row(vec![7.0]);
        assert_eq!((one.p50, one.p95, one.p99, one.min, one.max), (7.0, 7.0, 7.0, 7.0, 7.0));
    }

    #[test]
    fn nothing_measured_is_no_row() {
        assert!(Row::new("id", "a scenario", Unit::Ms, Vec::new()).is_none());
    }

    #[test]
    fn every_line_of_a_table_has_as_many_cells() {
        let mut report = Report::default();
        report.add("a", "a | b\nc", Unit::Mb, vec![1.0]);
        report.add_times("create-boot", "booted", &[Duration::from_millis(3000)]);
        report.add_times("create-pool", "pooled", &[Duration::from_millis(11)]);
        super::super::targets::judge(&mut report.rows);
        report.skip("podman with runsc", "runsc: not installed");
        let text = report.markdown();
        let cells =
            |line: &str| line.replace("\\|", "").chars().filter(|character| *character == '|').count();
        let tables: Vec<Vec<usize>> = text
            .split("\n\n")
            .filter(|part| part.starts_with('|'))
            .map(|table| table.lines().map(cells).collect())
            .collect();
        assert_eq!(tables, [vec![9; 5], vec![6; 4]]);
        assert!(text.contains("| pooled | p50 | at most 1/300 of booted | 1/273 | **no** |"), "{text}");
        assert!(text.ends_with("\n\n- SKIPPED podman with runsc: runsc: not installed\n"), "{text}");
    }
}
