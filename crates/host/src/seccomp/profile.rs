//! Profiles of Docker's format ("Seccomp security profiles for Docker"; `profiles/seccomp` of moby documents the fields).

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use serde::Deserialize;
use syscalls::Sysno;

use super::{Rules, compile};
use crate::boxconfig::capabilities::Capabilities;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Circumstances>,
    #[serde(default)]
    excludes: Option<Circumstances>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// When an entry counts. Kernels are always new enough: they are ours.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Circumstances {
    caps: Vec<String>,
    arches: Vec<String>,
}

/// The filters of the profile in `text`, for a sandbox with `capabilities`.
pub(super) fn filters(text: &str, capabilities: Capabilities) -> Result<Vec<BpfProgram>, String> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut named = Rules::new();
    let mut by_action: BTreeMap<String, (SeccompAction, Rules)> = BTreeMap::new();
    for entry in profile.syscalls.iter().filter(|entry| entry.counts(capabilities)) {
        let action = action(&entry.action, entry.errno_ret)?;
        let rule = entry.rule()?;
        let rules = by_action.entry(format!("{action:?}")).or_insert_with(|| (action, Rules::new()));
        for call in entry.calls() {
            add(&mut named, call, rule.clone());
            add(&mut rules.1, call, rule.clone());
        }
    }
    let compile = |rules, matched, otherwise| {
        compile(rules, matched, otherwise).map_err(|error| format!("it cannot be compiled: {error}"))
    };
    let mut filters = Vec::new();
    if default != SeccompAction::Allow {
        // With nothing named, nothing could be done.
        let filter = compile(named, SeccompAction::Allow, default)?;
        filters.push(filter.ok_or("it lets no system call through")?);
    }
    for (action, rules) in by_action.into_values().filter(|(action, _)| *action != SeccompAction::Allow) {
        filters.extend(compile(rules, action, SeccompAction::Allow)?);
    }
    Ok(filters)
}

/// Adds a rule for one more call: none beside others, and any arguments beside some, mean any.
fn add(rules: &mut Rules, call: i64, rule: Option<SeccompRule>) {
    match (rules.get_mut(&call), rule) {
        (None, rule) => {
            rules.insert(call, rule.into_iter().collect());
        }
        (Some(known), None) => known.clear(),
        (Some(known), Some(rule)) => {
            if !known.is_empty() {
                known.push(rule);
            }
        }
    }
}

impl Entry {
    fn counts(&self, capabilities: Capabilities) -> bool {
        let holds = |circumstances: &Circumstances, if_empty: bool| {
            if circumstances.caps.is_empty() && circumstances.arches.is_empty() {
                return if_empty;
            }
            let bare = |name: &String| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
            circumstances.caps.iter().all(|name| capabilities.has(&bare(name)))
                && (circumstances.arches.is_empty()
                    || circumstances.arches.iter().any(|arch| is_this_machine(arch)))
        };
        self.includes.as_ref().is_none_or(|includes| holds(includes, true))
            && !self.excludes.as_ref().is_some_and(|excludes| holds(excludes, false))
    }

    /// The calls that this architecture has; of others there is nothing to say.
    fn calls(&self) -> impl Iterator<Item = i64> {
        let known = |name: &String| name.parse::<Sysno>().ok().map(|call| i64::from(call.id()));
        self.names.iter().chain(&self.name).filter_map(known)
    }

    /// `None`: whatever its arguments are.
    fn rule(&self) -> Result<Option<SeccompRule>, String> {
        let arguments = self.args.as_deref().unwrap_or_default();
        if arguments.is_empty() {
            return Ok(None);
        }
        let conditions = arguments.iter().map(Argument::condition).collect::<Result<_, _>>()?;
        SeccompRule::new(conditions).map(Some).map_err(|error| error.to_string())
    }
}

impl Argument {
    fn condition(&self) -> Result<SeccompCondition, String> {
        let (operator, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, self.value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, self.value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, self.value),
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, self.value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, self.value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, self.value),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(self.value), self.value_two),
            unknown => return Err(format!("it has the comparison `{unknown}`")),
        };
        SeccompCondition::new(self.index, SeccompCmpArgLen::Qword, operator, value)
            .map_err(|error| error.to_string())
    }
}

fn is_this_machine(arch: &str) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => arch == "amd64",
        "aarch64" => arch == "arm64",
        other => arch == other,
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(libc::EPERM.unsigned_abs())),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        unknown => return Err(format!("it has the action `{unknown}`")),
    })
}
