//! From what was typed to a description of a sandbox.

use std::path::Path;
use std::time::Duration;

use bouvet_host::{
    BASE_IMAGE, BoxConfig, NetworkMode, ResourceConfig, ResourceLimits, SecretConfig, SevSnpGeneration,
    SidecarConfig, TeeConfig, is_base_image,
};

use super::{Generation, Line, Resources, Technology, Tee};
use crate::command::outcome::Failed;
use crate::command::usage;

/// CPUs that a VM can have, as the library allows them.
const MAX_CPUS: u32 = 32;
const CPUS_ALLOWED: &str = "a number from 0.01 to 32 is allowed, like 2 or 0.5";
/// Program of a terminal in a base image.
const SHELL: &str = "bash";
/// The period in which a fraction of a CPU is counted.
const PERIOD_US: f64 = 100_000.0;

impl Line {
    /// The sandbox that is described; variables without a value are read from `environment`.
    pub(super) fn describe(
        &self,
        detached: bool,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<BoxConfig, Failed> {
        let Self { how, reach, rights, .. } = self;
        let image = image(self.image())?;
        let mut config = BoxConfig {
            cmd: self.program(&image, detached)?,
            image,
            workspace: match &how.workspace {
                Some(path) => absolute("--workspace", path)?.into(),
                None => Default::default(),
            },
            resources: self.resources.vm()?,
            resource_limits: self.resources.limits()?,
            entrypoint_override: how.entrypoint.as_ref().map(|program| match program.as_str() {
                "" => Vec::new(),
                program => vec![program.to_owned()],
            }),
            volumes: how.volume.iter().map(|text| volume(text)).collect::<Result<_, _>>()?,
            extra_env: self.variables(environment)?,
            port_map: how.publish.clone(),
            dns: reach.dns.clone(),
            dns_search: reach.dns_search.clone(),
            dns_option: reach.dns_option.clone(),
            extra_hosts: reach.add_host.clone(),
            sysctls: rights.sysctl.clone(),
            shm_size: self.resources.shm_size()?,
            network: network(&reach.network),
            allow: reach.allow.clone(),
            deny: reach.deny.clone(),
            secrets: reach.secret.iter().map(|text| secret(text, environment)).collect::<Result<_, _>>()?,
            tmpfs: rights.tmpfs.clone(),
            cap_add: rights.cap_add.clone(),
            cap_drop: rights.cap_drop.clone(),
            security_opt: rights.security_opt.iter().map(|text| security(text)).collect::<Result<_, _>>()?,
            privileged: rights.privileged,
            read_only: rights.read_only,
            require_hardware: rights.require_hardware,
            persistent: how.persistent,
            sidecar: self.sidecar(environment)?,
            tee: self.tee()?,
            name: how.name.clone(),
            hostname: how.hostname.clone(),
            init: how.init,
            user: how.user.clone(),
            group_add: how.group_add.clone(),
            stop_signal: how.stop_signal.clone(),
            stop_timeout_secs: how.stop_timeout,
            working_dir: how.workdir.clone(),
            tty: how.tty,
            idle: how.idle,
            stdin_open: how.interactive,
            auto_remove: how.rm,
            ..BoxConfig::default()
        };
        self.extra.describe(&mut config)?;
        Ok(config)
    }

    /// What runs in it. The base image has no program of its own.
    fn program(&self, image: &str, detached: bool) -> Result<Vec<String>, Failed> {
        let how = &self.how;
        let is_open = how.tty && (how.interactive || !detached);
        match is_base_image(image) && self.command().is_empty() && how.entrypoint.is_none() {
            false => Ok(self.command().to_vec()),
            true if is_open => Ok(vec![SHELL.into()]),
            // It stays until it is stopped, for `exec`.
            true if detached => Ok(Vec::new()),
            true => Err(Failed::new("the base image has no program of its own")
                .hint("name one, as in `bouvet run -it base bash`")),
        }
    }

    fn tee(&self) -> Result<TeeConfig, Failed> {
        let Tee { tee, tee_simulate: simulate, tee_workload, tee_generation } = &self.tee;
        let (simulate, workload_id) =
            (*simulate, tee_workload.clone().unwrap_or_else(|| self.image().to_owned()));
        let generation = tee_generation.map(|generation| match generation {
            Generation::Milan => SevSnpGeneration::Milan,
            Generation::Genoa => SevSnpGeneration::Genoa,
        });
        match (tee, generation) {
            (None, _) => Ok(TeeConfig::None),
            (Some(Technology::SevSnp), generation) => {
                let generation = generation.unwrap_or_default();
                Ok(TeeConfig::SevSnp { workload_id, generation, simulate })
            }
            (Some(Technology::Tdx), None) => Ok(TeeConfig::Tdx { workload_id, simulate }),
            (Some(Technology::Tdx), Some(_)) => {
                Err(Failed::new("`--tee-generation` is of AMD's processors, and `--tee` asks for Intel's"))
            }
        }
    }

    fn sidecar(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<Option<SidecarConfig>, Failed> {
        let Some(typed) = &self.how.sidecar else { return Ok(None) };
        let env = self.how.sidecar_env.iter().filter_map(|text| variable(text, environment)).collect();
        Ok(Some(SidecarConfig { image: image(typed)?, vsock_port: self.how.sidecar_port, env }))
    }

    fn variables(
        &self,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<(String, String)>, Failed> {
        let mut variables = Vec::new();
        for file in &self.how.env_file {
            variables.extend(env_file(file, environment)?);
        }
        variables.extend(self.how.env.iter().filter_map(|text| variable(text, environment)));
        Ok(variables)
    }
}

/// The variables of a file.
pub(in crate::command) fn env_file(
    file: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, Failed> {
    let lines = usage::lines_of(file)?;
    Ok(lines.iter().filter_map(|line| variable(line, environment)).collect())
}

/// `NAME=VALUE`, or the value that `NAME` has here; `None` if it has none.
pub(in crate::command) fn variable(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Option<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => environment(text).map(|value| (text.to_owned(), value)),
    }
}

/// The library's word for an image. The server is somewhere else, so that paths are made absolute.
pub(in crate::command) fn image(typed: &str) -> Result<String, Failed> {
    if typed == BASE_IMAGE {
        return Ok(String::new());
    }
    for kind in ["oci:", "docker-archive:"] {
        if let Some(rest) = typed.strip_prefix(kind) {
            let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
            let path = absolute("IMAGE", Path::new(path))?;
            return Ok(format!("{kind}{path}{}", tag.map(|tag| format!(":{tag}")).unwrap_or_default()));
        }
    }
    Ok(typed.to_owned())
}

pub(super) fn absolute(flag: &str, path: &Path) -> Result<String, Failed> {
    let shown = path.display().to_string();
    let absolute = std::path::absolute(path).ok().and_then(|path| path.into_os_string().into_string().ok());
    absolute.ok_or_else(|| usage::wrong(flag, &shown, "a path in UTF-8 is allowed"))
}

fn volume(text: &str) -> Result<String, Failed> {
    let allowed = "`HOST:GUEST`, `HOST:GUEST:ro` and `HOST:GUEST:rw` are allowed, where HOST is a path: \
                   `./data:/data`";
    let (host, guest) = text.split_once(':').ok_or_else(|| usage::wrong("--volume", text, allowed))?;
    // To Docker it would be the name of a volume.
    if !host.contains('/') && host != "." && host != ".." {
        return Err(usage::wrong("--volume", text, allowed));
    }
    // Directories in the sandbox are absolute, so that anything else at the end was meant as options.
    if let Some((_, options)) = guest.rsplit_once(':').filter(|(_, last)| !last.contains('/')) {
        if let Some(other) = options.split(',').find(|option| !matches!(*option, "ro" | "rw")) {
            let other = other.escape_debug();
            return Err(usage::wrong(
                "--volume",
                text,
                &format!("`{other}` is not an option: `ro` and `rw` are"),
            ));
        }
        if options.contains(',') {
            return Err(usage::wrong("--volume", text, "only one of `ro` and `rw` is allowed"));
        }
    }
    Ok(format!("{}:{guest}", absolute("--volume", Path::new(host))?))
}

fn security(text: &str) -> Result<String, Failed> {
    match text.split_once('=') {
        Some(("seccomp", profile)) if profile != "unconfined" => {
            Ok(format!("seccomp={}", absolute("--security-opt", Path::new(profile))?))
        }
        _ => Ok(text.to_owned()),
    }
}

fn network(name: &str) -> NetworkMode {
    match name {
        "none" => NetworkMode::None,
        "tsi" => NetworkMode::Tsi,
        name => NetworkMode::Bridge { network: name.to_owned() },
    }
}

/// `NAME@DOMAIN,…`, whose value is in the environment, or `NAME=FILE@DOMAIN,…`: a value on the command line would be read
/// by everybody who lists processes.
fn secret(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<SecretConfig, Failed> {
    let wrong = || {
        let allowed = "`NAME@DOMAIN` and `NAME=FILE@DOMAIN` are allowed, with a comma between two domains";
        usage::wrong("--secret", text, allowed)
    };
    let (source, domains) = text.rsplit_once('@').ok_or_else(wrong)?;
    let (name, value) = match source.split_once('=') {
        None => {
            let none = || {
                Failed::new(format!(
                    "`--secret {}`: there is no variable `{source}` here",
                    text.escape_debug()
                ))
            };
            (source, environment(source).ok_or_else(none)?)
        }
        Some((name, file)) => {
            let value = std::fs::read_to_string(file)
                .map_err(|error| Failed::new(format!("could not read `{}`: {error}", file.escape_debug())))?;
            // Editors end a file with a line's end, which no header may have.
            (name, value.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let domains = domains.split(',').map(str::to_owned).collect();
    Ok(SecretConfig { name: name.to_owned(), value: value.into(), domains })
}

impl Resources {
    fn vm(&self) -> Result<ResourceConfig, Failed> {
        let mut vm =
            ResourceConfig { timeout: Duration::from_secs(self.timeout), ..ResourceConfig::default() };
        if let Some(text) = &self.memory {
            vm.memory_mb = usage::mib("--memory", text)?;
        }
        if let Some(text) = &self.disk {
            vm.disk_mb = usage::mib("--disk", text)?;
        }
        if let Some(cpus) = self.cpus()? {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is 0 to MAX_CPUS"
            )]
            let whole = cpus.ceil() as u32;
            vm.vcpus = whole;
        }
        Ok(vm)
    }

    fn shm_size(&self) -> Result<Option<u64>, Failed> {
        self.shm_size.as_deref().map(|text| usage::bytes("--shm-size", text)).transpose()
    }

    fn cpus(&self) -> Result<Option<f64>, Failed> {
        let Some(text) = &self.cpus else { return Ok(None) };
        let wrong = || usage::wrong("--cpus", text, CPUS_ALLOWED);
        let cpus: f64 = text.parse().map_err(|_| wrong())?;
        if cpus > 0.0 && cpus <= f64::from(MAX_CPUS) { Ok(Some(cpus)) } else { Err(wrong()) }
    }

    fn limits(&self) -> Result<ResourceLimits, Failed> {
        let mut cpu_quota = self.cpu_quota;
        if let Some(cpus) = self.cpus()?.filter(|cpus| cpus.fract() > 0.0) {
            if cpu_quota.is_some() || self.cpu_period.is_some() {
                return Err(Failed::new(
                    "`--cpus` with a fraction says what `--cpu-quota` and `--cpu-period` say",
                ));
            }
            #[expect(clippy::cast_possible_truncation, reason = "it is at most MAX_CPUS periods")]
            let quota = (cpus * PERIOD_US).round() as i64;
            cpu_quota = Some(quota);
        }
        let bytes =
            |flag, text: &Option<String>| text.as_deref().map(|text| usage::bytes(flag, text)).transpose();
        let memory_swap = match self.memory_swap.as_deref() {
            None => None,
            Some("-1") => Some(-1),
            Some(text) => {
                let bytes = usage::bytes("--memory-swap", text)?;
                let wrong = |_| usage::wrong("--memory-swap", text, "a size like 2g, or -1, is allowed");
                Some(i64::try_from(bytes).map_err(wrong)?)
            }
        };
        Ok(ResourceLimits {
            // As Docker has it, what is not positive is no limit.
            pids_limit: self
                .pids_limit
                .and_then(|limit| u64::try_from(limit).ok())
                .filter(|limit| *limit > 0),
            cpuset_cpus: self.cpuset_cpus.clone(),
            ulimits: self.ulimit.clone(),
            cpu_shares: self.cpu_shares,
            cpu_quota,
            cpu_period: self.cpu_period,
            memory_reservation: bytes("--memory-reservation", &self.memory_reservation)?,
            memory_swap,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::RunLine;
    use super::*;

    #[derive(Debug, Parser)]
    struct Test {
        #[command(flatten)]
        line: RunLine,
    }

    fn describe(words: &str) -> Result<BoxConfig, Failed> {
        let words = std::iter::once("run").chain(words.split_whitespace());
        let test = Test::try_parse_from(words).unwrap();
        let config =
            test.line.line.describe(test.line.detach, &|name| (name == "HOME").then(|| "/root".into()))?;
        config.validate().map_err(|error| usage::of(&error))?;
        Ok(config)
    }

    fn here(path: &str) -> String {
        std::env::current_dir().unwrap().join(path).to_str().unwrap().to_owned()
    }

    #[test]
    fn without_flags_it_is_the_librarys_sandbox_that_never_ends() {
        let config = describe("alpine").unwrap();
        let resources = ResourceConfig { timeout: Duration::ZERO, ..ResourceConfig::default() };
        assert_eq!(config, BoxConfig { image: "alpine".into(), resources, ..BoxConfig::default() });
    }

    #[test]
    fn every_flag_says_its_field() {
        let config = describe(
            "-i -t --rm --name web -e A=1=2 -e HOME -e NOT_SET -v ./d:/d:ro -v /e:/e --workspace w -w /tmp -u 1:2 --group-add audio \
             --stop-signal RTMIN+3 --stop-timeout 5 \
             -m 512m --cpus 3 --disk 1g --timeout 60 --tmpfs /t:size=1m --read-only --cap-add NET_ADMIN \
             --cap-drop ALL --security-opt no-new-privileges --entrypoint /bin/x --ulimit nofile=1:2 --pids-limit 7 \
             --cpuset-cpus 0 -c 512 --cpu-quota 20000 --cpu-period 50000 --memory-reservation 64m --memory-swap -1 \
             --sidecar proxy:1 --sidecar-port 99 --sidecar-env C=3 --persistent -p 8080:80 --dns 1.1.1.1 \
             --network tsi --allow example.com:443 --deny *.example.com --secret HOME@example.com,example.org --require-hardware alpine:3 sh -c true --rm",
        );
        let expected = BoxConfig {
            image: "alpine:3".into(),
            cmd: ["sh", "-c", "true", "--rm"].map(Into::into).to_vec(),
            entrypoint_override: Some(vec!["/bin/x".into()]),
            tty: true,
            stdin_open: true,
            auto_remove: true,
            name: "web".into(),
            extra_env: vec![("A".into(), "1=2".into()), ("HOME".into(), "/root".into())],
            volumes: vec![format!("{}:/d:ro", here("d")), "/e:/e".into()],
            workspace: here("w").into(),
            working_dir: "/tmp".into(),
            user: "1:2".into(),
            group_add: vec!["audio".into()],
            stop_signal: "RTMIN+3".into(),
            stop_timeout_secs: Some(5),
            resources: ResourceConfig {
                vcpus: 3,
                memory_mb: 512,
                disk_mb: 1024,
                timeout: Duration::from_secs(60),
            },
            tmpfs: vec!["/t:size=1m".into()],
            read_only: true,
            cap_add: vec!["NET_ADMIN".into()],
            cap_drop: vec!["ALL".into()],
            security_opt: vec!["no-new-privileges".into()],
            resource_limits: ResourceLimits {
                pids_limit: Some(7),
                cpuset_cpus: Some("0".into()),
                ulimits: vec!["nofile=1:2".into()],
                cpu_shares: Some(512),
                cpu_quota: Some(20_000),
                cpu_period: Some(50_000),
                memory_reservation: Some(64 << 20),
                memory_swap: Some(-1),
            },
            persistent: true,
            sidecar: Some(SidecarConfig {
                image: "proxy:1".into(),
                vsock_port: 99,
                env: vec![("C".into(), "3".into())],
            }),
            port_map: vec!["8080:80".into()],
            dns: vec!["1.1.1.1".into()],
            allow: vec!["example.com:443".into()],
            deny: vec!["*.example.com".into()],
            secrets: vec![SecretConfig {
                name: "HOME".into(),
                value: "/root".to_owned().into(),
                domains: vec!["example.com".into(), "example.org".into()],
            }],
            require_hardware: true,
            ..BoxConfig::default()
        };
        assert_eq!(config, Ok(expected));
    }

    #[test]
    fn words_after_image_belong_to_program() {
        let of = |words: &[&str]| {
            let line = Test::try_parse_from([&["run"], words].concat()).map_err(|error| error.kind());
            line.map(|test| (test.line.line.image().to_owned(), test.line.line.command().join(" ")))
        };
        for (words, program) in [
            (&["--rm", "--entrypoint", "sh", "base", "-c", "echo hi"][..], "-c echo hi"),
            (&["--entrypoint", "ls", "base", "-l", "/etc/hostname"], "-l /etc/hostname"),
            (&["--entrypoint", "/bin/ls", "base", "-d", "/etc"], "-d /etc"),
            (&["-e", "X=1", "--entrypoint", "env", "base", "-u", "PATH"], "-u PATH"),
            (&["--entrypoint", "bash", "base", "-i", "-c", "echo hi"], "-i -c echo hi"),
            (&["base", "--rm"], "--rm"),
            (&["base", "--help"], "--help"),
            (&["base", "--no-such", "-it", "--name=x"], "--no-such -it --name=x"),
            (&["base", "--", "ls"], "-- ls"),
            (&["base", "ls", "--", "-l"], "ls -- -l"),
            (&["-it", "--", "base", "ls"], "ls"),
            (&["-d", "base"], ""),
        ] {
            assert_eq!(of(words), Ok(("base".to_owned(), program.to_owned())), "{words:?}");
        }
        assert_eq!(of(&["--no-such", "base"]), Err(clap::error::ErrorKind::UnknownArgument));
        assert_eq!(of(&["--rm"]), Err(clap::error::ErrorKind::MissingRequiredArgument));
    }

    #[test]
    fn idle_sandbox_refuses_a_program() {
        let check = |words: &[&str]| {
            let line = Test::try_parse_from([&["run", "-d", "--idle"], words].concat()).unwrap().line;
            line.check().map_err(|failed| failed.text)
        };
        assert_eq!(check(&["base"]), Ok(()));
        assert_eq!(check(&["base", "-v"]), Err("`--idle` runs no program, and `-v` is one".into()));
    }

    #[test]
    fn sizes_out_of_range_show_what_was_typed() {
        for (flags, text) in [
            ("--memory 100", "--memory 100 means 100 bytes; "),
            ("--shm-size 100", "--shm-size 100 means 100 bytes; "),
            ("--memory-swap 100", "--memory-swap 100 means 100 bytes; "),
            ("--memory-swap 1m", "--memory-swap 1m is 1048576 bytes; "),
        ] {
            let words = ["run"].into_iter().chain(flags.split(' ')).chain(["alpine"]);
            let failed = Test::try_parse_from(words).unwrap().line.line.config(false).unwrap_err();
            assert!(failed.text.starts_with(text), "{flags}: {}", failed.text);
        }
    }

    #[test]
    fn environment_flags_set_their_fields() {
        let words = "--hostname web.example --init --shm-size 128m --add-host db:192.0.2.7 \
                     --sysctl net.core.somaxconn=99 --dns-search a.example --dns-search b.example \
                     --dns-option ndots:2 --dns-opt rotate";
        let plain = describe("alpine").unwrap();
        let expected = BoxConfig {
            dns_search: vec!["a.example".into(), "b.example".into()],
            dns_option: vec!["ndots:2".into(), "rotate".into()],
            extra_hosts: vec!["db:192.0.2.7".into()],
            sysctls: vec!["net.core.somaxconn=99".into()],
            shm_size: Some(128 << 20),
            hostname: "web.example".into(),
            init: true,
            ..plain
        };
        assert_eq!(describe(&format!("{words} alpine")).unwrap(), expected);
        assert_eq!(describe("-h web alpine").unwrap().hostname, "web");
    }

    #[test]
    fn what_is_attested_is_called_as_its_image_unless_it_is_said() {
        let tee = |words: &str| describe(words).unwrap().tee;
        let generation = SevSnpGeneration::Genoa;
        let snp = TeeConfig::SevSnp { workload_id: "web".into(), generation, simulate: true };
        assert_eq!(tee("--tee sev-snp --tee-simulate --tee-workload web --tee-generation genoa alpine"), snp);
        let tdx = TeeConfig::Tdx { workload_id: "alpine".into(), simulate: false };
        assert_eq!(tee("--tee tdx alpine"), tdx);
        let failed = describe("--tee tdx --tee-generation genoa alpine").unwrap_err();
        assert!(failed.text.starts_with("`--tee-generation` is of AMD's"), "{failed:?}");
        let failed = describe(&format!("--tee tdx --tee-workload {} alpine", "w".repeat(65))).unwrap_err();
        assert!(failed.text.starts_with("`--tee-workload` is "), "{failed:?}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_flags_name() {
        for (words, text) in [
            ("-m 1m alpine", "`--memory` is 1 MiB; 128 to 1048576 MiB are allowed"),
            ("-m much alpine", "`--memory` is `much`; a size like 512m or 2g is allowed"),
            ("--cpus 0 alpine", "`--cpus` is `0`; a number from 0.01 to 32 is allowed, like 2 or 0.5"),
            ("--cpus 33 alpine", "`--cpus` is `33`; a number from 0.01 to 32 is allowed, like 2 or 0.5"),
            ("-e =x alpine", "`--env` is ``; "),
            ("-v data:/data alpine", "`--volume` is `data:/data`; "),
            (
                "-v ./vol:/data:z alpine",
                "`--volume` is `./vol:/data:z`; `z` is not an option: `ro` and `rw` are",
            ),
            ("-v ./v:/d:ro,Z alpine", "`--volume` is `./v:/d:ro,Z`; `Z` is not an option: `ro` and `rw` are"),
            ("-v ./v:/d:ro,rw alpine", "`--volume` is `./v:/d:ro,rw`; only one of `ro` and `rw` is allowed"),
            ("-h a_b. alpine", "`--hostname` is `a_b.`; "),
            ("--add-host db alpine", "`--add-host` is `db`; "),
            ("--sysctl kernel.panic=1 alpine", "`--sysctl` is `kernel.panic=1`; "),
            ("--shm-size 0 alpine", "`--shm-size` is 0 bytes; 4096 to "),
            ("--dns-search a/b alpine", "`--dns-search` is `a/b`; "),
            ("--dns-option :2 alpine", "`--dns-option` is `:2`; "),
            ("--cap-add WHAT alpine", "`--cap-add` is `WHAT`; "),
            ("--cpus 0.5 --cpu-quota 1000 alpine", "`--cpus` with a fraction"),
        ] {
            let failed = describe(words).unwrap_err();
            assert!(failed.text.starts_with(text), "{words}: {failed:?}");
            assert_eq!(failed.code, 125);
        }
    }

    #[test]
    fn a_fraction_of_a_cpu_is_time_of_whole_ones() {
        let config = describe("--cpus 1.5 alpine").unwrap();
        assert_eq!((config.resources.vcpus, config.resource_limits.cpu_quota), (2, Some(150_000)));
    }

    #[test]
    fn the_base_image_needs_a_program_unless_somebody_types_or_nobody_waits() {
        let program = |words: &str| describe(words).map(|config| (config.image, config.cmd));
        assert_eq!(program("-it base"), Ok((String::new(), vec!["bash".into()])));
        assert_eq!(program("-d base"), Ok((String::new(), Vec::new())));
        assert_eq!(program("-dit base"), Ok((String::new(), vec!["bash".into()])));
        assert_eq!(program("base true"), Ok((String::new(), vec!["true".into()])));
        assert!(program("base").unwrap_err().hint.contains("bouvet run -it base bash"));
    }

    #[test]
    fn images_on_this_machine_are_found_from_elsewhere() {
        assert_eq!(image("oci:dir:tag"), Ok(format!("oci:{}:tag", here("dir"))));
        assert_eq!(image("docker-archive:/a.tar"), Ok("docker-archive:/a.tar".into()));
        assert_eq!(image("localhost:5000/a:b"), Ok("localhost:5000/a:b".into()));
    }

    #[test]
    fn variables_are_read_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# comment\n\nA=1\n HOME\nB=x y\n").unwrap();
        let config = describe(&format!("--env-file {} -e A=2 alpine", file.display())).unwrap();
        let expected = [("A", "1"), ("HOME", "/root"), ("B", "x y"), ("A", "2")];
        assert_eq!(config.extra_env, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert!(describe("--env-file /nowhere/env alpine").is_err());
    }
}
