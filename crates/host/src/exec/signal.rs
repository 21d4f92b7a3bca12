//! Signals by name and number.

use std::fmt;
use std::str::FromStr;

/// Names by number, from 1 (signal(7), for the architectures that guests run on).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first and the last of the real-time ones, as libc has them.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// A signal.
///
/// ```
/// use bouvet_host::Signal;
///
/// assert_eq!("SIGTERM".parse(), Ok(Signal::TERM));
/// assert_eq!("15".parse(), Ok(Signal::TERM));
/// assert_eq!("rtmin+3".parse::<Signal>().unwrap().number(), 37);
/// assert!("SIGNATURE".parse::<Signal>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(u32);

/// No signal has this name or number.
///
/// ```
/// use bouvet_host::Signal;
///
/// let error = "STOPP".parse::<Signal>().unwrap_err();
/// assert!(error.to_string().starts_with("`STOPP` is no signal"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no signal; names as `TERM`, with or without SIG, and numbers from 1 to 64 are")]
pub struct ParseSignalError(String);

impl Signal {
    /// Ends what does not care.
    pub const TERM: Self = Self(15);
    /// Ends anything.
    pub const KILL: Self = Self(9);
    /// What Ctrl-C sends.
    pub const INT: Self = Self(2);

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    fn read(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return (1..=RTMAX).contains(&number).then_some(Self(number));
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(offset) = name.strip_prefix("RTMIN") {
            let number = RTMIN.checked_add(if offset.is_empty() { 0 } else { offset.parse().ok()? })?;
            return (number <= RTMAX).then_some(Self(number));
        }
        let index = NAMES.iter().position(|known| *known == name)?;
        u32::try_from(index + 1).ok().map(Self)
    }
}

impl FromStr for Signal {
    type Err = ParseSignalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text.trim()).ok_or_else(|| ParseSignalError(text.escape_debug().to_string()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.0.saturating_sub(1) as usize) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_read_as_it_is_written() {
        for number in 1..=64 {
            let signal: Signal = number.to_string().parse().unwrap();
            assert_eq!(signal.to_string().parse(), Ok(signal));
        }
        for wrong in ["", "0", "65", "-1", "SIG", "RTMIN+31", "RTMIN+x"] {
            assert!(wrong.parse::<Signal>().is_err(), "{wrong}");
        }
    }
}
