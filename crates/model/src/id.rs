//! Typed ids: 64 random bits, shown as 16 hexadecimal digits.
//!
//! An id becomes part of file names, process names and, later, of device-mapper names and tap
//! interfaces (15 bytes at most), so it is short and has one spelling. Ids are random rather than
//! time-ordered so that the first few digits tell two objects apart; uniqueness is enforced by the
//! ledger's primary keys.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Digits in the short form shown in tables.
pub const SHORT_LEN: usize = 12;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {kind} id: expected 16 hexadecimal digits")]
pub struct IdError {
    kind: &'static str,
    text: String,
}

/// The system's random source did not answer; nothing safe can be named without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("draw a random id: {0}")]
pub struct RandomError(String);

fn draw() -> Result<u64, RandomError> {
    getrandom::u64().map_err(|error| RandomError(error.to_string()))
}

fn parse(kind: &'static str, text: &str) -> Result<u64, IdError> {
    let canonical =
        text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    canonical
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
        .ok_or_else(|| IdError {
            kind,
            text: text.chars().take(64).collect(),
        })
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// Draws a new id.
            ///
            /// # Errors
            /// When the system's random source fails.
            pub fn random() -> Result<Self, RandomError> {
                draw().map(Self)
            }

            /// The id with these bits, for tests and simulated hosts.
            #[must_use]
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// The first [`SHORT_LEN`] digits, as tables show them.
            #[must_use]
            pub fn short(&self) -> String {
                let mut text = self.to_string();
                text.truncate(SHORT_LEN);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, "({:016x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse($kind, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some("^[0-9a-f]{16}$"))
                    .description(Some(concat!("the id of a ", $kind)))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}
    };
}

typed_id!(/// A sandbox.
    SandboxId, "sandbox");
typed_id!(/// A checkpoint.
    CheckpointId, "checkpoint");
typed_id!(/// A template.
    TemplateId, "template");
typed_id!(/// A guest kernel.
    KernelId, "kernel");
typed_id!(/// One copy-on-write layer.
    LayerId, "layer");
typed_id!(/// A row of the ledger.
    HandleId, "handle");
typed_id!(/// A process started in a guest.
    ProcessId, "process");
typed_id!(/// A state directory: two engines on one host never touch each other's objects.
    InstanceId, "instance");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_has_one_spelling() {
        let id = SandboxId::random().unwrap();
        assert_eq!(id.to_string().parse::<SandboxId>().unwrap(), id);
        assert_eq!(id.short().len(), SHORT_LEN);
        for bad in [
            "",
            "0123",
            "0123456789ABCDEF",
            "0123456789abcdeg",
            "../../../../etc",
            "+123456789abcdef",
        ] {
            assert!(
                bad.parse::<SandboxId>().is_err(),
                "{bad:?} was taken for an id"
            );
        }
    }
}
