//! Who a program runs as, by the sandbox's own files: passwd(5) and group(5).

use std::fs;
use std::path::PathBuf;

use rustix::process::{Gid, Uid};

use super::Error;

/// Groups that one user may be in: Linux's `NGROUPS_MAX` is more, and nobody's.
const MAX_GROUPS: usize = 1024;

/// A user, with all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: PathBuf,
}

impl Identity {
    /// Whom `user` means: `user`, `uid`, either with `:group` or `:gid`; empty is root.
    pub(super) fn find(user: &str) -> Result<Self, Error> {
        // An image may come without them; numbers need neither.
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        Self::look_up(user, &passwd, &group)
    }

    fn look_up(user: &str, passwd: &str, group: &str) -> Result<Self, Error> {
        let (user, wanted_group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let entries = || passwd.lines().filter_map(PasswdEntry::parse);
        // A name goes before a number, as Docker has it.
        let known = entries().find(|entry| entry.name == user).or_else(|| {
            let uid: u32 = user.parse().ok()?;
            entries().find(|entry| entry.uid == uid)
        });
        let number = || user.parse().map_err(|_| Error::Unknown("user", user.to_owned()));
        let uid = known.as_ref().map_or_else(number, |entry| Ok(entry.uid))?;
        let groups = || group.lines().filter_map(GroupEntry::parse);
        let gid = match wanted_group {
            None => known.as_ref().map_or(0, |entry| entry.gid),
            Some(name) => match groups().find(|entry| entry.name == name) {
                Some(entry) => entry.gid,
                None => name.parse().map_err(|_| Error::Unknown("group", name.to_owned()))?,
            },
        };
        // Only a user who said no group is in those that the files say.
        let name = known.as_ref().filter(|_| wanted_group.is_none()).map(|entry| entry.name);
        let member =
            |entry: &GroupEntry<'_>| name.is_some_and(|name| entry.members.split(',').any(|m| m == name));
        let others = groups().filter(member).map(|entry| entry.gid).take(MAX_GROUPS);
        let home = known.map_or("/", |entry| entry.home);
        Ok(Self { uid, gid, groups: others.collect(), home: home.into() })
    }

    /// Gives it the streams that it has, so that it can open them again by `/dev/stdout`.
    pub(super) fn own_streams(&self) {
        if self.uid == 0 {
            return;
        }
        let owner = Some(Uid::from_raw(self.uid));
        // What cannot be given away, such as `/dev/null`, anybody may open.
        rustix::fs::fchown(rustix::stdio::stdin(), owner, None).ok();
        rustix::fs::fchown(rustix::stdio::stdout(), owner, None).ok();
        rustix::fs::fchown(rustix::stdio::stderr(), owner, None).ok();
    }

    /// Becomes it.
    pub(super) fn assume(&self) -> Result<(), Error> {
        let failed = super::step("become the user that it is to run as");
        let groups: Vec<_> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(&failed)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(&failed)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(&failed)
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(Self { name, uid, gid, home })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:\nbroken\nbare:x:7:8\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nstaff:x:50:web,other\nadm:x:4:web\n";

    fn of(user: &str) -> Option<(u32, u32, Vec<u32>, String)> {
        let found = Identity::look_up(user, PASSWD, GROUP).ok()?;
        Some((found.uid, found.gid, found.groups, found.home.display().to_string()))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(of(""), Some((0, 0, vec![], "/root".into())));
        assert_eq!(of("web"), Some((33, 33, vec![50, 4], "/var/www".into())));
        assert_eq!(of("33"), of("web"));
        assert_eq!(of("web:staff"), Some((33, 50, vec![], "/var/www".into())));
        assert_eq!(of("1000:1001"), Some((1000, 1001, vec![], "/".into())));
        assert_eq!(of("1000"), Some((1000, 0, vec![], "/".into())), "as Docker has it");
        assert_eq!(of("bare"), Some((7, 8, vec![], "/".into())));
        assert_eq!(of("nobody"), None);
        assert_eq!(of("web:nogroup"), None);
        assert_eq!(of("-1"), None);
    }
}
