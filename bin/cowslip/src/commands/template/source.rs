//! The words for where a template's content is.

use std::path::{Path, PathBuf};

use cowslip_model::api::{ErrorCode, ImportFormat, ImportSource, PullPolicy, RegistryCredentials};
use cowslip_registry::{Credentials, ParseReferenceError, Reference, credentials};

use crate::commands::on_this_host;
use crate::exit::Failure;

/// Where a template's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// The engine reads it.
    Place(Place),
    /// It is sent to the engine: a file, or standard input; and which image of an archive.
    Bytes(ImportFormat, Option<PathBuf>, Option<String>),
}

/// What the engine reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Directory(PathBuf),
    OciLayout(PathBuf, Option<String>),
    Registry(Reference),
}

impl Place {
    /// As the engine is told of it: with paths that mean the same to it, and with what the user keeps for a registry.
    pub(crate) async fn for_engine(self, pull: PullPolicy) -> Result<ImportSource, Failure> {
        Ok(match self {
            Self::Registry(reference) => ImportSource::Registry {
                credentials: credentials(reference.clone()).await?,
                reference: reference.to_string(),
                pull,
            },
            Self::Directory(path) => ImportSource::Directory {
                path: on_this_host(&path)?,
            },
            Self::OciLayout(path, tag) => ImportSource::OciLayout {
                path: on_this_host(&path)?,
                tag,
            },
        })
    }
}

/// What `docker login` and the like keep for a registry. A helper program may ask the user.
async fn credentials(reference: Reference) -> Result<Option<RegistryCredentials>, Failure> {
    let what = format!("look up who you are to {}", reference.registry());
    let looked = tokio::task::spawn_blocking(move || {
        credentials::lookup(&credentials::files(), reference.registry())
    });
    let died = |_| Failure::new(ErrorCode::Internal, "the look at credentials died");
    let found = looked
        .await
        .map_err(died)?
        .map_err(|error| Failure::usage(what).because(error))?;
    Ok(match found {
        Credentials::Anonymous => None,
        Credentials::Basic { user, password } => {
            Some(RegistryCredentials::Basic { user, password })
        }
        Credentials::IdentityToken(token) => Some(RegistryCredentials::IdentityToken { token }),
    })
}

/// Reads a source's words.
pub(crate) fn parse(text: &str) -> Result<Source, String> {
    let bytes = |format, text| {
        let (path, tag) = split(text, Path::exists);
        let file = (path.as_os_str() != "-").then_some(path);
        Source::Bytes(format, file, tag)
    };
    let named = |what: &str| format!("{what} is to be named behind the colon");
    match text.split_once(':') {
        Some(("docker", _)) => text
            .parse()
            .map(|reference| Source::Place(Place::Registry(reference)))
            .map_err(|error: ParseReferenceError| error.to_string()),
        Some(("oci", "")) => Err(named("a directory")),
        Some(("oci-archive" | "docker-archive", "")) => Err(named("a file")),
        Some(("oci", rest)) => {
            let (path, tag) = split(rest, Path::exists);
            Ok(Source::Place(Place::OciLayout(path, tag)))
        }
        Some(("oci-archive", rest)) => Ok(bytes(ImportFormat::OciArchive, rest)),
        Some(("docker-archive", rest)) => Ok(bytes(ImportFormat::DockerArchive, rest)),
        _ if text == "-" => Ok(Source::Bytes(ImportFormat::Tar, None, None)),
        _ if Path::new(text).is_dir() => Ok(Source::Place(Place::Directory(text.into()))),
        _ => Ok(Source::Bytes(ImportFormat::Tar, Some(text.into()), None)),
    }
}

/// `PATH[:TAG]`, where both may have colons: the shortest path that there is, with the rest for a tag.
fn split(text: &str, exists: impl Fn(&Path) -> bool) -> (PathBuf, Option<String>) {
    let mut cuts = text.match_indices(':').map(|(at, _)| text.split_at(at));
    let is_there = |(path, _): &(&str, &str)| exists(Path::new(path)) || *path == "-";
    let found = cuts.clone().find(is_there);
    let found = match found {
        None if exists(Path::new(text)) => None,
        // Neither is there: the error names what is most likely meant.
        None => cuts.next(),
        found => found,
    };
    match found {
        Some((path, tag)) => (path.into(), Some(tag[1..].to_owned())),
        None => (text.into(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_follows_the_path_that_is_there() {
        let there = |path: &Path| {
            ["a.tar", "b:c.tar", "d:1.tar"]
                .map(Path::new)
                .contains(&path)
        };
        for (text, path, tag) in [
            ("a.tar", "a.tar", None),
            ("a.tar:12", "a.tar", Some("12")),
            ("a.tar:debian:12", "a.tar", Some("debian:12")),
            (
                "a.tar:localhost:5000/x:12",
                "a.tar",
                Some("localhost:5000/x:12"),
            ),
            ("b:c.tar", "b:c.tar", None),
            ("b:c.tar:12", "b:c.tar", Some("12")),
            ("-:12", "-", Some("12")),
            ("not-there:12", "not-there", Some("12")),
            ("not-there", "not-there", None),
        ] {
            let expected = (PathBuf::from(path), tag.map(str::to_owned));
            assert_eq!(split(text, there), expected, "{text}");
        }
    }

    #[test]
    fn words_name_a_source() {
        let tar = |path: &str| Ok(Source::Bytes(ImportFormat::Tar, Some(path.into()), None));
        assert_eq!(parse("-"), Ok(Source::Bytes(ImportFormat::Tar, None, None)));
        assert_eq!(parse("rootfs.tar.xz"), tar("rootfs.tar.xz"));
        assert_eq!(parse("C:rootfs.tar"), tar("C:rootfs.tar"));
        assert_eq!(parse("/"), Ok(Source::Place(Place::Directory("/".into()))));
        assert_eq!(
            parse("docker-archive:-"),
            Ok(Source::Bytes(ImportFormat::DockerArchive, None, None))
        );
        assert_eq!(
            parse("oci:/nowhere/at/all:v1"),
            Ok(Source::Place(Place::OciLayout(
                "/nowhere/at/all".into(),
                Some("v1".to_owned())
            )))
        );
        for (text, reference) in [
            ("docker://debian", "docker.io/library/debian:latest"),
            ("docker://localhost:5000/a/b:1", "localhost:5000/a/b:1"),
        ] {
            let expected = Source::Place(Place::Registry(reference.parse().unwrap()));
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for empty in [
            "oci:",
            "oci-archive:",
            "docker-archive:",
            "docker:",
            "docker://",
            "docker://A",
        ] {
            assert!(parse(empty).is_err(), "{empty}");
        }
    }
}
