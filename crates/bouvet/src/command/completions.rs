//! `bouvet completions`.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use clap_complete::{Shell, generate};

use super::outcome::Failed;

/// A shell that completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
#[command(after_help = "For this Bash session: `source <(bouvet completions bash)`")]
pub(crate) struct Line {
    /// Shell
    shell: Name,
}

pub(super) fn run(line: &Line, names: &mut clap::Command) -> Result<u8, Failed> {
    let shell = match line.shell {
        Name::Bash => Shell::Bash,
        Name::Zsh => Shell::Zsh,
        Name::Fish => Shell::Fish,
    };
    // It would panic where nobody reads.
    let mut text = Vec::new();
    generate(shell, names, "bouvet", &mut text);
    io::stdout().write_all(&text)?;
    Ok(0)
}
