//! The kernel, the rootfs and the engines: each engine is prepared as by the server.

use std::path::Path;

use bouvet_host::{
    Acceleration, CgroupChoice, EngineChoice, EngineError, EngineFacts, Host, HostOptions, Kvm, StartError,
    chain, images,
};

use super::Finding;
use crate::advice;
use crate::config::Config;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let host = &config.host;
    let mut findings = vec![
        kernel(&host.kernel, images::check_kernel(&host.kernel)),
        rootfs(&host.rootfs, images::check_rootfs(&host.rootfs)),
    ];
    let used = host.resolved_engine();
    for engine in [EngineChoice::Firecracker, EngineChoice::Qemu] {
        let probed = Host::probe(&HostOptions { engine, ..host.clone() }).await;
        match engine == used {
            true => {
                let is_default = config.chosen.iter().any(|(name, _)| *name == "BOUVET_CGROUP");
                findings.extend(judge_used(engine, probed, (&host.cgroup, is_default)));
            }
            false => findings.push(judge_unused(engine, probed, Kvm::find())),
        }
    }
    findings
}

fn kernel(path: &Path, checked: Result<bool, EngineError>) -> Finding {
    match checked {
        Ok(true) => Finding::ok("kernel", format!("{}, with its modules", path.display())),
        Ok(false) => Finding::warning(
            "kernel",
            format!("{}, without modules next to it", path.display()),
            "put `KERNEL.modules.cpio` next to it, unless virtio, overlayfs and the rootfs's file system are built in",
        ),
        Err(error) => Finding::error("kernel", chain(&error), advice::of_engine(&error)),
    }
}

fn rootfs(path: &Path, checked: Result<&'static str, EngineError>) -> Finding {
    match checked {
        Ok(file_system) => Finding::ok("rootfs", format!("{}, {file_system}", path.display())),
        Err(error) => Finding::error("rootfs", chain(&error), advice::of_engine(&error)),
    }
}

/// The engine that the server will use. `is_default`: nobody set the choice of a cgroup.
fn judge_used(
    engine: EngineChoice,
    probed: Result<EngineFacts, StartError>,
    (cgroup, is_default): (&CgroupChoice, bool),
) -> Vec<Finding> {
    match probed {
        Ok(facts) => {
            let mut findings = vec![bounded(cgroup, is_default), ready(engine, &facts)];
            findings.extend(confinement(&facts));
            findings
        }
        Err(error) if is_of_images(&error) => vec![untried(engine)],
        Err(error) => {
            let subject = subject(engine, &error);
            let mut findings = vec![Finding::error(subject, chain(&error), advice::of_start(&error))];
            if subject != name(engine) {
                let text = format!("not tried, because of the error of {subject}");
                findings.push(Finding::ok(name(engine), text));
            }
            findings
        }
    }
}

fn bounded(cgroup: &CgroupChoice, is_default: bool) -> Finding {
    match cgroup {
        CgroupChoice::Off => Finding::warning(
            "cgroups",
            "off: the memory of VM processes is not limited on this machine",
            match is_default {
                true => "start the server as root, or in a delegated cgroup: `systemd-run --user --scope`",
                false => {
                    "unset BOUVET_CGROUP, and start the server as root or in a delegated cgroup: `systemd-run --user --scope`"
                }
            },
        ),
        CgroupChoice::Detect | CgroupChoice::Below(_) => {
            Finding::ok("cgroups", "limit the memory of each VM's process")
        }
    }
}

fn ready(engine: EngineChoice, facts: &EngineFacts) -> Finding {
    let text = format!("{}, by {}; makes the VMs", facts.version, facts.acceleration.name());
    match facts.acceleration {
        Acceleration::Hardware => Finding::ok(name(engine), text),
        _ => Finding::warning(
            name(engine),
            format!("{text}, without hardware virtualization"),
            "see /dev/kvm, above; programs run several times slower, and SECURITY.md says what it means",
        ),
    }
}

fn confinement(facts: &EngineFacts) -> Vec<Finding> {
    let (there, missing): (Vec<_>, Vec<_>) = facts.confinement.iter().partition(|bound| bound.in_force);
    let list =
        |bounds: &[&bouvet_host::Layer]| bounds.iter().map(|bound| bound.name).collect::<Vec<_>>().join("; ");
    let mut findings = vec![Finding::ok("confinement", list(&there))];
    if !missing.is_empty() {
        let advice = "run the server as root; for Firecracker, install a release with its `jailer` in the same directory";
        findings.push(Finding::warning("confinement", format!("not in force: {}", list(&missing)), advice));
    }
    findings
}

/// An engine that the server will not use.
fn judge_unused(engine: EngineChoice, probed: Result<EngineFacts, StartError>, kvm: Kvm) -> Finding {
    match probed {
        Ok(facts) => Finding::ok(name(engine), format!("{}; not used", facts.version)),
        Err(error) if is_of_images(&error) => untried(engine),
        Err(error) if engine == EngineChoice::Firecracker && kvm == Kvm::Hardware => Finding::warning(
            name(engine),
            format!("{}; QEMU is used instead", chain(&error)),
            advice::of_start(&error),
        ),
        Err(error) => Finding::ok(name(engine), format!("not used, and cannot be: {}", chain(&error))),
    }
}

/// Whether this was found out about the kernel or the rootfs already.
fn is_of_images(error: &StartError) -> bool {
    use EngineError::{Missing, NoModules, NotAKernel, NotARootfs};
    matches!(error, StartError::Engine(Missing { .. } | NotAKernel(_) | NoModules { .. } | NotARootfs(_)))
}

fn untried(engine: EngineChoice) -> Finding {
    Finding::ok(name(engine), "installed; not tried further, as the kernel or the rootfs is missing")
}

/// Subject of a finding about this error.
fn subject(engine: EngineChoice, error: &StartError) -> &'static str {
    match error {
        StartError::Cgroup(_) => "cgroups",
        StartError::Claim(_) | StartError::Directory(..) => "directory",
        _ => name(engine),
    }
}

fn name(engine: EngineChoice) -> &'static str {
    if engine == EngineChoice::Firecracker { "firecracker" } else { "qemu" }
}

#[cfg(test)]
mod tests {
    use bouvet_host::Layer;

    use super::super::Level;
    use super::*;

    fn facts(acceleration: Acceleration, in_force: bool) -> EngineFacts {
        let bound = |name, in_force| Layer { name, in_force };
        EngineFacts {
            name: "firecracker",
            version: "Firecracker 1.16.1".into(),
            acceleration,
            confinement: vec![bound("a user id of its own", true), bound("seccomp filters", in_force)],
        }
    }

    fn missing() -> StartError {
        let path = "/usr/local/bin/firecracker".into();
        EngineError::NoFirecracker { path, why: "No such file".into() }.into()
    }

    #[test]
    fn what_confines_is_listed_and_what_does_not_is_a_warning() {
        let judged = |in_force| {
            let probed = Ok(facts(Acceleration::Hardware, in_force));
            judge_used(EngineChoice::Firecracker, probed, (&CgroupChoice::Detect, true))
        };
        assert!(judged(true).iter().all(|finding| finding.level == Level::Ok), "{:?}", judged(true));
        let last = judged(false).pop().unwrap();
        assert_eq!((last.level, last.text.as_str()), (Level::Warning, "not in force: seccomp filters"));
    }

    #[test]
    fn an_engine_is_an_error_only_if_it_is_used() {
        let used = judge_used(EngineChoice::Firecracker, Err(missing()), (&CgroupChoice::Detect, true));
        assert_eq!((used.len(), used[0].level, used[0].subject), (1, Level::Error, "firecracker"));
        let unused = |kvm| judge_unused(EngineChoice::Firecracker, Err(missing()), kvm).level;
        assert_eq!(unused(Kvm::Denied), Level::Ok);
        assert_eq!(unused(Kvm::Hardware), Level::Warning, "it would be used if it were there");
    }

    #[test]
    fn software_in_the_hardware_s_place_is_a_warning() {
        for software in [Acceleration::Software, Acceleration::SoftwareKvm] {
            assert_eq!(ready(EngineChoice::Qemu, &facts(software, true)).level, Level::Warning);
        }
    }

    #[test]
    fn images_that_are_missing_say_how_to_make_them() {
        let nowhere = Path::new("/nonexistent/vmlinux");
        let finding = kernel(nowhere, images::check_kernel(nowhere));
        assert_eq!(finding.level, Level::Error);
        assert!(finding.advice.unwrap().contains("make kernel"));
        let finding = rootfs(nowhere, images::check_rootfs(nowhere));
        assert!(finding.advice.unwrap().contains("make rootfs"));
        assert_eq!(kernel(nowhere, Ok(false)).level, Level::Warning);
    }

    #[test]
    fn missing_cgroups_are_a_warning() {
        let set = bounded(&CgroupChoice::Off, false);
        assert!(set.level == Level::Warning && set.advice.unwrap().contains("unset"));
        let default = bounded(&CgroupChoice::Off, true);
        assert!(default.level == Level::Warning && !default.advice.unwrap().contains("unset"));
        assert_eq!(bounded(&CgroupChoice::Detect, true).level, Level::Ok);
    }

    #[test]
    fn untried_engine_is_reported() {
        let error = StartError::Directory("/x".into(), std::io::ErrorKind::PermissionDenied.into());
        let judged = judge_used(EngineChoice::Qemu, Err(error), (&CgroupChoice::Detect, true));
        assert_eq!((judged[0].subject, judged[0].level), ("directory", Level::Error));
        assert_eq!((judged[1].subject, judged[1].level), ("qemu", Level::Ok));
    }
}
