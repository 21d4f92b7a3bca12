//! Variables that programs find, besides those of their sandbox and their call.

use std::collections::HashMap;

/// Where programs are looked for.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `env`, with the variables that Docker sets too.
pub(super) fn foreign_environment(env: HashMap<String, String>) -> HashMap<String, String> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut all: HashMap<_, _> =
        [("PATH".to_owned(), PATH.to_owned()), ("HOSTNAME".to_owned(), hostname)].into();
    all.extend(env);
    all
}

/// Names the kind of terminal that programs with one expect, as Docker does.
pub(super) fn with_terminal(mut env: HashMap<String, String>, has_terminal: bool) -> HashMap<String, String> {
    if has_terminal {
        env.entry("TERM".into()).or_insert_with(|| "xterm".into());
    }
    env
}
