//! Descriptors of this process: how many there may be, and how many of them sandboxes may have it hold. What guests choose
//! the number of must not leave it without any for all else that it does.

use rustix::process::{Resource, Rlimit};

/// As many as a process may have at most on most systems (`fs.nr_open`), for where nothing else bounds them.
const MOST: u64 = 1024 * 1024;
/// One share is for files of volumes, one for sockets of networks, and one for all else.
const SHARES: u64 = 3;

/// What all sandboxes together may have of one kind: a third of what this process may have. The limit that it was started
/// with, which is for programs that cannot count further, is raised to the one that it may set itself.
pub(crate) fn share() -> usize {
    usize::try_from(raise() / SHARES).unwrap_or(usize::MAX)
}

/// How many there may be from now on.
fn raise() -> u64 {
    let Rlimit { current, maximum } = rustix::process::getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(MOST).min(MOST);
    let raised = Rlimit { current: Some(wanted), maximum };
    match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(_stays) => current.unwrap_or(MOST).min(MOST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be_and_shared_out() {
        let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
        // Enough for the tests beside this one.
        let few = maximum.map_or(4096, |most| most.min(4096));
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(few), maximum }).unwrap();
        let share = share();
        let now = rustix::process::getrlimit(Resource::Nofile);
        assert_eq!(now.current, Some(maximum.unwrap_or(MOST).min(MOST)));
        assert_eq!(now.maximum, maximum, "that is not ours to change");
        assert_eq!(Some(share as u64), now.current.map(|all| all / 3));
    }
}
