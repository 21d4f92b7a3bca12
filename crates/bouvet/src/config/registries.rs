//! Registries from which MCP clients may pull images.

/// Registries from which MCP clients may take images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries(pub(super) Vec<String>);

impl Registries {
    /// Whether this one is among them.
    pub fn allow(&self, registry: &str) -> bool {
        self.0.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(registry))
    }
}

impl std::fmt::Display for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}
