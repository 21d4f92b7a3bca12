//! Docker's flags for labels, mounts, published ports and restarts of a sandbox.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bouvet_host::BoxConfig;
use clap::Args;

use super::describe::absolute;
use crate::command::outcome::Failed;
use crate::command::usage;

/// Ports of one range: as many as a sandbox may have.
const MAX_RANGE_PORTS: u16 = 64;

/// Values of docker's flags.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Life")]
pub(super) struct Extra {
    /// Set a label, for `ps --filter label=NAME`
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Read labels from a file, one per line
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// When to restart the sandbox: `no`, `always`, `unless-stopped`, `on-failure[:NUMBER]`. A sandbox that is not
    /// persistent starts with a clean disk each time
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Write its id to a file that does not exist
    #[arg(long, value_name = "FILE")]
    pub(super) cidfile: Option<PathBuf>,
    #[command(flatten)]
    platform: usage::Platform,
    /// Mount a directory or file of this machine, or a file system in memory
    #[arg(long, value_name = "type=bind|tmpfs,source=HOST,target=GUEST[,readonly]")]
    mount: Vec<String>,
    /// Publish all ports that the image exposes, each on a free port of this machine
    #[arg(short = 'P', long)]
    pub(super) publish_all: bool,
}

impl Extra {
    /// Puts what was typed into a description.
    pub(super) fn describe(&self, config: &mut BoxConfig) -> Result<(), Failed> {
        self.platform.check()?;
        config.labels = self.labels()?;
        config.restart = self.restart.clone().unwrap_or_default();
        for text in &self.mount {
            match mount(text)? {
                Mount::Bind(volume) => config.volumes.push(volume),
                Mount::Memory(tmpfs) => config.tmpfs.push(tmpfs),
            }
        }
        let ports: Result<Vec<_>, _> = config.port_map.iter().map(|text| expand(text)).collect();
        config.port_map = ports?.concat();
        Ok(())
    }

    fn labels(&self) -> Result<BTreeMap<String, String>, Failed> {
        let mut labels = BTreeMap::new();
        let mut add = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            labels.insert(name.to_owned(), value.to_owned());
        };
        for file in &self.label_file {
            usage::lines_of(file)?.iter().for_each(|line| add(line));
        }
        self.label.iter().for_each(|text| add(text));
        Ok(labels)
    }

    /// Whether the file for the id can be made.
    pub(super) fn check_id_file(&self) -> Result<(), Failed> {
        match &self.cidfile {
            Some(path) if path.symlink_metadata().is_ok() => {
                Err(Failed::new(format!("the file `{}` of `--cidfile` exists", path.display()))
                    .hint("remove it if the sandbox in it is gone"))
            }
            _ => Ok(()),
        }
    }

    /// Writes the id of the sandbox that was made.
    pub(super) fn write_id(&self, id: &str) -> Result<(), Failed> {
        let Some(path) = &self.cidfile else { return Ok(()) };
        let failed =
            |error: std::io::Error| Failed::new(format!("could not write `{}`: {error}", path.display()));
        let mut file = File::create_new(path).map_err(failed)?;
        file.write_all(id.as_bytes()).map_err(failed)
    }
}

/// A mount, in the library's words.
#[derive(Debug, PartialEq, Eq)]
enum Mount {
    Bind(String),
    Memory(String),
}

fn mount(text: &str) -> Result<Mount, Failed> {
    let wrong = |allowed: &str| usage::wrong("--mount", text, allowed);
    let (mut kind, mut source, mut target, mut read_only) = (None, None, None, false);
    let mut options = Vec::new();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "type" => kind = Some(value),
            "source" | "src" => source = Some(value),
            "target" | "dst" | "destination" => target = Some(value),
            "readonly" | "ro" if matches!(value, "" | "true" | "1") => read_only = true,
            "readonly" | "ro" if matches!(value, "false" | "0") => read_only = false,
            "tmpfs-size" => options.push(format!("size={value}")),
            "tmpfs-mode" => options.push(format!("mode={value}")),
            _ => {
                return Err(wrong("type, source, target, readonly, tmpfs-size and tmpfs-mode are its parts"));
            }
        }
    }
    let target =
        target.filter(|target| !target.is_empty()).ok_or_else(|| wrong("`target=GUEST` must be in it"))?;
    match (kind, source) {
        (Some("bind"), Some(source)) if options.is_empty() => {
            let host = absolute("--mount", Path::new(source))?;
            if host.contains(':') || target.contains(':') {
                return Err(wrong("paths without `:` are allowed"));
            }
            Ok(Mount::Bind(format!("{host}:{target}{}", if read_only { ":ro" } else { "" })))
        }
        (Some("tmpfs"), None) => {
            options.extend(read_only.then(|| "ro".to_owned()));
            let options = options.join(",");
            Ok(Mount::Memory(if options.is_empty() {
                target.to_owned()
            } else {
                format!("{target}:{options}")
            }))
        }
        (Some("volume") | None, _) => {
            Err(wrong("there are no named volumes: `type=bind` and `type=tmpfs` are allowed"))
        }
        _ => Err(wrong("`type=bind` with `source=HOST`, and `type=tmpfs` without, are allowed")),
    }
}

/// `[[ADDRESS:]HOST:]GUEST[/udp]` whose ports may be ranges, as one text for each port.
fn expand(text: &str) -> Result<Vec<String>, Failed> {
    let (ports, protocol) = text.split_once('/').map_or((text, None), |(ports, name)| (ports, Some(name)));
    let (before, guest) =
        ports.rsplit_once(':').map_or((None, ports), |(before, guest)| (Some(before), guest));
    let (address, host) = match before {
        Some(before) => before.rsplit_once(':').map_or((None, Some(before)), |(a, h)| (Some(a), Some(h))),
        None => (None, None),
    };
    let is_range = guest.contains('-') || host.is_some_and(|host| host.contains('-'));
    if !is_range {
        return Ok(vec![text.to_owned()]);
    }
    let allowed = format!(
        "ranges of the same length, of at most {MAX_RANGE_PORTS} ports, are allowed: `8000-8010:80-90`"
    );
    let wrong = || usage::wrong("--publish", text, &allowed);
    let guests = range(guest).ok_or_else(wrong)?;
    let hosts = host.filter(|host| !host.is_empty()).map(|host| range(host).ok_or_else(wrong)).transpose()?;
    if hosts.as_ref().is_some_and(|hosts| hosts.len() != guests.len()) {
        return Err(wrong());
    }
    let suffix = protocol.map(|name| format!("/{name}")).unwrap_or_default();
    let one = |(at, guest): (usize, u16)| {
        let address = address.map(|address| format!("{address}:")).unwrap_or_default();
        let host = hosts.as_ref().and_then(|hosts| hosts.clone().nth(at));
        match host {
            Some(host) => format!("{address}{host}:{guest}{suffix}"),
            // A free port.
            None if before.is_some() => format!("{address}:{guest}{suffix}"),
            None => format!("{guest}{suffix}"),
        }
    };
    Ok(guests.clone().enumerate().map(one).collect())
}

/// `FIRST-LAST`, or one port.
fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last && last - first < MAX_RANGE_PORTS).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_become_volumes_and_tmpfs() {
        let of = |text: &str| mount(text).map_err(|failed| failed.text);
        assert_eq!(of("type=bind,source=/a,target=/b"), Ok(Mount::Bind("/a:/b".into())));
        assert_eq!(of("type=bind,src=/a,dst=/b,readonly"), Ok(Mount::Bind("/a:/b:ro".into())));
        assert_eq!(of("type=bind,src=/a,dst=/b,ro=false"), Ok(Mount::Bind("/a:/b".into())));
        assert_eq!(of("type=tmpfs,target=/t"), Ok(Mount::Memory("/t".into())));
        assert_eq!(of("type=tmpfs,target=/t,tmpfs-size=1m,ro"), Ok(Mount::Memory("/t:size=1m,ro".into())));
        assert!(of("type=volume,source=x,target=/b").unwrap_err().contains("no named volumes"));
        assert!(of("source=x,target=/b").unwrap_err().contains("no named volumes"));
        for wrong in [
            "type=bind,target=/b",
            "type=bind,source=/a",
            "type=tmpfs,source=/a,target=/b",
            "type=bind,x=1",
            "type=bind,source=/a:b,target=/c",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn port_ranges_are_written_out() {
        let of = |text: &str| expand(text).map_err(|failed| failed.text);
        assert_eq!(of("8080:80"), Ok(vec!["8080:80".into()]));
        assert_eq!(of("8000-8001:80-81/udp"), Ok(vec!["8000:80/udp".into(), "8001:81/udp".into()]));
        assert_eq!(of("127.0.0.1:9-10:9-10"), Ok(vec!["127.0.0.1:9:9".into(), "127.0.0.1:10:10".into()]));
        assert_eq!(of("[::1]:9-9:5-5"), Ok(vec!["[::1]:9:5".into()]));
        assert_eq!(of("80-81"), Ok(vec!["80".into(), "81".into()]));
        assert_eq!(of("1000-1063").map(|ports| ports.len()), Ok(64));
        for wrong in ["1000-1064", "80-81:80", "81-80", "a-b", "0-1", "65535-65536"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_are_read_as_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("labels");
        std::fs::write(&file, "# no\na=file\nb=file=2\n").unwrap();
        let extra =
            Extra { label: vec!["a=typed".into(), "c".into()], label_file: vec![file], ..Extra::default() };
        let labels = extra.labels().unwrap();
        let labels: Vec<_> = labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(labels, [("a", "typed"), ("b", "file=2"), ("c", "")]);
        let id = Extra { cidfile: Some(dir.path().join("id")), ..Extra::default() };
        assert!(id.check_id_file().is_ok() && id.write_id("x").is_ok());
        assert!(id.check_id_file().is_err() && id.write_id("y").is_err(), "a file that exists is left alone");
    }
}
