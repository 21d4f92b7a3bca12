//! What commands print: tables as `docker` has them, sizes and ages as people say them.

use std::io::{self, Write as _};
use std::time::SystemTime;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
use serde::Serialize;

use super::outcome::Failed;

/// Spaces between two columns.
const GAP: u16 = 3;

/// Prints rows under their heads.
pub(super) fn print(heads: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failed> {
    Ok(writeln!(io::stdout(), "{}", layout(heads, rows))?)
}

/// The same as text.
pub(super) fn layout(heads: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads.iter().copied());
    for row in rows {
        // A sandbox may be called anything; a terminal obeys what it is told.
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP)).set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(1)));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// `text` without what would steer a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Prints JSON for programs, which people can read.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failed> {
    let text = serde_json::to_string_pretty(value).map_err(Failed::new)?;
    line(&text)
}

/// Prints a line.
pub(super) fn line(text: &str) -> Result<(), Failed> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Says why one of several things was not done.
pub(super) fn complain(failed: &Failed) {
    note(&format!("error: {}", failed.words()));
}

/// Says something that is no result.
pub(super) fn note(text: &str) {
    // Nobody reads it then.
    writeln!(io::stderr(), "{text}").ok();
}

/// How long ago something was, in one word and its number.
pub(super) fn ago(time: &str, now: SystemTime) -> String {
    let Ok(time) = humantime::parse_rfc3339(time) else { return time.to_owned() };
    let seconds = now.duration_since(time).unwrap_or_default().as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{number} {unit}{} ago", if number == 1 { "" } else { "s" })
}

/// Bytes in units of 1024.
pub(super) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let index = (bytes.max(1).ilog2() / 10).min(4);
    match index {
        0 => format!("{bytes} B"),
        _ => {
            let tenths = (u128::from(bytes) * 10) >> (10 * index);
            format!("{}.{} {}", tenths / 10, tenths % 10, units[index as usize])
        }
    }
}

/// The first characters of `text`, with a sign that there are more.
pub(super) fn clip(text: &str, length: usize) -> String {
    match text.chars().count() > length {
        true => text.chars().take(length.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn tables_have_no_lines_and_steer_no_terminal() {
        let rows = vec![vec!["1".into(), "a\u{1b}[2J".into()], vec!["22".into(), String::new()]];
        assert_eq!(layout(&["ID", "NAME"], rows), "ID   NAME\n1    a?[2J\n22");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let at = |seconds| ago("1970-01-01T00:00:00Z", UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!((at(1), at(119)), ("1 second ago".into(), "1 minute ago".into()));
        assert_eq!((at(7200), at(172_800)), ("2 hours ago".into(), "2 days ago".into()));
        assert_eq!((size(0), size(1023)), ("0 B".into(), "1023 B".into()));
        assert_eq!((size(1024), size(1_610_612_736)), ("1.0 KiB".into(), "1.5 GiB".into()));
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
        assert_eq!((clip("abc", 3), clip("abcd", 3)), ("abc".into(), "ab…".into()));
    }
}
