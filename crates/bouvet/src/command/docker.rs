//! Verbs and flags of `docker` that Bouvet refuses by name: errors explain them, and the reference lists them.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::outcome::Failed;

/// One verb or flag of `docker`'s that is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Missing {
    /// The command below `bouvet`, in its short form; with a space, one of a group. Empty: `bouvet` itself.
    pub(crate) verb: &'static str,
    /// Its flags, separated by spaces; empty: the verb itself is missing.
    pub(crate) flags: &'static str,
    /// The alternative, or the reason why there is none.
    pub(crate) instead: &'static str,
}

const fn verb(verb: &'static str, instead: &'static str) -> Missing {
    Missing { verb, flags: "", instead }
}

const fn flags(verb: &'static str, flags: &'static str, instead: &'static str) -> Missing {
    Missing { verb, flags, instead }
}

const NO_BUILD: &str = "build the image with another tool; `bouvet load` reads its archive";
const ONE_MACHINE: &str =
    "a server is one machine; start each sandbox with `bouvet run`, and join them with --network";
const REGISTRY: &str = "`bouvet save` writes an archive, which skopeo copies to a registry";
const LIMITED: &str = "the VM is the limit: see --memory, --cpus and --disk";
const OWN_NAMESPACES: &str =
    "each sandbox is a VM with its own kernel: it shares no namespace with this machine";
const KEYS: &str = "the keys are Ctrl-P Ctrl-Q";
const ADDRESSES: &str = "addresses are assigned; sandboxes on a network find each other by name";
const HEALTH: &str = "health checks are not run; test the program with `bouvet exec`";
const LOG: &str = "output is kept by the server, within a limit: `bouvet logs`";
const VERIFY: &str = "images are verified by digest: NAME@sha256:…";

/// All that is refused by name.
pub(crate) const MISSING: &[Missing] = &[
    flags("", "-H --host -c --context", "BOUVET_SOCKET names the server"),
    flags("", "-D --debug -l --log-level", "RUST_LOG sets what is logged"),
    flags("", "--config", "DOCKER_CONFIG names the directory of docker's credentials"),
    flags(
        "",
        "--tls --tlscacert --tlscert --tlskey --tlsverify",
        "commands reach the server by a Unix socket",
    ),
    verb("bake", NO_BUILD),
    verb("build", NO_BUILD),
    verb("builder", NO_BUILD),
    verb("buildx", NO_BUILD),
    verb("checkpoint", "`bouvet pause` keeps a sandbox in memory; --persistent keeps its disk"),
    verb("commit", "`bouvet run --persistent` keeps what a sandbox writes"),
    verb("compose", ONE_MACHINE),
    verb("config", ONE_MACHINE),
    verb("context", "BOUVET_SOCKET names the server"),
    verb("debug", "`bouvet exec -it SANDBOX sh` runs a shell in a sandbox"),
    verb("diff", "a sandbox's changes are not listed; `bouvet cp SANDBOX:/ -` reads all of its files"),
    verb("export", "`bouvet cp SANDBOX:/ DIRECTORY` copies the files"),
    verb("history", "`bouvet inspect IMAGE` shows the image's configuration"),
    verb("import", "`bouvet load` reads an archive of `docker save` or an OCI layout"),
    verb("init", NO_BUILD),
    verb("manifest", REGISTRY),
    verb("model", "run the model's server in a sandbox"),
    verb("node", ONE_MACHINE),
    verb("plugin", "there are no plugins"),
    verb("push", REGISTRY),
    verb("sandbox", "each command of bouvet works on sandboxes: `bouvet run`"),
    verb("sbom", "scan the image with another tool before it is run"),
    verb("scout", "scan the image with another tool before it is run"),
    verb("search", "search on the registry's own pages"),
    verb("secret", "`bouvet run --secret` puts a secret into requests"),
    verb("service", ONE_MACHINE),
    verb("stack", ONE_MACHINE),
    verb("swarm", ONE_MACHINE),
    verb("trust", VERIFY),
    verb("update", "limits are fixed when a sandbox is created: remove it, and run it with others"),
    verb("volume", "there are no named volumes: share a directory of this machine with -v HOST:GUEST"),
    verb("network connect", "a sandbox joins its network when it is created: `bouvet run --network`"),
    verb("network disconnect", "a sandbox is on its network until it is removed"),
    verb("system df", "`bouvet images` shows the size of each image, `bouvet ps -a` the sandboxes"),
    verb("system dial-stdio", "BOUVET_SOCKET names the server"),
    flags("run", "-a --attach", "without -d all output is shown; -i forwards standard input"),
    flags("run", "--annotation", "use --label"),
    flags(
        "run",
        "--blkio-weight --blkio-weight-device --cpu-count --cpu-percent --cpu-rt-period --cpu-rt-runtime --cpuset-mems \
         --device-read-bps --device-read-iops --device-write-bps --device-write-iops --io-maxbandwidth --io-maxiops \
         --kernel-memory --memory-swappiness --oom-kill-disable --oom-score-adj",
        LIMITED,
    ),
    flags("run", "--cgroup-parent", "BOUVET_CGROUP sets where the server puts VMs"),
    flags("run", "--cgroupns --ipc --pid --userns --uts", OWN_NAMESPACES),
    flags("run", "--detach-keys", KEYS),
    flags("run", "--device --device-cgroup-rule --gpus", "a sandbox has no devices of this machine"),
    flags("run", "--disable-content-trust", VERIFY),
    flags("run", "--domainname", "--hostname sets the host name; --dns-search the domain"),
    flags("run", "--expose", "sandboxes on a network reach every port; -p publishes one on this machine"),
    flags(
        "run",
        "--health-cmd --health-interval --health-retries --health-start-interval --health-start-period \
         --health-timeout --no-healthcheck",
        HEALTH,
    ),
    flags("run", "--ip --ip6 --link-local-ip --mac-address", ADDRESSES),
    flags("run", "--isolation --runtime", "every sandbox is a VM; BOUVET_ENGINE chooses what makes it"),
    flags("run", "--link --net-alias --network-alias", ADDRESSES),
    flags("run", "--log-driver --log-opt", LOG),
    flags("run", "--sig-proxy", "signals are passed on to the program"),
    flags("run", "--storage-opt", "--disk sets the size of the disk"),
    flags("run", "--use-api-socket", "a sandbox never reaches the server's socket"),
    flags("run", "--volume-driver --volumes-from", "share a directory of this machine with -v HOST:GUEST"),
    flags("exec", "--detach-keys", KEYS),
    flags("exec", "--privileged", "a program has the rights of its sandbox: see `bouvet run --privileged`"),
    flags("attach", "--detach-keys", KEYS),
    flags("attach", "--sig-proxy", "signals are passed on to the program"),
    flags("start", "--detach-keys", KEYS),
    flags("start", "--checkpoint --checkpoint-dir", "a persistent sandbox starts from its disk"),
    flags("ps", "-s --size", "`bouvet inspect` shows the limits, `bouvet stats` what is used"),
    flags("images", "-a --all", "all images are listed; there are no layers among them"),
    flags("images", "--digests --tree", "use --format '{{.Repository}} {{.Digest}}', or --json"),
    flags("rm", "-l --link", ADDRESSES),
    flags("rmi", "--no-prune", "what no image needs is always removed"),
    flags("pull", "-a --all-tags", "name each tag"),
    flags("pull", "--disable-content-trust", VERIFY),
    flags("stats", "-a --all", "only running sandboxes use something; `bouvet ps -a` lists the others"),
    flags("system prune", "--volumes", "there are no named volumes"),
    flags("inspect", "-s --size", "`bouvet inspect` shows the limits, `bouvet stats` what is used"),
    flags(
        "network create",
        "-d --driver --attachable --aux-address --config-from --config-only --gateway --ingress --internal --ip-range \
         --ipam-driver --ipam-opt --ipv4 --ipv6 --label -o --opt --scope",
        "a network is a switch in the server: only --subnet can be set",
    ),
];

/// Names that people try, which are neither docker's nor ours: what is typed instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("daemon", "`bouvet serve` runs the server"),
    ("delete", "`bouvet rm` removes sandboxes, `bouvet rmi` images"),
    ("destroy", "`bouvet rm` removes sandboxes, `bouvet rm --force` also those that run"),
    ("docker", "leave `docker` away: `bouvet run`"),
    ("down", "`bouvet stop` stops sandboxes; the server ends by SIGTERM"),
    ("enter", "`bouvet exec -it SANDBOX bash` runs a shell in a sandbox"),
    ("install", "`make install` in the source tree installs the server (docs/SELF_HOST.md)"),
    ("mcp", "`bouvet serve` serves MCP; `bouvet-mcp` serves nothing else"),
    ("remove", "`bouvet rm` removes sandboxes, `bouvet rmi` images"),
    ("server", "`bouvet serve` runs the server"),
    ("setup", "`bouvet doctor` shows what this machine lacks (docs/SELF_HOST.md)"),
    ("shell", "`bouvet run -it base` makes a sandbox with a shell, `bouvet exec -it SANDBOX bash` uses one"),
    ("ssh", "`bouvet exec -it SANDBOX bash` runs a shell in a sandbox"),
    ("status", "`bouvet ps` lists sandboxes, `bouvet info` describes the server"),
    ("up", "`bouvet serve` runs the server, `bouvet start` starts a sandbox"),
];

/// Explains `typed`, which clap does not know, by a name of `ELSEWHERE` or as an argument of the server.
fn explain_own(error: &clap::Error, typed: &[&str]) -> Option<Failed> {
    let first = *typed.first()?;
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let (_, instead) = ELSEWHERE.iter().find(|(name, _)| *name == first)?;
            Some(Failed::new(format!("bouvet has no `{first}`: {instead}")))
        }
        ErrorKind::UnknownArgument if matches!(first, "serve" | "doctor" | "demo") => {
            let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
                return None;
            };
            let argument = argument.split(['=', ' ']).next()?;
            let hint = match argument {
                "-p" | "--port" => "BOUVET_HTTP_PORT sets the port of HTTP",
                "-H" | "--host" | "--bind" | "--address" | "--listen" => {
                    "BOUVET_HTTP_HOST sets the address of HTTP"
                }
                "-d" | "--detach" | "--daemon" => "a service runs it in the background, or `bouvet serve &`",
                "--socket" => "BOUVET_SOCKET sets the socket",
                "-v" | "--verbose" | "--debug" | "--log-level" => "RUST_LOG sets what is logged",
                _ => "`bouvet serve --help` lists the variables",
            };
            let fact = format!("bouvet {first} has no {argument}: it is configured by environment variables");
            Some(Failed::new(fact).hint(hint))
        }
        _ => None,
    }
}

/// Differences in what both have: the habit from `docker`, and what Bouvet does.
#[cfg(test)]
pub(crate) const OTHERWISE: &[(&str, &str)] = &[
    ("`run IMAGE` without `-d`", "needs no server: the sandbox is created in the command's own process"),
    ("`run base`", "`base` is the server's own image, with Python, Node.js, Bash and Rust"),
    (
        "`run --network host`, `bridge`",
        "the default is `tsi`: the internet, within the policy; `-p` publishes ports",
    ),
    (
        "`run -p 8080:80`",
        "listens on 127.0.0.1 only; `-p 0.0.0.0:8080:80` listens on all addresses of this machine",
    ),
    ("`exec -w`, `-u`", "a directory or user that is missing is exit code 126"),
    ("`stop -t -1`", "waits a day, the longest time"),
    ("`run -v NAME:/data`", "HOST is a path, as in `./data:/data`; there are no named volumes"),
    ("`run --memory`, `--cpus`", "they size the VM: 1024m and 2 by default; 128m is the minimum"),
    ("`run --privileged`", "root is root of the VM, not of this machine"),
    ("a stopped sandbox", "starts with a clean disk, unless it is `--persistent`"),
    ("the end of the server", "ends its sandboxes; those that are `--persistent` can be started again"),
    ("`ps -f status=exited`", "is also `state=stopped`, as in `ps --json`"),
    (
        "`images`, `ps`, `network ls`, `stats`",
        "have other columns; `--format` has docker's fields, `--json` is for programs",
    ),
];

/// Commands of groups whose short form has another name.
const LONG_FORMS: &[(&str, &str, &str)] = &[
    ("container", "list", "ps"),
    ("container", "ls", "ps"),
    ("container", "remove", "rm"),
    ("container", "unpause", "resume"),
    ("image", "list", "images"),
    ("image", "ls", "images"),
    ("image", "remove", "rmi"),
    ("image", "rm", "rmi"),
    ("network", "list", "network ls"),
    ("network", "remove", "network rm"),
];
/// Groups whose commands have short forms, but for `OWN_FORMS`.
const GROUPS: &[&str] = &["container", "image", "system"];
/// Commands that are only in a group.
const OWN_FORMS: &[(&str, &str)] = &[("image", "prune"), ("system", "prune")];

/// The short form of a command of a group: `ps` of `container ls`.
pub(crate) fn short_form<'a>(group: &str, name: &'a str) -> Option<&'a str> {
    let other = LONG_FORMS.iter().find(|(one, long, _)| (*one, *long) == (group, name));
    match other {
        Some((_, _, short)) => Some(short),
        None if GROUPS.contains(&group) && !OWN_FORMS.contains(&(group, name)) => Some(name),
        None => None,
    }
}

/// The commands whose rows are about what was typed: `container create` is `create`, which has the flags of `run`.
fn commands_of(typed: &[&str]) -> Vec<String> {
    let mut names = vec![typed.join(" ")];
    if let [group, name] = typed {
        names.extend(short_form(group, name).map(str::to_owned));
    }
    if names.iter().any(|name| name == "create") {
        names.push("run".into());
    }
    names
}

/// Explains an error of clap's about a verb or a flag of `docker`'s. `arguments` begin with the name of the executable.
pub(crate) fn explain(error: &clap::Error, arguments: &[String]) -> Option<Failed> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    // A command of a group has two words.
    let words = arguments.iter().skip(1).map(String::as_str).take_while(|word| !word.starts_with('-'));
    let words: Vec<_> = words.take(2).collect();
    let typed = match words[..] {
        [first, _] if GROUPS.contains(&first) || first == "network" => &words[..],
        [_, ..] => &words[..1],
        [] => &[""][..],
    };
    if let Some(failed) = explain_own(error, typed) {
        return Some(failed);
    }
    let text = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let names = commands_of(typed);
            let row = MISSING
                .iter()
                .find(|row| row.flags.is_empty() && names.iter().any(|name| name == row.verb))?;
            format!("bouvet has no `{}`: {}", typed.join(" "), row.instead)
        }
        ErrorKind::UnknownArgument => {
            // clap shows a flag with its value in some cases.
            let flag = text(ContextKind::InvalidArg)?.split(['=', ' ']).next()?;
            let names = commands_of(typed);
            let is_it = |row: &&Missing| {
                names.iter().any(|name| name == row.verb) && row.flags.split(' ').any(|known| known == flag)
            };
            let row = MISSING.iter().find(is_it)?;
            let command = ["bouvet"].into_iter().chain(typed.iter().copied().filter(|word| !word.is_empty()));
            format!("{} has no {flag}: {}", command.collect::<Vec<_>>().join(" "), row.instead)
        }
        _ => return None,
    };
    Some(Failed::new(text).hint("read `Differences from docker` in docs/CLI.md"))
}
