//! `network`, and what goes with it: `dns`, `dns_search`, `dns_option`, `allow`, `deny`, `network_bound`, `network_limits` and `secrets`.

use std::fmt;

use bouvet_net::dns::{Upstream, is_option, search_domain};
use bouvet_net::secret::{Secret, Value};
use bouvet_net::{Limits, MAX_RULES, Policy, Rule};
use serde::{Deserialize, Serialize};

use super::plan::check_name;
use super::{BoxConfig, InvalidConfig, NetworkMode, at_most};

/// What a sandbox's network is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkPlan {
    /// The named network that it is on.
    pub(crate) shared: Option<String>,
    pub(crate) policy: Policy,
    /// What it may become at most.
    pub(crate) bound: Option<Policy>,
    /// Empty: the host's.
    pub(crate) name_servers: Vec<Upstream>,
    /// `None`: the host's.
    pub(crate) search: Option<Vec<String>>,
    /// `None`: the host's.
    pub(crate) dns_options: Option<Vec<String>>,
    pub(crate) limits: Limits,
    pub(crate) secrets: Vec<SecretConfig>,
}

/// A secret that the sandbox does not get. Its programs have a placeholder in the variable `name`, which becomes the
/// value in headers of requests to its domains, and nowhere else.
///
/// ```
/// use bouvet_host::{BoxConfig, NetworkMode, SecretConfig};
///
/// let secret = SecretConfig {
///     name: "API_KEY".into(),
///     value: "hunter2".to_owned().into(),
///     domains: vec!["api.example.com".into()],
/// };
/// assert!(!format!("{secret:?}").contains("hunter2"));
/// let config = BoxConfig { network: NetworkMode::Tsi, secrets: vec![secret], ..BoxConfig::default() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretConfig {
    /// The variable.
    pub name: String,
    /// What it stands for. Whoever asks what a sandbox was made of does not get it.
    #[serde(default, skip_serializing_if = "SecretValue::is_hidden")]
    pub value: SecretValue,
    /// Names of hosts, or `*.NAME` for all below one.
    pub domains: Vec<String>,
}

impl SecretConfig {
    /// The secret, with a placeholder of its own.
    pub(crate) fn make(&self) -> Result<Secret, InvalidConfig> {
        let wrong = |value: String, allowed: String| InvalidConfig { field: "secrets", value, allowed };
        let domain = |text: &String| {
            text.parse().map_err(|_| {
                wrong(
                    format!("for `{}`", text.escape_debug()),
                    "`NAME` of a host and `*.NAME` are allowed".into(),
                )
            })
        };
        let domains = self.domains.iter().map(domain).collect::<Result<_, _>>()?;
        let secret = Secret::new(self.name.clone(), Value::from(self.value.0.clone()), domains);
        secret.map_err(|error| wrong(format!("`{}`", self.name.escape_debug()), error.to_string()))
    }

    /// All that may be shown of it.
    pub(crate) fn without_value(&self) -> Self {
        Self { value: SecretValue::default(), ..self.clone() }
    }
}

/// What must not be seen. It is written where its description is, and shown by nothing else.
///
/// ```
/// let value = bouvet_host::SecretValue::from("hunter2".to_owned());
/// assert_eq!(format!("{value:?}"), "SecretValue(hidden)");
/// ```
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretValue(String);

impl SecretValue {
    /// Whether it was taken away.
    fn is_hidden(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for SecretValue {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(hidden)")
    }
}

impl NetworkPlan {
    /// `None` for a sandbox without one.
    pub(super) fn of(config: &BoxConfig) -> Result<Option<Self>, InvalidConfig> {
        let name_server = |text: &String| {
            let allowed = "an IPv4 or IPv6 address is allowed, with or without a port";
            text.parse().map_err(|_| InvalidConfig::text("dns", text, allowed))
        };
        let name_servers = config.dns.iter().map(name_server).collect::<Result<_, _>>()?;
        let (search, dns_options) = (search(&config.dns_search)?, dns_options(&config.dns_option)?);
        let policy = Policy { allow: rules("allow", &config.allow)?, deny: rules("deny", &config.deny)? };
        let bound = match &config.network_bound {
            Some(texts) => Some(Policy { allow: rules("network_bound", texts)?, deny: Vec::new() }),
            None => None,
        };
        config.network_limits.validate().map_err(|error| InvalidConfig {
            field: "network_limits",
            value: format!("{} = {}", error.field, error.value),
            allowed: format!("{} to {} are allowed", error.least, error.most),
        })?;
        config.secrets.iter().try_for_each(|secret| secret.make().map(drop))?;
        let shared = match &config.network {
            NetworkMode::None => return check_nothing(config).map(|()| None),
            NetworkMode::Tsi => None,
            NetworkMode::Bridge { network } => {
                check_name("network", network)?;
                Some(network.clone())
            }
        };
        let (limits, secrets) = (config.network_limits, config.secrets.clone());
        Ok(Some(Self { shared, policy, bound, name_servers, search, dns_options, limits, secrets }))
    }
}

/// Search domains; the root alone is a word for none.
fn search(texts: &[String]) -> Result<Option<Vec<String>>, InvalidConfig> {
    match texts {
        [] => return Ok(None),
        [root] if root == "." => return Ok(Some(Vec::new())),
        _ => {}
    }
    let allowed = "names of domains are allowed, or `.` alone for none";
    let domain =
        |text: &String| search_domain(text).ok_or_else(|| InvalidConfig::text("dns_search", text, allowed));
    texts.iter().map(domain).collect::<Result<_, _>>().map(Some)
}

fn dns_options(texts: &[String]) -> Result<Option<Vec<String>>, InvalidConfig> {
    match texts.iter().find(|text| !is_option(text)) {
        Some(text) => Err(InvalidConfig::text(
            "dns_option",
            text,
            "options of resolv.conf(5) are allowed, as in `ndots:2`",
        )),
        None => Ok((!texts.is_empty()).then(|| texts.to_vec())),
    }
}

/// What is about a network needs one.
fn check_nothing(config: &BoxConfig) -> Result<(), InvalidConfig> {
    let secrets: Vec<_> = config.secrets.iter().map(|secret| secret.name.clone()).collect();
    for (field, texts) in [
        ("dns", &config.dns),
        ("dns_search", &config.dns_search),
        ("dns_option", &config.dns_option),
        ("allow", &config.allow),
        ("deny", &config.deny),
        ("secrets", &secrets),
    ] {
        if let Some(text) = texts.first() {
            return Err(InvalidConfig::text(field, text, "without a network, nothing is allowed"));
        }
    }
    Ok(())
}

/// Reads rules of a policy.
pub(crate) fn rules(field: &'static str, texts: &[String]) -> Result<Vec<Rule>, InvalidConfig> {
    at_most(field, texts.len(), MAX_RULES, "elements")?;
    let rule = |text: &String| {
        text.parse().map_err(|error: bouvet_net::RuleError| {
            let allowed = format!("{}; `TARGET[:PORTS][/PROTOCOL]` is allowed", error.why);
            InvalidConfig::text(field, text, allowed)
        })
    };
    let rules: Vec<Rule> = texts.iter().map(rule).collect::<Result<_, _>>()?;
    // It would open nothing. To be denied, it does no harm.
    match rules.iter().zip(texts).find(|(rule, _)| field != "deny" && rule.is_loopback()) {
        Some((_, text)) => {
            Err(InvalidConfig::text(field, text, "the host's loopback is reached by `host:PORT`"))
        }
        None => Ok(rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut BoxConfig)) -> Result<Option<NetworkPlan>, InvalidConfig> {
        let mut config = BoxConfig { network: NetworkMode::Tsi, ..BoxConfig::default() };
        change(&mut config);
        NetworkPlan::of(&config)
    }

    fn list(text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }
    fn secret(name: &str, value: &str, domain: &str) -> SecretConfig {
        SecretConfig { name: name.into(), value: value.to_owned().into(), domains: list(domain) }
    }

    #[test]
    fn a_network_is_read() {
        let plan = plan(|c| {
            (c.dns, c.allow, c.deny) = (list("9.9.9.9"), list("*.example.com:443"), list("evil.example.com"));
            c.network_bound = Some(list("*"));
            c.secrets = vec![secret("KEY", "hunter2", "api.example.com")];
        });
        let plan = plan.unwrap().unwrap();
        assert_eq!((plan.policy.allow.len(), plan.policy.deny.len(), plan.name_servers.len()), (1, 1, 1));
        assert!(plan.bound.is_some() && plan.limits == Limits::default());
        assert!(!format!("{plan:?}").contains("hunter2"));
    }

    #[test]
    fn each_part_is_checked() {
        let field = |change: fn(&mut BoxConfig)| plan(change).unwrap_err().field;
        assert_eq!(field(|c| c.dns = list("dns.example")), "dns");
        assert_eq!(field(|c| c.dns_search = list("a b")), "dns_search");
        assert_eq!(field(|c| c.dns_search = vec![".".into(), "a.example".into()]), "dns_search");
        assert_eq!(field(|c| c.dns_option = list("ndots: 2")), "dns_option");
        assert_eq!(
            field(|c| (c.network, c.dns_search) = (NetworkMode::None, list("a.example"))),
            "dns_search"
        );
        assert_eq!(field(|c| c.allow = list("10.0.0.0/33")), "allow");
        assert_eq!(field(|c| c.deny = list("a b")), "deny");
        for loopback in ["127.0.0.1", "127.0.0.0/8:80/tcp", "127.1.2.3:80", "[::1]:443", "::1"] {
            let error = plan(|c| c.allow = list(loopback)).unwrap_err();
            assert!(error.field == "allow" && error.allowed.contains("`host:PORT`"), "{loopback}: {error}");
            assert_eq!(plan(|c| c.network_bound = Some(list(loopback))).unwrap_err().field, "network_bound");
            assert!(plan(|c| c.deny = list(loopback)).is_ok());
        }
        assert!(plan(|c| c.allow = list("126.0.0.0/7")).is_ok());
        assert_eq!(field(|c| c.network_bound = Some(list("x:0"))), "network_bound");
        assert_eq!(field(|c| c.network_limits.max_connections = 0), "network_limits");
        assert_eq!(field(|c| c.secrets = vec![secret("1", "x", "a.example")]), "secrets");
        assert_eq!(field(|c| c.secrets = vec![secret("A", "", "a.example")]), "secrets");
        assert_eq!(field(|c| c.secrets = vec![secret("A", "x", "*")]), "secrets");
        assert_eq!(field(|c| c.allow = vec!["*".into(); MAX_RULES + 1]), "allow");
        assert!(plan(|c| c.allow = vec!["*".into(); MAX_RULES]).is_ok());
        assert_eq!(field(|c| (c.network, c.dns) = (NetworkMode::None, list("9.9.9.9"))), "dns");
        assert_eq!(field(|c| (c.network, c.allow) = (NetworkMode::None, list("*"))), "allow");
        assert_eq!(plan(|c| c.network = NetworkMode::None), Ok(None));
        let on = |network: &str| plan(|c| c.network = NetworkMode::Bridge { network: network.into() });
        assert_eq!(on("agents").unwrap().unwrap().shared, Some("agents".into()));
        for wrong in ["", "../agents", "a b", "-a"] {
            assert_eq!(on(wrong).unwrap_err().field, "network", "{wrong}");
        }
    }

    #[test]
    fn search_domains_and_options_replace_the_hosts() {
        let settings = |search: &[&str], options: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            let plan =
                plan(|c| (c.dns_search, c.dns_option) = (owned(search), owned(options))).unwrap().unwrap();
            (plan.search, plan.dns_options)
        };
        assert_eq!(settings(&[], &[]), (None, None));
        assert_eq!(settings(&["."], &[]), (Some(vec![]), None));
        let (search, options) = settings(&["Corp.example.", "b.example"], &["ndots:2", "rotate"]);
        assert_eq!(search.unwrap(), ["corp.example", "b.example"]);
        assert_eq!(options.unwrap(), ["ndots:2", "rotate"]);
    }

    #[test]
    fn a_value_is_written_unless_it_was_taken_away() {
        let secret = secret("KEY", "hunter2", "a.example");
        let text = serde_json::to_string(&secret).unwrap();
        assert_eq!(serde_json::from_str::<SecretConfig>(&text).unwrap(), secret);
        let shown = serde_json::to_string(&secret.without_value()).unwrap();
        assert_eq!(shown, r#"{"name":"KEY","domains":["a.example"]}"#);
    }
}
