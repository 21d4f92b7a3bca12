//! `bouvet login` and `bouvet logout`.

use std::io::{self, Read as _, Write as _};

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::outcome::{Connection, Failed};
use super::{table, terminal};
use crate::api::client::path;
use crate::api::shape::LogoutView;

/// A password on standard input, in bytes: tokens have some thousand.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(crate) struct LoginLine {
    /// User name
    #[arg(short, long, value_name = "USER")]
    username: Option<String>,
    /// Password or token. Others can read it in the list of processes: prefer --password-stdin
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Host of the registry, with its port if it has one
    #[arg(default_value = "docker.io", value_name = "REGISTRY")]
    registry: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutLine {
    /// Host of the registry, with its port if it has one
    #[arg(default_value = "docker.io", value_name = "REGISTRY")]
    registry: String,
}

pub(super) async fn login(line: &LoginLine, connection: &Connection) -> Result<u8, Failed> {
    let (username, password) = credentials(line)?;
    let told = json!({ "registry": line.registry, "username": username, "password": password });
    let path = path(&["registries", "login"], &[]);
    connection.client.call::<serde_json::Value>(Method::POST, &path, Some(&told)).await?;
    table::line("Login Succeeded")?;
    Ok(0)
}

pub(super) async fn logout(line: &LogoutLine, connection: &Connection) -> Result<u8, Failed> {
    let told = json!({ "registry": line.registry });
    let path = path(&["registries", "logout"], &[]);
    let LogoutView { registry, was_known } = connection.client.call(Method::POST, &path, Some(&told)).await?;
    table::line(&match was_known {
        true => format!("Removed the credentials for {registry}"),
        false => format!("Not logged in to {registry}"),
    })?;
    Ok(0)
}

fn credentials(line: &LoginLine) -> Result<(String, String), Failed> {
    let asks = terminal::is_input() && !line.password_stdin;
    let username = match &line.username {
        Some(name) => name.clone(),
        None if asks => prompt("Username: ")?,
        None => {
            return Err(Failed::new("no terminal is attached to ask for the user name")
                .hint(whole_line(&line.registry)));
        }
    };
    let password = if let Some(password) = &line.password {
        table::note("WARNING! `--password` is insecure: other users can read it. Use `--password-stdin`.");
        password.clone()
    } else if line.password_stdin {
        let mut password = String::new();
        let read = io::stdin().take(MAX_PASSWORD_BYTES + 1).read_to_string(&mut password)?;
        if read as u64 > MAX_PASSWORD_BYTES {
            return Err(Failed::new(format!("the password has more than {MAX_PASSWORD_BYTES} bytes")));
        }
        // A file or `echo` ends in a line break; a password may end in blanks.
        password.trim_end_matches(['\r', '\n']).to_owned()
    } else if asks {
        let hidden = terminal::Hidden::new()?;
        let password = prompt("Password: ");
        drop(hidden);
        table::note("");
        password?
    } else {
        return Err(
            Failed::new("no terminal is attached to ask for the password").hint(whole_line(&line.registry))
        );
    };
    Ok((username, password))
}

/// A login without a terminal, as it can be typed.
fn whole_line(registry: &str) -> String {
    format!("`bouvet login --username USER --password-stdin {} < FILE`", registry.escape_debug())
}

/// Asks on standard error: standard output may go to a program.
fn prompt(question: &str) -> Result<String, Failed> {
    write!(io::stderr(), "{question}")?;
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim_end_matches(['\r', '\n']).to_owned())
}
