//! The files that a run writes. Whether they can be is seen before anything is measured.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use super::chart;
use super::line::Line;
use super::report::Report;

const END: &str = "<!-- end -->";

/// Where to write what.
#[derive(Debug)]
pub(super) struct Outputs {
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    markdown: Option<PathBuf>,
    block: Option<String>,
}

impl Outputs {
    /// Changes nothing.
    pub(super) fn check(line: &Line) -> anyhow::Result<Self> {
        let Line { json, svg, markdown, block, .. } = line.clone();
        let outputs = Self { json, svg, markdown, block };
        for file in [&outputs.json, &outputs.svg].into_iter().flatten() {
            let dir = std::path::absolute(file)?.parent().map(Path::to_owned);
            ensure!(dir.is_some_and(|dir| dir.is_dir()), "there is no directory for {}", file.display());
            ensure!(!file.is_dir(), "{} is a directory", file.display());
        }
        if let Some(file) = &outputs.markdown {
            outputs.insert(&read(file)?, "").with_context(|| file.display().to_string())?;
        }
        Ok(outputs)
    }

    pub(super) fn write(&self, report: &Report, tables: &str) -> anyhow::Result<()> {
        if let Some(file) = &self.json {
            let mut json = serde_json::to_string_pretty(report)?;
            json.push('\n');
            write(file, &json)?;
        }
        if let Some(file) = &self.svg {
            write(file, &chart::svg(report))?;
        }
        if let Some(file) = &self.markdown {
            write(file, &self.insert(&read(file)?, tables)?)?;
        }
        Ok(())
    }

    fn insert(&self, text: &str, tables: &str) -> anyhow::Result<String> {
        insert(text, self.block.as_deref(), tables)
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("could not read {}", file.display()))
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("could not write {}", file.display()))
}

/// Replaces what stands between the two lines of a block: of the one with this name, or without a name.
fn insert(text: &str, block: Option<&str>, tables: &str) -> anyhow::Result<String> {
    let first = block.map_or_else(|| "<!-- bench:".to_owned(), |block| format!("<!-- bench {block}:"));
    let place = || format!("it has no line that begins with `{first}` and after it none that is `{END}`");
    let begin = text.find(&format!("\n{first}")).with_context(place)? + 1;
    let begin = begin + text[begin..].find('\n').with_context(place)? + 1;
    let end = begin + text[begin..].find(END).with_context(place)?;
    Ok(format!("{}{tables}{}", &text[..begin], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_go_between_the_lines_and_replace_what_was_there() {
        let page = "# Title\n\n<!-- bench: generated -->\nold\n<!-- end -->\n\nText.\n";
        let once = insert(page, None, "| new |\n").unwrap();
        assert_eq!(once, "# Title\n\n<!-- bench: generated -->\n| new |\n<!-- end -->\n\nText.\n");
        assert_eq!(insert(&once, None, "| new |\n").unwrap(), once);
    }

    #[test]
    fn a_block_leaves_the_others_as_they_are() {
        let page = "#\n<!-- bench images: b -->\n1\n<!-- end -->\n\n<!-- bench: a -->\n2\n<!-- end -->\n";
        let images = insert(page, Some("images"), "new\n").unwrap();
        assert_eq!(images, page.replace('1', "new"));
        assert_eq!(insert(page, None, "new\n").unwrap(), page.replace('2', "new"));
        assert!(insert(page, Some("image"), "").is_err());
    }

    #[test]
    fn a_page_without_the_lines_is_refused() {
        for page in [
            "",
            "# Title\n",
            "\n<!-- bench: -->",
            "\n<!-- bench: -->\n",
            "\n<!-- end -->\n<!-- bench: -->\n",
            "\n<!-- bench images: -->\n<!-- end -->\n",
        ] {
            assert!(insert(page, None, "").is_err(), "{page:?}");
        }
    }

    #[test]
    fn what_was_measured_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| Some(dir.path().join(name));
        let page = dir.path().join("page.md");
        fs::write(&page, "# Title\n<!-- bench: -->\n<!-- end -->\n").unwrap();
        let outputs =
            Outputs { json: file("a.json"), svg: file("a.svg"), markdown: Some(page.clone()), block: None };
        let mut report = Report::default();
        report.add_times("create-pool", "pooled", &[std::time::Duration::from_millis(9)]);
        outputs.write(&report, &report.markdown()).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("a.json")).unwrap()).unwrap();
        assert_eq!((&json["rows"][0]["id"], &json["rows"][0]["unit"]), (&"create-pool".into(), &"ms".into()));
        assert_eq!(json["rows"][0]["p99"], 9.0);
        assert!(fs::read_to_string(dir.path().join("a.svg")).unwrap().starts_with("<svg "));
        assert!(fs::read_to_string(page).unwrap().contains("| pooled | 1 | ms | 9.00 |"));
    }
}
