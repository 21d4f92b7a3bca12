//! What commands print: tables as `docker` has them, sizes and ages as people say them.

use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

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
    match (failed.code, failed.text.as_str()) {
        (_, "") => {}
        (0, text) => note(text),
        _ => note(&format!("error: {}", failed.words())),
    }
}

/// Says something that is no result.
pub(super) fn note(text: &str) {
    // Nobody reads it then.
    writeln!(io::stderr(), "{text}").ok();
}

/// The name of an image without what docker leaves away: `tiny:1` for `docker.io/library/tiny:1`.
pub(super) fn familiar(name: &str) -> &str {
    let Some(plain) = name.strip_prefix("docker.io/") else { return name };
    plain.strip_prefix("library/").unwrap_or(plain)
}

/// Time since an event, in docker's words.
pub(super) fn ago(time: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(time) {
        Ok(time) => format!("{} ago", human(now.duration_since(time).unwrap_or_default())),
        Err(_) => time.to_owned(),
    }
}

/// A duration, in docker's words.
pub(super) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    // As docker does, hours are rounded.
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
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
    fn image_names_are_as_short_as_dockers() {
        assert_eq!(familiar("docker.io/library/tiny:1"), "tiny:1");
        assert_eq!(familiar("docker.io/user/tiny:1"), "user/tiny:1");
        assert_eq!(familiar("ghcr.io/library/tiny:1"), "ghcr.io/library/tiny:1");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let at = |seconds| ago("1970-01-01T00:00:00Z", UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!((at(0), at(1)), ("Less than a second ago".into(), "1 second ago".into()));
        assert_eq!((at(59), at(60)), ("59 seconds ago".into(), "About a minute ago".into()));
        assert_eq!((at(120), at(3600)), ("2 minutes ago".into(), "About an hour ago".into()));
        assert_eq!((at(14 * 86_400), at(60 * 86_400)), ("2 weeks ago".into(), "2 months ago".into()));
        assert_eq!((at(7200), at(172_800)), ("2 hours ago".into(), "2 days ago".into()));
        assert_eq!((size(0), size(1023)), ("0 B".into(), "1023 B".into()));
        assert_eq!((size(1024), size(1_610_612_736)), ("1.0 KiB".into(), "1.5 GiB".into()));
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
        assert_eq!((clip("abc", 3), clip("abcd", 3)), ("abc".into(), "ab…".into()));
    }
}
