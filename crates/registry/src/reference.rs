//! The name of an image in a registry.

use std::fmt;
use std::str::FromStr;

use cowslip_image::BlobDigest;
use serde::{Deserialize, Serialize};

use crate::host::Host;

/// An image in a registry: `docker://REGISTRY/REPOSITORY[:TAG][@DIGEST]`.
///
/// Short names are Docker's: `debian` is `docker.io/library/debian:latest`. It is written out in full, and without
/// `docker://`. Where there is a digest, the digest is what is pulled, and the tag is only carried along.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    registry: Host,
    repository: String,
    tag: Option<String>,
    digest: Option<BlobDigest>,
}

/// The text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no image of a registry: {why}", text.escape_debug())]
pub struct ParseReferenceError {
    /// Its beginning.
    text: String,
    why: &'static str,
}

const SCHEME: &str = "docker://";
const DEFAULT_TAG: &str = "latest";
/// Docker's registry keeps images without an owner there.
const DEFAULT_OWNER: &str = "library";
/// Of registry and repository together, as registries have it.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

impl Reference {
    /// The registry, under its own name: Docker's is `docker.io`.
    #[must_use]
    pub fn registry(&self) -> &Host {
        &self.registry
    }

    /// The repository, without the registry: `library/debian`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; there is none where only a digest was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, where one was given.
    #[must_use]
    pub fn digest(&self) -> Option<&BlobDigest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest, else the tag.
    pub(crate) fn wanted(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag().unwrap_or(DEFAULT_TAG).to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = ParseReferenceError;

    fn try_from(text: String) -> Result<Self, ParseReferenceError> {
        text.parse()
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        parse(text.strip_prefix(SCHEME).unwrap_or(text)).map_err(|why| ParseReferenceError {
            text: text.chars().take(80).collect(),
            why,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (name, digest) = match text.split_once('@') {
        None => (text, None),
        Some((name, digest)) => {
            let digest = digest.parse();
            let why = "what follows \"@\" must be \"sha256:\" and 64 hexadecimal digits; \
                       credentials are no part of a name, log in with \"docker login\"";
            (name, Some(digest.map_err(|_| why)?))
        }
    };
    // A colon in front of a slash belongs to a port.
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("a tag is up to 128 letters, digits, \"_\", \".\" and \"-\"");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => {
            let registry = first.parse();
            let why = "the registry is no HOST or HOST:PORT";
            (registry.map_err(|_| why)?, rest.to_owned())
        }
        Some(_) => (Host::docker_hub(), name.to_owned()),
        None => (Host::docker_hub(), name.to_owned()),
    };
    let repository = match registry == Host::docker_hub() && !path.contains('/') {
        true => format!("{DEFAULT_OWNER}/{path}"),
        false => path,
    };
    if !repository.split('/').all(is_component) {
        return Err(
            "a repository is of lower-case letters and digits, with single \".\", \"_\" and \"-\" \
                    between them, and \"/\" between its parts",
        );
    }
    if registry.to_string().len() + 1 + repository.len() > MAX_NAME {
        return Err("registry and repository are longer than 255 bytes together");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// Whether the first part of a name is a registry, and not an owner in Docker's.
fn is_registry(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':'])
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let plain = |byte: u8| word(byte) || matches!(byte, b'.' | b'-');
    (1..=MAX_TAG).contains(&tag.len()) && word(tag.as_bytes()[0]) && tag.bytes().all(plain)
}

/// Words of lower-case letters and digits, with one of `.`, `_`, `__` or dashes between them.
fn is_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    let ends = [part.bytes().next(), part.bytes().last()];
    ends.iter().all(|end| end.is_some_and(word)) && separators.into_iter().all(separator)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_dockers() {
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("docker://debian:12", "docker.io/library/debian:12"),
            ("owner/image", "docker.io/owner/image:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            (
                "docker.io/library/debian",
                "docker.io/library/debian:latest",
            ),
            ("localhost/a", "localhost/a:latest"),
            (
                "localhost:5000/a/b/c:1.0-x_y",
                "localhost:5000/a/b/c:1.0-x_y",
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Quay.io/a", "quay.io/a:latest"),
            ("a__b/c-d---e.f_g", "docker.io/a__b/c-d---e.f_g:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole);
        }
        let only: Reference = format!("debian@{DIGEST}").parse().unwrap();
        assert_eq!(
            only.to_string(),
            format!("docker.io/library/debian@{DIGEST}")
        );
        assert_eq!(only.wanted(), DIGEST);
        let both: Reference = format!("debian:12@{DIGEST}").parse().unwrap();
        assert_eq!(
            both.to_string(),
            format!("docker.io/library/debian:12@{DIGEST}")
        );
        assert_eq!(both.wanted(), DIGEST);
    }

    // covers R63
    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(255);
        let long_tag = format!("a:{}", "t".repeat(129));
        let uppercase_digest = format!("a@{}", DIGEST.to_uppercase());
        for bad in [
            "",
            "/",
            "docker://",
            ":",
            "@",
            "a:",
            "a@",
            "..",
            "../a",
            "a/../b",
            "a/./b",
            "a//b",
            "/a",
            "a/",
            "A",
            "owner/Image",
            "a.com/B",
            "a b",
            "a\nb",
            "a\0",
            "a\x1b[0m",
            "a:t\n",
            "a:-t",
            "a:.t",
            "a:t/b:",
            "user@host/a",
            "user:password@host/a",
            "https://a.com/b",
            "a.com:port/b",
            "a.com:0/b",
            "-a",
            "a-",
            "_a",
            "a_",
            "a..b",
            "a___b",
            "a._b",
            "é",
            "a?b",
            "a#b",
            "a%2e",
            "a\\b",
            "a@sha256:1234",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            &long,
            &long_tag,
            &uppercase_digest,
        ] {
            let error = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(!error.contains(|c: char| c.is_control()), "{error}");
        }
        let json = serde_json::from_str::<Reference>("\"a/../b\"").unwrap_err();
        assert!(json.to_string().contains("a repository is"), "{json}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            registry in "([a-z0-9]{1,9}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?/)?",
            // A dot in the first part would make it a registry.
            repository in "[a-z0-9]{1,8}([_-][a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}(\\.[a-z0-9]{1,8})?){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
            digest in any::<bool>(),
        ) {
            let digest = if digest { format!("@{DIGEST}") } else { String::new() };
            let text = format!("{registry}{repository}{tag}{digest}");
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
            let json = serde_json::to_string(&reference).unwrap();
            prop_assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
        }

        #[test]
        fn any_text_is_refused_or_is_safe(text in "[a-zA-Z0-9./:@_\\[\\] \\n-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
                prop_assert!(!reference.repository().contains(".."));
            }
        }
    }
}
