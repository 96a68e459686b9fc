//! Points in time and lifetimes.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, by the host's clock.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment that `time` names; a time before the epoch counts as the epoch.
    #[must_use]
    pub fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self::from_system(SystemTime::now())
    }

    /// This moment and `lifetime` more.
    #[must_use]
    pub fn after(self, lifetime: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// How long from `earlier` to this; zero where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The same moment for the standard library.
    #[must_use]
    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.to_system()))
    }
}

/// How long a sandbox may live: `90s`, `10m`, `1h 30m`. In JSON: seconds.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Lifetime(pub u64);

/// A text that is no lifetime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time span: write for example 90s, 10m or 1h30m, at least 1s")]
pub struct LifetimeError(String);

impl Lifetime {
    /// The same span for the standard library.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Lifetime {
    type Err = LifetimeError;
    fn from_str(text: &str) -> Result<Self, LifetimeError> {
        let error = || LifetimeError(text.chars().take(40).collect());
        let seconds = match text.parse::<u64>() {
            Ok(seconds) => seconds,
            Err(_) => humantime::parse_duration(text)
                .map_err(|_| error())?
                .as_secs(),
        };
        if seconds == 0 {
            Err(error())
        } else {
            Ok(Self(seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_parse() {
        assert_eq!("90".parse::<Lifetime>().unwrap().0, 90);
        assert_eq!("1h30m".parse::<Lifetime>().unwrap().0, 5400);
        for bad in ["", "0", "0s", "soon", "-3s"] {
            assert!(bad.parse::<Lifetime>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_clock_that_steps_back_never_underflows() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    }
}
