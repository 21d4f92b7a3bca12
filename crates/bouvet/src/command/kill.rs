//! `bouvet kill`.

use std::ffi::OsString;

use clap::Args;
use hyper::Method;

use super::names::SandboxNames;
use super::outcome::{Connection, Failed, without_start};
use crate::api::client::{Client, path};

#[derive(Debug, Args)]
#[command(
    after_help = "A signal may also be given as in kill(1): `bouvet kill -9 SANDBOX`, `bouvet kill -HUP SANDBOX`."
)]
pub(crate) struct Line {
    /// Signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    #[command(flatten)]
    names: SandboxNames,
}

pub(super) async fn run(line: &Line, connection: &Connection) -> Result<u8, Failed> {
    let kill = async |client: &Client, name: &str| {
        let path = path(&["sandboxes", name, "kill"], &[("signal", &line.signal)]);
        client.act(Method::POST, &path).await.map_err(without_start)
    };
    connection.each(&line.names.sandboxes, kill).await
}

/// `arguments` of `bouvet` with a signal as kill(1) takes it (`-9`, `-HUP`) in the form of an option.
pub(crate) fn with_signal_option(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is = |at: usize, verb: &str| arguments.get(at).is_some_and(|typed| typed == verb);
    let before = match is(1, "kill") {
        true => 2,
        false if is(1, "container") && is(2, "kill") => 3,
        false => return arguments,
    };
    for argument in arguments.iter_mut().skip(before).take_while(|argument| *argument != "--") {
        let signal = argument.to_str().and_then(|text| text.strip_prefix('-'));
        // Options of one letter are lower case.
        let signal =
            signal.filter(|text| text.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit()));
        if let Some(signal) = signal {
            *argument = format!("--signal={signal}").into();
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_signals_become_options() {
        let with = |arguments: &[&str]| -> Vec<String> {
            let arguments = arguments.iter().map(OsString::from).collect();
            with_signal_option(arguments)
                .into_iter()
                .map(|argument| argument.into_string().unwrap())
                .collect()
        };
        assert_eq!(with(&["bouvet", "kill", "-9", "web"]), ["bouvet", "kill", "--signal=9", "web"]);
        assert_eq!(with(&["bouvet", "kill", "web", "-RTMIN+3"])[3], "--signal=RTMIN+3");
        assert_eq!(with(&["bouvet", "container", "kill", "-9", "web"])[3], "--signal=9");
        for same in [&["bouvet", "kill", "-s", "9", "--", "-9"][..], &["bouvet", "exec", "web", "-9"]] {
            assert_eq!(with(same), same);
        }
    }
}
