//! Transports of MCP clients.

/// Transports by which MCP clients reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Over standard input and output.
    Stdio,
    /// Over HTTP.
    Http,
    /// Both ways at once.
    Both,
}

impl Transport {
    /// Whether standard input and output are served.
    pub fn stdio(self) -> bool {
        matches!(self, Self::Stdio | Self::Both)
    }

    /// Whether HTTP is served.
    pub fn http(self) -> bool {
        matches!(self, Self::Http | Self::Both)
    }
}
