//! Paths from outside, validated once into components: the check *at the merge*.
//!
//! The ext4 writer checks every name again by its own rules ([`crate::ext4`]), so that neither
//! place trusts the other.

use crate::error::{ImportError, Refusal};
use crate::job::Limits;

/// A path of a source entry: relative, without `.`, `..` or hostile names. Empty is the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath<'a> {
    raw: &'a [u8],
    components: Vec<&'a [u8]>,
}

impl<'a> EntryPath<'a> {
    /// Validates a path. `./a//b/` is `a/b`.
    pub(crate) fn parse(raw: &'a [u8], limits: &Limits) -> Result<Self, ImportError> {
        let refused = |why| Err(ImportError::refused(raw, why));
        if raw.is_empty() {
            return refused(Refusal::EmptyName);
        }
        if raw.len() > limits.max_path_len {
            let limit = limits.max_path_len as u64;
            return Err(ImportError::limit(raw, limit, "bytes of path"));
        }
        if raw.first() == Some(&b'/') {
            return refused(Refusal::Absolute);
        }
        let mut components = Vec::new();
        for component in raw.split(|byte| *byte == b'/') {
            if matches!(component, b"" | b".") {
                continue;
            }
            if let Err(why) = check_name(component) {
                return refused(why);
            }
            components.push(component);
        }
        if components.len() > limits.max_depth {
            let limit = limits.max_depth as u64;
            return Err(ImportError::limit(raw, limit, "directories deep"));
        }
        Ok(Self { raw, components })
    }

    /// As [`Self::parse`], but a leading slash is the root of the image: what every program that
    /// unpacks images makes of it, and harmless where no kernel resolves a path.
    pub(crate) fn parse_rooted(raw: &'a [u8], limits: &Limits) -> Result<Self, ImportError> {
        if raw.first() != Some(&b'/') || raw.len() > limits.max_path_len {
            return Self::parse(raw, limits);
        }
        let start = raw.iter().position(|byte| *byte != b'/');
        let relative = start.map_or(&b"."[..], |start| &raw[start..]);
        let Self { components, .. } = Self::parse(relative, limits)?;
        Ok(Self { raw, components })
    }

    /// The path as the source spells it.
    pub(crate) fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The parent's components and the last name; `None` for the root.
    pub(crate) fn split_last(&self) -> Option<(&[&'a [u8]], &'a [u8])> {
        let (name, parents) = self.components.split_last()?;
        Some((parents, name))
    }

    /// All components.
    pub(crate) fn components(&self) -> &[&'a [u8]] {
        &self.components
    }
}

/// Validates one component.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Refusal> {
    match name {
        b"" | b"." => Err(Refusal::EmptyName),
        b".." => Err(Refusal::ParentComponent),
        _ if name.len() > 255 => Err(Refusal::NameTooLong),
        _ if name.iter().any(u8::is_ascii_control) => Err(Refusal::ControlCharacter),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(raw: &[u8]) -> Result<Vec<Vec<u8>>, ImportError> {
        let path = EntryPath::parse(raw, &Limits::default())?;
        Ok(path.components().iter().map(|c| c.to_vec()).collect())
    }

    fn why(raw: &[u8]) -> Refusal {
        match parse(raw) {
            Err(ImportError::Refused { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn plain_paths_are_normalised() {
        assert_eq!(parse(b"./a//b/").unwrap(), [b"a", b"b"]);
        assert!(parse(b"./").unwrap().is_empty());
        // Carried, not refused: no helper program ever sees a name.
        for odd in [
            &b"-rf"[..],
            b"a b",
            b"\"q\"",
            b"'",
            b"<12>",
            b"caf\xc3\xa9",
            b"\xff",
        ] {
            assert_eq!(parse(odd).unwrap(), [odd]);
        }
    }

    #[test]
    fn a_leading_slash_is_the_root_of_an_image() {
        let limits = Limits::default();
        let parse =
            |raw| EntryPath::parse_rooted(raw, &limits).map(|path| path.components.concat());
        assert_eq!(parse(b"//a/").unwrap(), b"a");
        assert_eq!(parse(b"/").unwrap(), b"");
        assert!(parse(b"/../a").is_err() && parse(b"").is_err());
    }

    // covers R57, R63
    #[test]
    fn hostile_paths_are_refused_with_the_reason() {
        assert_eq!(why(b"a/../b"), Refusal::ParentComponent);
        assert_eq!(why(b".."), Refusal::ParentComponent);
        assert_eq!(why(b"/etc/passwd"), Refusal::Absolute);
        assert_eq!(why(b"a\nb"), Refusal::ControlCharacter);
        assert_eq!(why(b"a\0b"), Refusal::ControlCharacter);
        assert_eq!(why(b"a/\x7f"), Refusal::ControlCharacter);
        assert_eq!(why(b""), Refusal::EmptyName);
        assert_eq!(why(&[b'a'; 256]), Refusal::NameTooLong);
        assert!(parse(&[b'a'; 255]).is_ok());
        let deep = b"a/".repeat(257);
        assert!(matches!(parse(&deep), Err(ImportError::Limit { .. })));
        let long = [b"a".repeat(200), vec![b'/']].concat().repeat(30);
        assert!(matches!(parse(&long), Err(ImportError::Limit { .. })));
    }

    proptest! {
        // covers R63
        #[test]
        fn whatever_is_accepted_stays_inside(raw in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40)) {
            if let Ok(components) = parse(&raw) {
                for component in components {
                    prop_assert!(!component.is_empty() && component.len() <= 255);
                    prop_assert!(component != b"." && component != b"..");
                    prop_assert!(!component.iter().any(|b| *b == b'/' || *b < 32 || *b == 127));
                }
            }
        }
    }
}
