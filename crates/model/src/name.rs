//! Names that people give to sandboxes, templates, kernels and checkpoints.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: a host name's label, since a sandbox's name becomes its host name.
pub const MAX_LEN: usize = 63;

/// A valid name: `[a-z0-9]`, then up to 62 of `[a-z0-9._-]`, with no `..`, not ending in a
/// separator, and not mistakable for an id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the name is empty: give one of a-z, 0-9, '.', '_' and '-'")]
    Empty,
    /// Over [`MAX_LEN`] bytes.
    #[error("the name \"{start}…\" has {len} bytes: the limit is {MAX_LEN}")]
    TooLong {
        /// The first characters of it.
        start: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character that names cannot have.
    #[error("the name {text:?} has the character {character:?}: use a-z, 0-9, '.', '_' and '-'")]
    Character {
        /// The whole text.
        text: String,
        /// The first offending character.
        character: char,
    },
    /// Starts or ends with a separator, or has two dots in a row.
    #[error("the name {text:?} must start and end with a letter or digit and have no \"..\"")]
    Shape {
        /// The whole text.
        text: String,
    },
    /// Sixteen hexadecimal digits: an id looks like that.
    #[error("the name \"{text}\" looks like an id: choose one that is not 16 hexadecimal digits")]
    LooksLikeId {
        /// The whole text.
        text: String,
    },
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_LEN {
            return Err(NameError::TooLong {
                start: text.chars().take(16).collect(),
                len: text.len(),
            });
        }
        let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
        if let Some(character) = text.chars().find(|&c| !allowed(c)) {
            return Err(NameError::Character {
                text: text.to_owned(),
                character,
            });
        }
        let separator = |c: char| matches!(c, '.' | '_' | '-');
        if text.starts_with(separator) || text.ends_with(separator) || text.contains("..") {
            return Err(NameError::Shape {
                text: text.to_owned(),
            });
        }
        if text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NameError::LooksLikeId {
                text: text.to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl utoipa::PartialSchema for Name {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"))
            .max_length(Some(MAX_LEN))
            .into()
    }
}

impl utoipa::ToSchema for Name {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_names_are_names() {
        // covers R63
        for good in ["a", "web-1", "py3.12", "a_b", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "/",
            "a/b",
            "..",
            "a..b",
            ".a",
            "-a",
            "a-",
            "A",
            "Web",
            "a b",
            "a\nb",
            "a\0",
            "ä",
            &"x".repeat(64),
            &"x".repeat(300),
            "0123456789abcdef",
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was taken for a name");
        }
    }
}
