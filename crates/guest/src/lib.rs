//! Bouvet's code inside a VM.
//!
//! [`init`] is PID 1: it mounts the shared base and the sandbox's scratch disk, starts the service and from
//! then on only reaps. [`serve`] is the service: it answers the host over the link, and nothing else.
//! The two are separate processes, so that nothing that a host call does can take PID 1 down.

mod answers;
mod archive;
mod connect;
mod datagrams;
mod description;
pub mod enter;
mod exec;
mod files;
mod furnish;
mod identity;
pub mod init;
mod link;
mod names;
mod netlink;
mod network;
mod personalise;
mod places;
mod poll;
pub mod serve;
mod service;
mod sysctl;
mod volume;

/// Where the root of the sandbox's sidecar is mounted, if it has one.
const SIDECAR_ROOT: &str = "/run/bouvet/sidecar";
/// The service's own directory, in memory. An image's files of this name are hidden.
const RUN_DIR: &str = "/run/bouvet";

/// An error and its causes in one line: `could not do this: because of that`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
