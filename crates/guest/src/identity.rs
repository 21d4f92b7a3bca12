//! Users and groups of the sandbox, by its own files: passwd(5) and group(5).

use std::fs;
use std::io;
use std::path::PathBuf;

use bouvet_wire::owner::{self, IdOutOfRange};
use rustix::process::{Gid, Uid};

/// Groups that one user may be in. Linux's `NGROUPS_MAX` is 65536.
const MAX_GROUPS: usize = 1024;

/// The files that name users and groups.
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Why a user or group cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no {kind} `{name}` in the sandbox")]
    Unknown { kind: &'static str, name: String },
    #[error("the {kind} `{id}` is out of range: {IdOutOfRange}")]
    Range { kind: &'static str, id: String },
    #[error("`{file}` gives `{name}` the id `{id}`: {IdOutOfRange}")]
    Entry { file: &'static str, name: String, id: String },
}

/// A user, with all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: PathBuf,
}

impl Identity {
    /// The user that `user` names: `user`, `uid`, either with `:group` or `:gid`; empty is root. The user is in `more`
    /// groups too: names and ids.
    pub(crate) fn find(user: &str, more: &[String]) -> Result<Self, Error> {
        // An image may come without them: ids need neither. Names in other encodings than UTF-8 do not fail.
        let read = |file| fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let (passwd, group) = (read(PASSWD).unwrap_or_default(), read(GROUP).unwrap_or_default());
        Self::look_up(user, more, &passwd, &group)
    }

    fn look_up(user: &str, more: &[String], passwd: &str, group: &str) -> Result<Self, Error> {
        let (user, wanted_group) = owner::split_user(user);
        let user = user.unwrap_or("0");
        let number = parse_id("user", user);
        let entries = || passwd.lines().filter_map(PasswdEntry::parse);
        // A name comes before a number, as in Docker.
        let known = entries().find(|entry| entry.name == user).or_else(|| {
            let uid = number.clone().ok()??;
            entries().find(|entry| owner::parse_id(entry.uid) == Ok(Some(uid)))
        });
        let ids = known.as_ref().map(PasswdEntry::ids).transpose()?;
        let uid = match ids {
            Some((uid, _)) => uid,
            None => number?.ok_or_else(|| unknown("user", user))?,
        };
        let groups = || group.lines().filter_map(GroupEntry::parse);
        let find_group = |name: &str| match groups().find(|entry| entry.name == name) {
            Some(entry) => entry.id(),
            None => parse_id("group", name)?.ok_or_else(|| unknown("group", name)),
        };
        let gid = match wanted_group {
            None => ids.map_or(0, |(_, gid)| gid),
            Some(name) => find_group(name)?,
        };
        // A user whose group is given is in no others of the file.
        let name = known.as_ref().filter(|_| wanted_group.is_none()).map(|entry| entry.name);
        let is_member =
            |entry: &GroupEntry<'_>| name.is_some_and(|name| entry.members.split(',').any(|m| m == name));
        let mut all: Vec<u32> =
            groups().filter(is_member).take(MAX_GROUPS).map(|entry| entry.id()).collect::<Result<_, _>>()?;
        for name in more {
            let gid = find_group(name)?;
            if !all.contains(&gid) {
                all.push(gid);
            }
        }
        let home = known.map_or("/", |entry| entry.home);
        Ok(Self { uid, gid, groups: all, home: home.into() })
    }

    /// Gives it the streams that it has, so that it can open them again by `/dev/stdout`.
    pub(crate) fn own_streams(&self) {
        if self.uid == 0 {
            return;
        }
        let owner = Some(Uid::from_raw(self.uid));
        // Files whose owner cannot be changed, such as `/dev/null`, are open to everybody.
        rustix::fs::fchown(rustix::stdio::stdin(), owner, None).ok();
        rustix::fs::fchown(rustix::stdio::stdout(), owner, None).ok();
        rustix::fs::fchown(rustix::stdio::stderr(), owner, None).ok();
    }

    /// Makes this thread the user.
    pub(crate) fn assume(&self) -> io::Result<()> {
        let groups: Vec<_> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        rustix::thread::set_thread_groups(&groups)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
    }
}

fn unknown(kind: &'static str, name: &str) -> Error {
    Error::Unknown { kind, name: name.to_owned() }
}

fn parse_id(kind: &'static str, text: &str) -> Result<Option<u32>, Error> {
    owner::parse_id(text).map_err(|_| Error::Range { kind, id: text.to_owned() })
}

/// The id in a line of `file` about `name`.
fn entry_id(file: &'static str, name: &str, id: &str) -> Result<u32, Error> {
    let wrong = || Error::Entry { file, name: name.to_owned(), id: id.to_owned() };
    owner::parse_id(id).ok().flatten().ok_or_else(wrong)
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: &'a str,
    gid: &'a str,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let (uid, gid) = (fields.nth(1)?, fields.next()?);
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(Self { name, uid, gid, home })
    }

    fn ids(&self) -> Result<(u32, u32), Error> {
        Ok((entry_id(PASSWD, self.name, self.uid)?, entry_id(PASSWD, self.name, self.gid)?))
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: &'a str,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, gid) = (fields.next()?, fields.nth(1)?);
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    fn id(&self) -> Result<u32, Error> {
        entry_id(GROUP, self.name, self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:\nbroken\nbare:x:7:8\n\
                         all:x:4294967295:0::/:\ngroupless:x:9:4294967295::/:\nodd:x:1x:1::/:\n";
    const GROUPS: &str = "root:x:0:\nweb:x:33:\nstaff:x:50:web,other\nadm:x:4:web\nhuge:x:2147483648:bare\n";

    fn find(user: &str, more: &[&str]) -> Result<Identity, Error> {
        let more: Vec<_> = more.iter().map(|name| (*name).to_owned()).collect();
        Identity::look_up(user, &more, USERS, GROUPS)
    }

    fn of(user: &str) -> Option<(u32, u32, Vec<u32>, String)> {
        let found = find(user, &[]).ok()?;
        Some((found.uid, found.gid, found.groups, found.home.display().to_string()))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(of(""), Some((0, 0, vec![], "/root".into())));
        assert_eq!(of("web"), Some((33, 33, vec![50, 4], "/var/www".into())));
        assert_eq!(of("33"), of("web"));
        assert_eq!(of("web:staff"), Some((33, 50, vec![], "/var/www".into())));
        assert_eq!(of("1000:1001"), Some((1000, 1001, vec![], "/".into())));
        assert_eq!(of("1000"), Some((1000, 0, vec![], "/".into())), "as in Docker");
        assert_eq!(of("1000:"), of("1000"));
        assert_eq!(of("web:"), of("web"));
        assert_eq!(of(":staff"), Some((0, 50, vec![], "/root".into())));
        assert_eq!(of("nobody"), None);
        assert_eq!(of("web:nogroup"), None);
    }

    #[test]
    fn ids_out_of_range_are_refused_everywhere() {
        let range = |kind, id: &str| Err(Error::Range { kind, id: id.into() });
        assert_eq!(of("2147483647:2147483647"), Some((2_147_483_647, 2_147_483_647, vec![], "/".into())));
        for id in ["2147483648", "4294967295", "-1"] {
            assert_eq!(find(id, &[]), range("user", id));
            assert_eq!(find(&format!("0:{id}"), &[]), range("group", id));
            assert_eq!(find("0", &[id]), range("group", id));
        }
        let entry = |file, name: &str, id: &str| Err(Error::Entry { file, name: name.into(), id: id.into() });
        assert_eq!(find("all", &[]), entry(PASSWD, "all", "4294967295"));
        assert_eq!(find("groupless", &[]), entry(PASSWD, "groupless", "4294967295"));
        assert_eq!(find("odd", &[]), entry(PASSWD, "odd", "1x"));
        assert_eq!(find("bare", &[]), entry(GROUP, "huge", "2147483648"));
        assert_eq!(find("web:huge", &[]), entry(GROUP, "huge", "2147483648"));
    }

    #[test]
    fn added_groups_are_those_of_any_user() {
        let groups = |user: &str, more: &[&str]| find(user, more).map(|found| found.groups);
        assert_eq!(groups("web", &["77", "staff", "77"]), Ok(vec![50, 4, 77]));
        assert_eq!(groups("1000:1000", &["adm"]), Ok(vec![4]));
        assert_eq!(groups("", &["none"]), Err(unknown("group", "none")));
    }
}
