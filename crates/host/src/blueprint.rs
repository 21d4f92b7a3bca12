//! What a sandbox is to be, once its description and its image are known: see [`Blueprint`]. Pure, but for a seccomp
//! profile that is read.

use std::collections::BTreeMap;

use bouvet_wire::v1;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::boxconfig::plan::{Plan, WORKSPACE, parse_signal};
use crate::boxconfig::sysctl::Sysctl;
use crate::boxconfig::{BoxConfig, InvalidConfig, SecretConfig, check_user};
use crate::exec::Signal;
use crate::seccomp::{self, Vsock};

/// What an image says of the programs in it, as far as a sandbox goes by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageWords {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    pub(crate) stop_signal: Option<String>,
}

impl ImageWords {
    /// Whether the image names a signal that exists, if it names one.
    pub(crate) fn has_usable_signal(&self) -> bool {
        self.stop_signal("stop_signal").is_ok()
    }

    /// Whether the image's user may be one: `field` of the description stands for the image.
    pub(crate) fn check_user(&self, field: &'static str) -> Result<(), InvalidConfig> {
        check_user(field, &self.user).map_err(of_image)
    }

    /// The signal that the image names: `field` of the description can name another.
    fn stop_signal(&self, field: &'static str) -> Result<Signal, InvalidConfig> {
        match &self.stop_signal {
            None => Ok(Signal::TERM),
            Some(name) => parse_signal(field, name).map_err(of_image),
        }
    }
}

/// An error of what the image says where the description says nothing.
fn of_image(error: InvalidConfig) -> InvalidConfig {
    InvalidConfig { value: format!("{} in the image", error.value), ..error }
}

/// A sandbox to be.
#[derive(Debug, Clone)]
pub(crate) struct Blueprint {
    pub(crate) config: BoxConfig,
    pub(crate) plan: Plan,
    /// The program with which it ends. `None`: it stays until it is stopped.
    pub(crate) main: Option<Main>,
    /// Of every program.
    pub(crate) env: Vec<(String, String)>,
    /// Where its programs start. Empty: the home directory of their user.
    pub(crate) working_dir: String,
    /// The program beside it.
    pub(crate) sidecar: Option<Sidecar>,
    user: String,
    filters: Vec<Bytes>,
}

/// The program of a second image, beside the main one.
#[derive(Debug, Clone)]
pub(crate) struct Sidecar {
    pub(crate) argv: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) working_dir: String,
    pub(crate) user: String,
    pub(crate) stop_signal: Signal,
    pub(crate) confinement: v1::Confinement,
}

/// A sandbox's main program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Main {
    pub(crate) argv: Vec<String>,
    pub(crate) stop_signal: Signal,
}

impl Blueprint {
    /// Of `config` in an image that says `words`; the base image says nothing.
    pub(crate) fn new(config: BoxConfig, words: Option<&ImageWords>) -> Result<Self, InvalidConfig> {
        if let (Some(words), "") = (words, config.user.as_str()) {
            words.check_user("user")?;
        }
        Self::planned(config.plan()?, config, words)
    }

    /// The same of a sandbox that was kept. Version 0.1.0 also took ids of users that are out of range: the guest refuses
    /// them, so that such a sandbox cannot be started, but it can be read and removed.
    pub(crate) fn kept(config: BoxConfig, words: Option<&ImageWords>) -> Result<Self, InvalidConfig> {
        let plan = BoxConfig { user: String::new(), ..config.clone() }.plan()?;
        Self::planned(plan, config, words)
    }

    fn planned(plan: Plan, config: BoxConfig, words: Option<&ImageWords>) -> Result<Self, InvalidConfig> {
        let of_image = words.cloned().unwrap_or_default();
        let argv = if config.idle { Vec::new() } else { arguments(&config, &of_image) };
        if argv.is_empty() && words.is_some() && !config.idle {
            let allowed = "the image names no program: one must be given".into();
            return Err(InvalidConfig { field: "cmd", value: "empty".into(), allowed });
        }
        let main = match argv.is_empty() {
            true => None,
            false => Some(Main { argv, stop_signal: stop_signal(&config, &of_image)? }),
        };
        let said = |of_config: &str, of_image: String| match of_config {
            "" => of_image,
            said => said.to_owned(),
        };
        let working_dir = said(&config.working_dir, of_image.working_dir);
        let working_dir = match words {
            // An image's `/` is what Docker has where nothing is said.
            _ if !config.workspace.as_os_str().is_empty()
                && config.working_dir.is_empty()
                && matches!(&working_dir[..], "" | "/") =>
            {
                WORKSPACE.to_owned()
            }
            Some(_) if working_dir.is_empty() => "/".to_owned(),
            _ => working_dir,
        };
        Ok(Self {
            filters: seccomp::filters(&plan.security, Vsock::Closed)?,
            user: said(&config.user, of_image.user),
            env: of_image.env.into_iter().chain(config.extra_env.iter().cloned()).collect(),
            main,
            sidecar: None,
            working_dir,
            plan,
            config,
        })
    }

    /// Gives programs these variables, where nothing else is said of them.
    pub(crate) fn put_variables(&mut self, variables: Vec<(String, String)>) {
        self.env.splice(0..0, variables);
    }

    /// User that its programs run as; empty for root.
    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    /// What may be shown of its description.
    pub(crate) fn shown(&self) -> BoxConfig {
        let secrets = self.config.secrets.iter().map(SecretConfig::without_value).collect();
        BoxConfig { secrets, ..self.config.clone() }
    }

    /// With the sidecar that it asks for, whose image says `words`.
    pub(crate) fn beside(mut self, words: Option<&ImageWords>) -> Result<Self, InvalidConfig> {
        let (Some(config), Some(words)) = (&self.config.sidecar, words) else { return Ok(self) };
        let argv: Vec<_> = words.entrypoint.iter().chain(&words.cmd).cloned().collect();
        if argv.is_empty() {
            return Err(InvalidConfig::text("sidecar.image", &config.image, "the image names no program"));
        }
        let or = |said: &str, otherwise: &str| if said.is_empty() { otherwise } else { said }.to_owned();
        let confinement = v1::Confinement {
            awaits_main: true,
            // It may listen on vsock, by which its orders come.
            seccomp: seccomp::filters(&self.plan.security, Vsock::Open)?,
            ..self.taken()
        };
        let stop_signal = words.stop_signal("sidecar.image")?;
        self.sidecar = Some(Sidecar {
            argv,
            env: words.env.iter().chain(&config.env).cloned().collect(),
            working_dir: or(&words.working_dir, "/"),
            // Not the main program's.
            user: or(&words.user, "0"),
            stop_signal,
            confinement,
        });
        Ok(self)
    }

    /// What the guest is told to make of itself before volumes are mounted, and what after; `None`: nothing.
    pub(crate) fn furnishing(&self) -> [Option<v1::FurnishRequest>; 2] {
        let tmpfs: Vec<_> = self.plan.tmpfs.iter().map(tmpfs).collect();
        let shm_bytes = self.plan.shm_bytes.unwrap_or_default();
        let first = v1::FurnishRequest { tmpfs, shm_bytes, ..v1::FurnishRequest::default() };
        let limits = &self.plan.limits;
        let limits = v1::ProgramLimits {
            pids: limits.pids.unwrap_or_default(),
            cpu_quota_us: limits.cpu.map_or(0, |cpu| cpu.quota_us),
            cpu_period_us: limits.cpu.map_or(0, |cpu| cpu.period_us),
        };
        let second = v1::FurnishRequest {
            working_dir: self.working_dir.clone(),
            limits: (limits != v1::ProgramLimits::default()).then_some(limits),
            read_only: self.config.read_only,
            confinement: self.confinement(),
            // Once its network is there, which some are about.
            sysctls: self.plan.sysctls.iter().map(sysctl).collect(),
            ..v1::FurnishRequest::default()
        };
        [first, second].map(|request| (request != v1::FurnishRequest::default()).then_some(request))
    }

    /// `None` where nothing is taken from programs, and none of them is the first: there they are the VM's own.
    fn confinement(&self) -> Option<v1::Confinement> {
        let security = &self.plan.security;
        let free = security.privileged && !security.no_new_privileges && self.plan.limits.ulimits.is_empty();
        let is_root = self.user.is_empty() && self.config.group_add.is_empty();
        if free && self.main.is_none() && is_root {
            return None;
        }
        Some(v1::Confinement {
            seccomp: self.filters.clone(),
            awaits_main: self.main.is_some(),
            user: self.user.clone(),
            init: self.config.init,
            sysctls: self.plan.sysctls.iter().filter(|one| one.is_ipc()).map(sysctl).collect(),
            groups: self.config.group_add.clone(),
            ..self.taken()
        })
    }

    /// What is taken from every program.
    fn taken(&self) -> v1::Confinement {
        let security = &self.plan.security;
        v1::Confinement {
            capabilities: security.capabilities.bits(),
            no_new_privileges: security.no_new_privileges,
            ulimits: self.plan.limits.ulimits.iter().map(ulimit).collect(),
            masked: !security.privileged,
            ..v1::Confinement::default()
        }
    }
}

/// ENTRYPOINT and CMD, as Docker has them: an entrypoint of the caller's replaces both of the image's.
fn arguments(config: &BoxConfig, image: &ImageWords) -> Vec<String> {
    let (entrypoint, cmd) = match &config.entrypoint_override {
        Some(entrypoint) => (entrypoint, &config.cmd),
        None if config.cmd.is_empty() => (&image.entrypoint, &image.cmd),
        None => (&image.entrypoint, &config.cmd),
    };
    entrypoint.iter().chain(cmd).cloned().collect()
}

/// The signal that asks the main program to end.
fn stop_signal(config: &BoxConfig, image: &ImageWords) -> Result<Signal, InvalidConfig> {
    match config.stop_signal.as_str() {
        "" => image.stop_signal("stop_signal"),
        name => parse_signal("stop_signal", name),
    }
}

fn tmpfs(tmpfs: &crate::boxconfig::tmpfs::Tmpfs) -> v1::Tmpfs {
    v1::Tmpfs {
        path: tmpfs.path.clone(),
        size_bytes: tmpfs.size_bytes.unwrap_or_default(),
        mode: tmpfs.mode,
        uid: tmpfs.uid,
        gid: tmpfs.gid,
        read_only: tmpfs.read_only,
        exec: tmpfs.exec,
        suid: tmpfs.suid,
        dev: tmpfs.dev,
    }
}

fn sysctl(Sysctl { name, value }: &Sysctl) -> v1::Sysctl {
    v1::Sysctl { name: name.clone(), value: value.clone() }
}

fn ulimit(limit: &crate::boxconfig::limits::Ulimit) -> v1::Ulimit {
    v1::Ulimit { resource: limit.resource, soft: limit.soft, hard: limit.hard }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boxconfig::SidecarConfig;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> ImageWords {
        ImageWords {
            entrypoint: words(&["/entry"]),
            cmd: words(&["serve", "-v"]),
            env: vec![("PATH".into(), "/bin".into()), ("A".into(), "image".into())],
            working_dir: "/srv".into(),
            user: "web".into(),
            stop_signal: Some("SIGQUIT".into()),
        }
    }

    fn argv(change: impl FnOnce(&mut BoxConfig)) -> Vec<String> {
        let mut config = BoxConfig::default();
        change(&mut config);
        Blueprint::new(config, Some(&image())).unwrap().main.unwrap().argv
    }

    #[test]
    fn entrypoint_and_cmd_are_docker_s() {
        assert_eq!(argv(|_| ()), ["/entry", "serve", "-v"]);
        assert_eq!(argv(|c| c.cmd = words(&["sh"])), ["/entry", "sh"]);
        assert_eq!(
            argv(|c| c.entrypoint_override = Some(words(&["sh"]))),
            ["sh"],
            "the image's CMD goes too"
        );
        let both = |c: &mut BoxConfig| {
            (c.entrypoint_override, c.cmd) = (Some(words(&["sh", "-c"])), words(&["true"]));
        };
        assert_eq!(argv(both), ["sh", "-c", "true"]);
        assert_eq!(argv(|c| (c.entrypoint_override, c.cmd) = (Some(vec![]), words(&["id"]))), ["id"]);
    }

    #[test]
    fn the_image_s_words_count_where_nothing_else_is_said() {
        let config = BoxConfig { extra_env: vec![("A".into(), "own".into())], ..BoxConfig::default() };
        let blueprint = Blueprint::new(config.clone(), Some(&image())).unwrap();
        assert_eq!((&blueprint.user[..], &blueprint.working_dir[..]), ("web", "/srv"));
        assert_eq!(blueprint.env.last().unwrap().1, "own");
        assert_eq!(blueprint.main.unwrap().stop_signal.number(), 3);
        let config = BoxConfig { user: "0".into(), working_dir: "/tmp".into(), ..config };
        let blueprint = Blueprint::new(config, Some(&image())).unwrap();
        assert_eq!((&blueprint.user[..], &blueprint.working_dir[..]), ("0", "/tmp"));
    }

    #[test]
    fn workspace_is_the_working_directory_unless_one_is_named() {
        let of = |working_dir: &str, words: Option<&ImageWords>| {
            let (workspace, cmd) = ("/srv/code".into(), words_of_true());
            let config =
                BoxConfig { workspace, cmd, working_dir: working_dir.into(), ..BoxConfig::default() };
            Blueprint::new(config, words).unwrap().working_dir
        };
        let named =
            |working_dir: &str| ImageWords { working_dir: working_dir.into(), ..ImageWords::default() };
        for words in [None, Some(named("")), Some(named("/"))] {
            assert_eq!(of("", words.as_ref()), "/workspace", "{words:?}");
            assert_eq!(of("/", words.as_ref()), "/", "the caller's, {words:?}");
        }
        assert_eq!(of("", Some(&named("/app"))), "/app");
        assert_eq!(of("/tmp", Some(&named("/app"))), "/tmp");
    }

    fn words_of_true() -> Vec<String> {
        words(&["true"])
    }

    #[test]
    fn kernel_settings_of_ipc_are_the_namespaces_too() {
        let sysctls = words(&["net.core.somaxconn=99", "kernel.shmmax=65536"]);
        let config = BoxConfig { sysctls, init: true, shm_size: Some(1 << 20), ..BoxConfig::default() };
        let [Some(first), Some(second)] = Blueprint::new(config, None).unwrap().furnishing() else {
            panic!()
        };
        assert_eq!(first.shm_bytes, 1 << 20);
        assert_eq!(second.sysctls.len(), 2);
        let confinement = second.confinement.unwrap();
        assert!(confinement.init);
        assert_eq!(confinement.sysctls, [v1::Sysctl { name: "kernel.shmmax".into(), value: "65536".into() }]);
    }

    #[test]
    fn unusable_words_of_an_image_are_refused() {
        let of = |words: ImageWords, config: BoxConfig| Blueprint::new(config, Some(&words)).map(drop);
        let user = |user: &str| ImageWords { user: user.into(), ..image() };
        assert!(of(user("1000:"), BoxConfig::default()).is_ok());
        let error = of(user("0:4294967295"), BoxConfig::default()).unwrap_err();
        assert_eq!((error.field, &error.value[..]), ("user", "`0:4294967295` in the image"));
        let signal = |name: &str| ImageWords { stop_signal: Some(name.into()), ..image() };
        let config =
            |stop_signal: &str| BoxConfig { stop_signal: stop_signal.into(), ..BoxConfig::default() };
        let number = |words: &ImageWords, name: &str| {
            Blueprint::new(config(name), Some(words))
                .map(|blueprint| blueprint.main.unwrap().stop_signal.number())
        };
        assert_eq!(number(&signal("SIGRTMIN+3"), ""), Ok(37));
        assert_eq!(number(&signal("SIGRTMIN+3"), "RTMAX-1"), Ok(63));
        assert_eq!(number(&signal("STOPP"), "").unwrap_err().field, "stop_signal");
        assert_eq!(number(&signal("STOPP"), "TERM"), Ok(15), "the caller may name another");
    }

    #[test]
    fn kept_sandboxes_may_have_any_ids() {
        let words_of = |user: &str| ImageWords { user: user.into(), ..image() };
        let old = BoxConfig { user: "4294967294".into(), ..BoxConfig::default() };
        assert!(Blueprint::new(old.clone(), Some(&image())).is_err());
        assert_eq!(Blueprint::kept(old, Some(&image())).unwrap().user, "4294967294");
        let words = words_of("3000000000:3000000000");
        assert!(Blueprint::new(BoxConfig::default(), Some(&words)).is_err());
        let kept = Blueprint::kept(BoxConfig::default(), Some(&words)).unwrap();
        assert_eq!(kept.user, "3000000000:3000000000", "never another user in its place");
        let wrong = BoxConfig { working_dir: "here".into(), ..BoxConfig::default() };
        assert!(Blueprint::kept(wrong, Some(&words)).is_err(), "all else is checked");
    }

    #[test]
    fn added_groups_reach_every_program() {
        let config = BoxConfig { privileged: true, group_add: words(&["audio"]), ..BoxConfig::default() };
        let [None, Some(request)] = Blueprint::new(config, None).unwrap().furnishing() else { panic!() };
        assert_eq!(request.confinement.unwrap().groups, ["audio"]);
    }

    #[test]
    fn an_image_without_a_program_needs_one() {
        let empty = ImageWords::default();
        let error = Blueprint::new(BoxConfig::default(), Some(&empty)).unwrap_err();
        assert_eq!(error.field, "cmd");
        let idle = BoxConfig { idle: true, ..BoxConfig::default() };
        assert!(Blueprint::new(idle.clone(), Some(&empty)).unwrap().main.is_none());
        assert!(Blueprint::new(idle, Some(&image())).unwrap().main.is_none(), "its own is left out");
        let config = BoxConfig { cmd: words(&["true"]), ..BoxConfig::default() };
        let blueprint = Blueprint::new(config, Some(&empty)).unwrap();
        assert_eq!((blueprint.main.unwrap().argv, &blueprint.working_dir[..]), (words(&["true"]), "/"));
    }

    #[test]
    fn a_sidecar_is_its_own_images_and_confined_as_the_others() {
        let sidecar = SidecarConfig {
            image: "proxy".into(),
            env: vec![("A".into(), "sidecar".into())],
            ..SidecarConfig::default()
        };
        let config = BoxConfig {
            sidecar: Some(sidecar),
            extra_env: vec![("B".into(), "main".into())],
            user: "nobody".into(),
            ..BoxConfig::default()
        };
        let alone = Blueprint::new(config.clone(), None).unwrap();
        assert!(alone.sidecar.is_none(), "its image is not known");
        let sidecar =
            Blueprint::new(config.clone(), None).unwrap().beside(Some(&image())).unwrap().sidecar.unwrap();
        assert_eq!((sidecar.argv, sidecar.stop_signal.number()), (words(&["/entry", "serve", "-v"]), 3));
        assert_eq!((&sidecar.user[..], &sidecar.working_dir[..]), ("web", "/srv"));
        let env: Vec<_> = sidecar.env.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(env, [("A", "sidecar"), ("PATH", "/bin")], "nothing of the main program's");
        let confined = alone.furnishing()[1].clone().unwrap().confinement.unwrap();
        assert_eq!(sidecar.confinement.capabilities, confined.capabilities);
        assert!(sidecar.confinement.masked && sidecar.confinement.user.is_empty());
        assert_ne!(sidecar.confinement.seccomp, confined.seccomp, "it may listen on vsock");
        let idle = Blueprint::new(config, None).unwrap().beside(Some(&ImageWords::default())).unwrap_err();
        assert_eq!(idle.field, "sidecar.image");
    }

    #[test]
    fn a_privileged_sandbox_of_the_base_image_is_the_vm_itself() {
        let config = BoxConfig { privileged: true, ..BoxConfig::default() };
        assert_eq!(Blueprint::new(config.clone(), None).unwrap().furnishing(), [None, None]);
        let confined = Blueprint::new(BoxConfig::default(), None).unwrap().furnishing();
        let [None, Some(request)] = confined else { panic!("{confined:?}") };
        let confinement = request.confinement.unwrap();
        assert!(confinement.masked && !confinement.awaits_main && confinement.seccomp.len() == 3);
        let config = BoxConfig { cmd: words(&["true"]), ..config };
        let [None, Some(request)] = Blueprint::new(config, None).unwrap().furnishing() else { panic!() };
        let confinement = request.confinement.unwrap();
        assert!(confinement.awaits_main && !confinement.masked && confinement.seccomp.is_empty());
    }
}
