use super::*;

fn load(set: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load_as(&Place { is_root: true, uid: 0, executable: None }, set)
}

fn load_as(place: &Place, set: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let find = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
    Config::load_at(find, place)
}

#[test]
fn users_other_than_root_need_no_variables() {
    let user = Place { is_root: false, uid: 1000, executable: None };
    let set = [("HOME", "/home/ann"), ("XDG_RUNTIME_DIR", "/run/user/1000")];
    let config = load_as(&user, &set).unwrap();
    assert_eq!(config.host.dir.to_str(), Some("/home/ann/.local/state/bouvet"));
    assert_eq!(config.host.templates, Some("/home/ann/.local/state/bouvet/templates".into()));
    assert_eq!(config.host.boxes, Some("/home/ann/.local/share/bouvet/boxes".into()));
    assert_eq!(config.socket, SocketChoice::Auto("/run/user/1000/bouvet/bouvet.sock".into()));
    assert_ne!(config.host.cgroup, CgroupChoice::Detect, "the hierarchy is root's");
    assert!(config.chosen.iter().any(|(name, _)| *name == "BOUVET_CGROUP"), "{:?}", config.chosen);
    let config = load_as(&user, &set[..1]).unwrap();
    assert_eq!(config.socket, SocketChoice::Auto("/home/ann/.local/state/bouvet/bouvet.sock".into()));
}

#[test]
fn values_that_are_set_are_not_replaced() {
    let user = Place { is_root: false, uid: 1000, executable: None };
    let set = [("HOME", "/home/ann"), ("BOUVET_CHROOT", "/srv/b"), ("BOUVET_CGROUP", "/sys/fs/cgroup/b")];
    let config = load_as(&user, &set).unwrap();
    assert_eq!(config.host.dir.to_str(), Some("/srv/b"));
    assert_eq!(config.host.cgroup, CgroupChoice::Below("/sys/fs/cgroup/b".into()));
    assert!(config.chosen.is_empty(), "{:?}", config.chosen);
}

#[test]
fn the_published_defaults_hold() {
    let config = load(&[]).unwrap();
    assert_eq!(config.host.kernel.to_str(), Some("/var/lib/bouvet/vmlinux"));
    assert_eq!(config.host.rootfs.to_str(), Some("/var/lib/bouvet/debian-devbox.ext4"));
    assert_eq!(config.host.dir.to_str(), Some("/tmp/bouvet"));
    assert_eq!(config.host.engine, EngineChoice::Auto);
    assert_eq!(config.transport, Transport::Both);
    assert_eq!(config.http.address.to_string(), "0.0.0.0:8080");
    assert_eq!((config.sandbox.resources.memory_mb, config.sandbox.resources.vcpus), (256, 1));
    assert!(config.sandbox.validate().is_ok());
}

#[test]
fn a_bad_value_names_the_variable_the_value_and_what_is_allowed() {
    let message = |name, value| load(&[(name, value)]).unwrap_err().to_string();
    assert_eq!(message("BOUVET_HTTP_PORT", "0"), "BOUVET_HTTP_PORT is `0`; it must be 1 to 65535");
    assert_eq!(message("BOUVET_HTTP_PORT", "65536"), "BOUVET_HTTP_PORT is `65536`; it must be 1 to 65535");
    assert_eq!(
        message("BOUVET_HTTP_HOST", "example"),
        "BOUVET_HTTP_HOST is `example`; it must be an IP address"
    );
    assert_eq!(
        message("BOUVET_TRANSPORT", "tcp"),
        "BOUVET_TRANSPORT is `tcp`; it must be stdio, http or both"
    );
    assert_eq!(
        message("BOUVET_ENGINE", "xen"),
        "BOUVET_ENGINE is `xen`; it must be auto, firecracker or qemu"
    );
    assert!(load(&[("BOUVET_CGROUP", "relative/path")]).is_err());
}

#[test]
fn numbers_hold_at_their_limits_and_not_past_them() {
    for (name, last, past) in [
        ("BOUVET_MAX_SANDBOXES", "1000", "1001"),
        ("BOUVET_DISK_MIB", "64", "63"),
        ("BOUVET_SANDBOX_TIMEOUT_SECS", "0", "-1"),
        ("BOUVET_FIRST_UID", "1", "0"),
    ] {
        assert!(load(&[(name, last)]).is_ok(), "{name}={last}");
        assert!(load(&[(name, past)]).is_err(), "{name}={past}");
    }
}

#[test]
fn firecracker_has_its_options_and_none_by_default() {
    let none = load(&[]).unwrap().host;
    assert_eq!(none.firecracker, FirecrackerOptions::default());
    assert_eq!(none.kernel_args, "");
    let all = load(&[
        ("BOUVET_ENGINE", "Firecracker"),
        ("BOUVET_FIRECRACKER", "/opt/firecracker"),
        ("BOUVET_FIRECRACKER_HUGE_PAGES", "true"),
        ("BOUVET_TEMPLATES", "off"),
        ("BOUVET_FIRECRACKER_CPU_TEMPLATE", "t2s"),
        ("BOUVET_FIRECRACKER_DISK_MIB_PER_SEC", "1000000"),
        ("BOUVET_FIRECRACKER_DISK_OPS_PER_SEC", "0"),
        ("BOUVET_KERNEL_ARGS", "loglevel=7 nokaslr"),
    ]);
    let all = all.unwrap().host;
    assert_eq!((all.engine, all.kernel_args.as_str()), (EngineChoice::Firecracker, "loglevel=7 nokaslr"));
    let expected = FirecrackerOptions {
        binary: "/opt/firecracker".into(),
        huge_pages: true,
        cpu_template: Some("T2S".into()),
        disk_mb_per_second: Some(1_000_000),
        disk_operations_per_second: None,
    };
    assert_eq!(all.firecracker, expected);
}

#[test]
fn what_firecracker_cannot_be_told_is_refused() {
    for (name, value) in [
        // With templates, which are the default, there would be clones.
        ("BOUVET_FIRECRACKER_HUGE_PAGES", "true"),
        ("BOUVET_FIRECRACKER_HUGE_PAGES", "2M"),
        ("BOUVET_FIRECRACKER_CPU_TEMPLATE", "T3"),
        ("BOUVET_FIRECRACKER_DISK_MIB_PER_SEC", "1000001"),
        ("BOUVET_FIRECRACKER_DISK_OPS_PER_SEC", "-1"),
        ("BOUVET_KERNEL_ARGS", "two\nlines"),
    ] {
        assert_eq!(load(&[(name, value)]).unwrap_err().variable, name, "{value}");
    }
    let args = |length: usize| load(&[("BOUVET_KERNEL_ARGS", "x".repeat(length).as_str())]).is_ok();
    assert!(args(1024) && !args(1025));
}

#[test]
fn values_may_be_empty_spaced_and_of_any_case() {
    let config = load(&[
        ("BOUVET_TRANSPORT", " HTTP "),
        ("BOUVET_HTTP_PORT", ""),
        ("BOUVET_ALLOWED_HOSTS", "a.example, b.example,"),
        ("BOUVET_HTTP_HOST", "::1"),
    ])
    .unwrap();
    assert_eq!(config.transport, Transport::Http);
    assert_eq!(config.http.address.to_string(), "[::1]:8080");
    assert_eq!(config.http.allowed_hosts, ["a.example", "b.example"]);
}

#[test]
fn registries_are_named_or_all_or_none() {
    let allow = |set: &[(&str, &str)], registry: &str| load(set).unwrap().registries.allow(registry);
    assert!(allow(&[], "docker.io") && !allow(&[], "localhost:5000"));
    let named = [("BOUVET_ALLOWED_REGISTRIES", "localhost:5000, Registry.example")];
    assert!(allow(&named, "registry.example") && allow(&named, "localhost:5000"));
    assert!(!allow(&named, "docker.io") && !allow(&named, "localhost"));
    assert!(allow(&[("BOUVET_ALLOWED_REGISTRIES", "*")], "anything.example"));
    assert!(!allow(&[("BOUVET_ALLOWED_REGISTRIES", "none")], "none"));
}

#[test]
fn what_clients_may_reach_at_most_is_rules_or_nothing() {
    let egress = |text: &str| load(&[("BOUVET_ALLOWED_EGRESS", text)]).map(|config| config.egress);
    assert_eq!(egress("none").unwrap(), None);
    assert_eq!(egress("*.example.com:443,host:80").unwrap().unwrap(), ["*.example.com:443", "host:80"]);
    for wrong in ["10.0.0.0/33", "*,a b", "127.0.0.1:80", "*,[::1]:443"] {
        assert_eq!(egress(wrong).unwrap_err().variable, "BOUVET_ALLOWED_EGRESS", "{wrong}");
    }
}

#[test]
fn ports_are_exposed_to_this_machine_unless_somebody_says_otherwise() {
    let expose = |value| load(&[("BOUVET_EXPOSE_ADDRESS", value)]).map(|config| config.expose);
    assert_eq!(expose("").unwrap(), Some(IpAddr::from([127, 0, 0, 1])));
    assert_eq!(expose("::").unwrap(), Some("::".parse().unwrap()));
    assert_eq!(expose("Off").unwrap(), None);
    for wrong in ["localhost", "127.0.0.1:80", "true"] {
        assert_eq!(expose(wrong).unwrap_err().variable, "BOUVET_EXPOSE_ADDRESS", "{wrong}");
    }
}

#[test]
fn misspelled_variables_are_found() {
    let set =
        ["BOUVET_HTTP_PROT", "BOUVET_HTTP_PORT", "bouvet_chroot", "BOUVET_ROOTFS_URL", "BOUVET_XYZ", "HOME"];
    let found = unknown_variables(set.map(str::to_owned).into_iter());
    let texts: Vec<_> = found.iter().map(ToString::to_string).collect();
    let expected = [
        "the variable BOUVET_HTTP_PROT is not known; did you mean BOUVET_HTTP_PORT?",
        "the variable BOUVET_XYZ is not known",
        "the variable bouvet_chroot is not known; did you mean BOUVET_CHROOT?",
    ];
    assert_eq!(texts, expected);
}

/// The reference in `docs/` is this table; BOUVET_RECORD_DOCS=1 writes it there.
#[test]
fn the_reference_lists_every_variable_as_it_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/CONFIG.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once("<!-- variables: generated, do not edit -->\n").unwrap();
    let (table, after) = rest.split_once("<!-- end -->").unwrap();
    let mut expected = String::from("| Variable | Default | Allowed | Description |\n|---|---|---|---|\n");
    for Variable { name, default, allowed, about } in VARIABLES {
        let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
        expected.push_str(&format!("| `{name}` | {default} | {allowed} | {about} |\n"));
    }
    if std::env::var_os("BOUVET_RECORD_DOCS").is_some() {
        let marker = "<!-- variables: generated, do not edit -->\n";
        std::fs::write(path, format!("{before}{marker}{expected}<!-- end -->{after}")).unwrap();
        return;
    }
    assert_eq!(table, expected, "docs/CONFIG.md differs from the table of variables");
}
