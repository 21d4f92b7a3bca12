//! Signals by name and number.

use std::fmt;
use std::str::FromStr;

/// Names by number, from 1 (signal(7), for the architectures that guests run on).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// Other names (signal(7)).
const ALIASES: [(&str, &str); 3] = [("IOT", "ABRT"), ("CLD", "CHLD"), ("POLL", "IO")];
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
/// assert_eq!("SIGRTMAX-1".parse::<Signal>().unwrap().to_string(), "SIGRTMIN+29");
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
/// assert!(error.to_string().starts_with("`STOPP` is not a signal"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a signal; {allowed}", allowed = Signal::ALLOWED)]
pub struct ParseSignalError(String);

impl Signal {
    /// Ends what does not care.
    pub const TERM: Self = Self(15);
    /// Ends anything.
    pub const KILL: Self = Self(9);
    /// What Ctrl-C sends.
    pub const INT: Self = Self(2);

    /// Allowed signals, for errors.
    pub(crate) const ALLOWED: &str =
        "names with or without SIG, as TERM, RTMIN+3 and RTMAX-1, and numbers from 1 to 64 are allowed";

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    fn read(text: &str) -> Option<Self> {
        if let Some(number) = digits(text) {
            return (1..=RTMAX).contains(&number).then_some(Self(number));
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(offset) = name.strip_prefix("RTMIN") {
            return Self::real_time(RTMIN.checked_add(distance(offset, '+')?)?);
        }
        if let Some(offset) = name.strip_prefix("RTMAX") {
            return Self::real_time(RTMAX.checked_sub(distance(offset, '-')?)?);
        }
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| *name);
        let index = NAMES.iter().position(|known| *known == name)?;
        u32::try_from(index + 1).ok().map(Self)
    }

    fn real_time(number: u32) -> Option<Self> {
        (RTMIN..=RTMAX).contains(&number).then_some(Self(number))
    }
}

/// The number that `text` is. The parser of integers takes a sign too.
fn digits(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Distance from the first or last real-time signal: empty, or `sign` and a number.
fn distance(text: &str, sign: char) -> Option<u32> {
    if text.is_empty() { Some(0) } else { digits(text.strip_prefix(sign)?) }
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
            None if self.0 == RTMIN => write!(f, "SIGRTMIN"),
            None if self.0 > RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
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
        for (name, number) in [
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("rtmin+0", 34),
            ("RTMIN+30", 64),
            ("RTMAX", 64),
            ("SIGRTMAX-14", 50),
            ("RTMAX-30", 34),
            ("IOT", 6),
            ("SIGCLD", 17),
            ("POLL", 29),
            ("33", 33),
        ] {
            assert_eq!(name.parse::<Signal>().unwrap().number(), number, "{name}");
        }
        for wrong in [
            "",
            "0",
            "65",
            "-1",
            "+1",
            "SIG",
            "SIG9",
            "RTMIN+31",
            "RTMIN+x",
            "RTMIN3",
            "RTMIN-1",
            "RTMAX+1",
            "RTMAX-31",
            "RTMIN++1",
            "RTMIN+",
            "4294967297",
        ] {
            assert!(wrong.parse::<Signal>().is_err(), "{wrong}");
        }
    }
}
