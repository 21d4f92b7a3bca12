//! The files that name a sandbox: `/etc/hostname`, `/etc/hosts`, `/etc/machine-id`; and how files of `/etc` are written
//! that an image may have, in whatever form.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bouvet_wire::v1;

/// Everybody may read them.
const FILE_MODE: u32 = 0o644;
/// The address of a host that is on no network, as Debian's installer chooses it.
const WITHOUT_NETWORK: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));
/// There if the kernel has IPv6.
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6";

/// Why the names were not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{0}` is not an address")]
    Address(String),
    #[error("could not set the hostname")]
    Hostname(#[source] io::Error),
    #[error("could not write `{0}`")]
    File(&'static str, #[source] io::Error),
}

/// The names that were applied last: a clone that waited has its names already.
#[derive(Debug, Default)]
pub(crate) struct Names {
    hostname: String,
    files: [(&'static str, String); 3],
}

impl Names {
    /// Sets what `request` changes.
    pub(crate) fn apply(&mut self, request: &v1::PersonaliseRequest) -> Result<(), Error> {
        let mut addresses = addresses(request)?;
        if !Path::new(IPV6_SETTINGS).exists() {
            addresses.retain(IpAddr::is_ipv4);
        }
        if self.hostname != request.hostname {
            rustix::system::sethostname(request.hostname.as_bytes())
                .map_err(|error| Error::Hostname(error.into()))?;
            self.hostname.clone_from(&request.hostname);
        }
        let wanted = texts(&request.hostname, &request.machine_id, &hosts(request, &addresses));
        for (present, wanted) in self.files.iter_mut().zip(wanted) {
            if *present != wanted {
                put(Path::new(wanted.0), &wanted.1).map_err(|error| Error::File(wanted.0, error))?;
                *present = wanted;
            }
        }
        Ok(())
    }
}

/// Writes the files with names that are nobody's. A clone of this VM then changes a few bytes in place, where its first
/// write would copy files from the base disk.
pub(crate) fn prepare() -> Result<(), Error> {
    crate::places::make(Path::new("/etc")).map_err(|error| Error::File("/etc", error))?;
    let nobody = v1::PersonaliseRequest { hostname: "sandbox-00000000".into(), ..Default::default() };
    let machine_id = "00000000000000000000000000000000";
    for (path, text) in texts(&nobody.hostname, machine_id, &hosts(&nobody, &[])) {
        put(Path::new(path), &text).map_err(|error| Error::File(path, error))?;
    }
    Ok(())
}

fn texts(hostname: &str, machine_id: &str, hosts: &str) -> [(&'static str, String); 3] {
    [
        ("/etc/machine-id", format!("{machine_id}\n")),
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts.to_owned()),
    ]
}

fn addresses(request: &v1::PersonaliseRequest) -> Result<Vec<IpAddr>, Error> {
    let parse = |text: &String| text.parse().map_err(|_| Error::Address(text.clone()));
    request.addresses.iter().map(parse).collect()
}

/// The text of `/etc/hosts`: Docker's, with the sandbox's own addresses behind its name.
fn hosts(request: &v1::PersonaliseRequest, own: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for v1::HostEntry { address, name } in &request.hosts {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    // A name with a domain is found without it, too.
    let name = match request.hostname.split_once('.') {
        Some((short, _)) => format!("{} {short}", request.hostname),
        None => request.hostname.clone(),
    };
    for address in if own.is_empty() { &[WITHOUT_NETWORK] } else { own } {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// Makes `text` the content of the file `path`, for everybody to read.
///
/// A link there, to what a service that does not run would write, is replaced and not followed; a directory is an error.
/// A file that is as long already is not cut off first.
pub(crate) fn put(path: &Path, text: &str) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() && !found.is_dir() => fs::remove_file(path)?,
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(FILE_MODE).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    let metadata = file.metadata()?;
    if metadata.len() != text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    if metadata.permissions().mode() & 0o7777 != FILE_MODE {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    Ok(())
}

/// The addresses at which programs of the sandbox may listen, in the order in which they are tried.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own(Arc<Mutex<Vec<IpAddr>>>);

impl Own {
    /// Learns the sandbox's addresses on its network.
    pub(crate) fn set(&self, request: &v1::PersonaliseRequest) -> Result<(), Error> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses(request)?;
        Ok(())
    }

    /// The loopback interface's, and those behind the sandbox's own name.
    pub(crate) fn all(&self) -> Vec<IpAddr> {
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = if own.is_empty() { &[WITHOUT_NETWORK][..] } else { &own };
        [Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()]
            .iter()
            .chain(own)
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn request(hostname: &str) -> v1::PersonaliseRequest {
        let hosts = vec![v1::HostEntry { address: "192.0.2.7".into(), name: "db".into() }];
        v1::PersonaliseRequest { hostname: hostname.into(), hosts, ..Default::default() }
    }

    fn last_lines(text: &str, count: usize) -> Vec<&str> {
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len() - count..].to_vec()
    }

    #[test]
    fn own_name_has_own_addresses() {
        let own = ["10.0.2.15", "fd00::15"].map(|text| text.parse().unwrap());
        let text = hosts(&request("web"), &own);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost "), "{text}");
        assert_eq!(last_lines(&text, 3), ["192.0.2.7\tdb", "10.0.2.15\tweb", "fd00::15\tweb"]);
    }

    #[test]
    fn own_name_without_network_is_127_0_1_1() {
        let text = hosts(&request("web.example.com"), &[]);
        assert_eq!(last_lines(&text, 1), ["127.0.1.1\tweb.example.com web"]);
        assert_eq!(text.lines().filter(|line| line.starts_with("127.0.0.1")).count(), 1);
        let all: Vec<_> = Own::default().all().iter().map(ToString::to_string).collect();
        assert_eq!(all, ["127.0.0.1", "::1", "127.0.1.1"]);
    }

    #[test]
    fn wrong_address_is_refused() {
        let wrong = v1::PersonaliseRequest { addresses: vec!["10.0.2.15/24".into()], ..request("web") };
        assert!(matches!(Own::default().set(&wrong), Err(Error::Address(_))));
    }

    #[test]
    fn file_takes_the_place_of_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("hosts"), dir.path().join("elsewhere"));
        for target in [elsewhere.as_path(), Path::new("../run/nowhere"), Path::new("hosts")] {
            fs::write(&elsewhere, "the image's").unwrap();
            symlink(target, &path).unwrap();
            put(&path, "127.0.0.1 localhost\n").unwrap();
            assert!(!path.is_symlink());
            assert_eq!(fs::read(&elsewhere).unwrap(), b"the image's");
            assert_eq!(fs::read(&path).unwrap(), b"127.0.0.1 localhost\n");
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, "a longer text of the image's").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        put(&path, "short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, FILE_MODE);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        put(&path, "x").unwrap_err();
    }
}
