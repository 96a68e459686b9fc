//! Which monitor runs a sandbox's machine, and how it is kept apart from the host.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The program that runs a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MonitorKind {
    /// QEMU, with KVM or without.
    #[default]
    Qemu,
    /// Firecracker, on KVM.
    Firecracker,
}

/// How Firecracker is kept apart from the host; QEMU always in the same way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// By its jailer: a root directory, a user and a mount namespace of its own.
    #[default]
    Jail,
    /// By a mount namespace and its own seccomp filter only; it runs as the engine's user.
    Direct,
}

impl Isolation {
    /// What a sandbox that wants this gets where no less than `least` is allowed: more is always fine.
    #[must_use]
    pub const fn at_least(self, least: Self) -> Self {
        match (self, least) {
            (Self::Direct, Self::Direct) => Self::Direct,
            _ => Self::Jail,
        }
    }
}

/// A word that names no such thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{word}\" is not known: it may be {known}")]
pub struct UnknownWord {
    word: String,
    known: &'static str,
}

impl UnknownWord {
    pub(crate) fn new(text: &str, known: &'static str) -> Self {
        Self {
            word: text.chars().take(40).collect(),
            known,
        }
    }
}

impl FromStr for MonitorKind {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "qemu" => Ok(Self::Qemu),
            "firecracker" => Ok(Self::Firecracker),
            _ => Err(UnknownWord::new(text, "\"qemu\" or \"firecracker\"")),
        }
    }
}

impl FromStr for Isolation {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "jail" => Ok(Self::Jail),
            "direct" => Ok(Self::Direct),
            _ => Err(UnknownWord::new(text, "\"jail\" or \"direct\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_what_is_allowed_is_never_given() {
        use Isolation::{Direct, Jail};
        assert_eq!(Direct.at_least(Direct), Direct);
        for (wanted, least) in [(Direct, Jail), (Jail, Direct), (Jail, Jail)] {
            assert_eq!(wanted.at_least(least), Jail);
        }
    }

    #[test]
    fn words_are_those_of_json() {
        for kind in [MonitorKind::Qemu, MonitorKind::Firecracker] {
            let word = serde_json::to_value(kind).unwrap();
            assert_eq!(word.as_str().unwrap().parse(), Ok(kind));
        }
        for isolation in [Isolation::Jail, Isolation::Direct] {
            let word = serde_json::to_value(isolation).unwrap();
            assert_eq!(word.as_str().unwrap().parse(), Ok(isolation));
        }
        assert!("QEMU".parse::<MonitorKind>().is_err() && "".parse::<Isolation>().is_err());
    }
}
