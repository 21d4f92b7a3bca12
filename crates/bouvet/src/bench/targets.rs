//! What the scenarios should reach. Most targets are a part of another row of the same run, so that neither a
//! slow machine nor a busy one changes the verdict.

use serde::Serialize;

use super::report::{Row, Unit, number};

/// Which of a row's figures counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Statistic {
    P50,
    P99,
}

impl Statistic {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
        }
    }

    fn of(self, row: &Row) -> f64 {
        match self {
            Self::P50 => row.p50,
            Self::P99 => row.p99,
        }
    }
}

/// On which side of the bound a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Side {
    AtMost,
    AtLeast,
}

/// What the bound is a multiple of.
#[derive(Debug, Clone, Copy)]
enum Basis {
    /// The row's own unit.
    Unit,
    /// The median of the row with this id.
    Row(&'static str),
}

#[derive(Debug)]
struct Target {
    row: &'static str,
    statistic: Statistic,
    side: Side,
    factor: f64,
    basis: Basis,
}

const fn target(row: &'static str, statistic: Statistic, side: Side, factor: f64, basis: Basis) -> Target {
    Target { row, statistic, side, factor, basis }
}

#[rustfmt::skip] // one target is one line
const TARGETS: &[Target] = {
    use {Basis::{Row, Unit}, Side::{AtLeast, AtMost}, Statistic::{P50, P99}};
    &[
        target("create-pool", P50, AtMost, 1.0 / 300.0, Row("create-boot")),
        target("create-pool", P99, AtMost, 1.0 / 60.0, Row("create-boot")),
        target("create-clone", P50, AtMost, 1.0 / 20.0, Row("create-boot")),
        target("first-result-pool", P50, AtMost, 60.0, Unit),
        target("first-result-pool", P50, AtMost, 1.0, Row("podman-crun-run-python")),
        target("true-later", P50, AtMost, 20.0, Unit),
        target("python-later", P50, AtMost, 1.0 / 3.0, Row("python3-later")),
        target("lines-context", P50, AtMost, 1.0, Row("lines")),
        target("port-request", P50, AtMost, 10.0, Unit),
        target("port-down", P50, AtLeast, 20.0, Unit),
        target("port-up", P50, AtLeast, 20.0, Unit),
        target("network-down", P50, AtLeast, 1.0, Row("slirp-down")),
        target("network-down", P50, AtLeast, 1.0 / 2.0, Row("passt-down")),
        target("network-up", P50, AtLeast, 1.0, Row("slirp-up")),
        target("network-up", P50, AtLeast, 1.0 / 2.0, Row("passt-up")),
        target("network-connections", P50, AtLeast, 1.0, Row("slirp-connections")),
        target("network-connections", P50, AtLeast, 1.0 / 2.0, Row("passt-connections")),
        target("network-added", P50, AtMost, 2.0, Row("slirp-added")),
        target("network-added", P50, AtMost, 2.0, Row("passt-added")),
        target("memory-fresh", P50, AtMost, 20.0, Unit),
        target("memory-python", P50, AtMost, 40.0, Unit),
        // Less than this rounds to 0 %: the kernel counts in ticks of 10 ms.
        target("pooled-cpu", P50, AtMost, 0.5, Unit),
        target("alive-answers", P50, AtLeast, 100.0, Unit),
        target("burst-default-answers", P50, AtLeast, 100.0, Unit),
        target("burst-default-rate", P50, AtLeast, 10.0, Unit),
        target("burst-full-answers", P50, AtLeast, 100.0, Unit),
        target("burst-full-rate", P50, AtLeast, 10.0, Unit),
        target("put-1mb", P50, AtLeast, 0.5, Row("link-write-1mb")),
        target("get-1mb", P50, AtLeast, 0.5, Row("link-read-1mb")),
        target("put-100mb", P50, AtLeast, 0.5, Row("link-write-100mb")),
        target("get-100mb", P50, AtLeast, 0.5, Row("link-read-100mb")),
        target("image-100mb-pull", P50, AtMost, 1.0, Row("podman-image-100mb-pull")),
        target("image-100mb-cache", P50, AtMost, 1.0, Row("podman-image-100mb-store")),
        target("image-100mb-later", P50, AtMost, 1.0 / 4.0, Row("image-100mb-first")),
        target("image-1gb-pull", P50, AtMost, 1.0, Row("podman-image-1gb-pull")),
        target("image-1gb-cache", P50, AtMost, 1.0, Row("podman-image-1gb-store")),
        target("image-1gb-later", P50, AtMost, 1.0 / 4.0, Row("image-1gb-first")),
        // What is not read costs nothing, however much there is of it.
        target("image-1gb-later", P50, AtMost, 1.5, Row("image-100mb-later")),
    ]
};

/// How a row did against one target.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Verdict {
    pub(super) statistic: Statistic,
    side: Side,
    /// The bound in the row's unit; nothing if what it is relative to was not measured.
    pub(super) bound: Option<f64>,
    measured: f64,
    /// The id of the row whose median the bound is a part of.
    relative_to: Option<&'static str>,
    /// What that row is called.
    #[serde(skip)]
    reference: Option<String>,
    factor: f64,
    /// The measured figure as a part of that median.
    ratio: Option<f64>,
    /// Nothing if it cannot be told.
    pub(super) met: Option<bool>,
}

impl Verdict {
    /// The target, in words.
    pub(super) fn wanted(&self, unit: Unit) -> String {
        let side = match self.side {
            Side::AtMost => "at most",
            Side::AtLeast => "at least",
        };
        let Some(id) = self.relative_to else { return format!("{side} {} {}", self.factor, unit.name()) };
        let part = match self.factor {
            factor if factor < 1.0 => part(factor),
            factor if factor > 1.0 => format!("{factor} times that"),
            _ => "that".to_owned(),
        };
        match &self.reference {
            Some(reference) => format!("{side} {part} of {reference}"),
            None => format!("{side} {part} of {id}, which was not measured"),
        }
    }

    /// What came of it, in the terms of the target.
    pub(super) fn found(&self, unit: Unit) -> String {
        match self.ratio {
            Some(ratio) => part(ratio),
            None => format!("{} {}", number(self.measured), unit.name()),
        }
    }
}

/// A part of a whole, as people say it.
fn part(ratio: f64) -> String {
    let inverse = 1.0 / ratio;
    match ratio {
        _ if ratio <= 0.0 || ratio >= 1.0 => format!("{ratio:.2} times"),
        _ if (inverse - inverse.round()).abs() < 1e-6 || inverse >= 100.0 => format!("1/{inverse:.0}"),
        _ => format!("1/{inverse:.1}"),
    }
}

/// Holds the rows against their targets.
pub(super) fn judge(rows: &mut [Row]) {
    let medians: Vec<_> = rows.iter().map(|row| (row.id.clone(), row.scenario.clone(), row.p50)).collect();
    for row in rows {
        let targets = TARGETS.iter().filter(|target| target.row == row.id);
        row.targets = targets.map(|target| verdict(target, row, &medians)).collect();
    }
}

fn verdict(target: &Target, row: &Row, medians: &[(String, String, f64)]) -> Verdict {
    let Target { statistic, side, factor, .. } = *target;
    let measured = statistic.of(row);
    let (relative_to, reference) = match target.basis {
        Basis::Unit => (None, None),
        Basis::Row(id) => (Some(id), medians.iter().find(|(other, ..)| other == id)),
    };
    let whole = match relative_to {
        None => Some(1.0),
        Some(_) => reference.map(|(.., median)| *median),
    };
    let bound = whole.map(|whole| whole * factor);
    Verdict {
        statistic,
        side,
        bound,
        measured,
        relative_to,
        reference: reference.map(|(_, scenario, _)| scenario.clone()),
        factor,
        ratio: reference.map(|(.., median)| measured / median),
        met: bound.map(|bound| match side {
            Side::AtMost => measured <= bound,
            Side::AtLeast => measured >= bound,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, unit: Unit, value: f64) -> Row {
        Row::new(id, id, unit, vec![value]).unwrap()
    }

    fn verdicts(mut rows: Vec<Row>) -> Vec<Verdict> {
        judge(&mut rows);
        rows.into_iter().flat_map(|row| row.targets).collect()
    }

    #[test]
    fn a_bound_holds_at_the_bound_and_not_past_it() {
        let met = |value| verdicts(vec![row("true-later", Unit::Ms, value)])[0].met;
        assert_eq!((met(20.0), met(20.01)), (Some(true), Some(false)));
        let met = |value| verdicts(vec![row("burst-full-rate", Unit::PerSecond, value)])[0].met;
        assert_eq!((met(10.0), met(9.99)), (Some(true), Some(false)));
    }

    #[test]
    fn a_part_is_of_the_other_row_s_median() {
        let rows = vec![row("create-boot", Unit::Ms, 3000.0), row("create-clone", Unit::Ms, 120.0)];
        let verdict = &verdicts(rows)[0];
        assert_eq!((verdict.bound, verdict.met), (Some(150.0), Some(true)));
        assert_eq!(verdict.wanted(Unit::Ms), "at most 1/20 of create-boot");
        assert_eq!(verdict.found(Unit::Ms), "1/25");
    }

    #[test]
    fn without_the_other_row_there_is_no_verdict() {
        let verdict = &verdicts(vec![row("create-clone", Unit::Ms, 120.0)])[0];
        assert_eq!((verdict.bound, verdict.met, verdict.ratio), (None, None, None));
        assert_eq!(verdict.wanted(Unit::Ms), "at most 1/20 of create-boot, which was not measured");
        assert_eq!(verdict.found(Unit::Ms), "120 ms");
        let verdict = &verdicts(vec![row("first-result-pool", Unit::Ms, 90.0)])[1];
        let wanted = "at most that of podman-crun-run-python, which was not measured";
        assert_eq!(verdict.wanted(Unit::Ms), wanted);
    }

    #[test]
    fn a_bound_may_be_more_than_the_other_row_s_median() {
        let rows = vec![row("image-1gb-later", Unit::Ms, 310.0), row("image-100mb-later", Unit::Ms, 200.0)];
        let verdict = &verdicts(rows)[1];
        assert_eq!((verdict.bound, verdict.met), (Some(300.0), Some(false)));
        assert_eq!(verdict.wanted(Unit::Ms), "at most 1.5 times that of image-100mb-later");
        assert_eq!(verdict.found(Unit::Ms), "1.55 times");
    }

    #[test]
    fn parts_read_well() {
        assert_eq!(part(1.0 / 300.0), "1/300");
        assert_eq!(part(1.0 / 3.6), "1/3.6");
        assert_eq!(part(0.5), "1/2");
        assert_eq!(part(1.5), "1.50 times");
        assert_eq!(part(0.0), "0.00 times");
    }
}
