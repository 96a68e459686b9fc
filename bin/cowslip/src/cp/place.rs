//! Where things are and where they land, decided without touching anything.

use std::io::Read;
use std::path::{Path, PathBuf};

use cowslip_model::api::ErrorCode;

use crate::exit::Failure;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a sandbox.
    Remote(Remote),
    /// On this host, as typed: a slash at the end means something.
    Local(String),
    /// A tar on standard input or output.
    Stream,
}

/// A place in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    /// The sandbox, as typed.
    pub(crate) sandbox: String,
    /// The absolute path, without what its end says.
    path: String,
    /// It ended in `/.`: the contents are meant.
    pub(crate) contents: bool,
    /// It ended in `/`: a directory is meant.
    pub(crate) slash: bool,
}

impl Place {
    /// What was typed. A path that holds a colon is local if it begins with `.` or `/`.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err(Failure::usage("a path to copy is empty"));
        }
        match text.split_once(':') {
            Some((sandbox, path)) if !text.starts_with(['.', '/']) && !sandbox.contains('/') => {
                Remote::new(sandbox, path).map(Self::Remote)
            }
            _ => Ok(Self::Local(text.to_owned())),
        }
    }
}

impl Remote {
    fn new(sandbox: &str, path: &str) -> Result<Self, Failure> {
        if sandbox.is_empty() || path.is_empty() || path.contains('\0') {
            return Err(
                Failure::usage(format!("\"{sandbox}:{path}\" names no file of a sandbox"))
                    .hint("write SANDBOX:PATH"),
            );
        }
        let contents = path.ends_with("/.") || path == ".";
        let slash = path.ends_with('/');
        // As in docker, a relative path starts at the root.
        let mut whole = String::from("/");
        let parts = path
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".");
        for part in parts {
            if part == ".." {
                return Err(Failure::usage(format!(
                    "the path \"{path}\" of the sandbox has \"..\""
                )));
            }
            if whole.len() > 1 {
                whole.push('/');
            }
            whole.push_str(part);
        }
        Ok(Self {
            sandbox: sandbox.to_owned(),
            path: whole,
            contents,
            slash,
        })
    }

    /// The absolute path in the guest.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Its last component; none for the root.
    pub(crate) fn file_name(&self) -> Option<&str> {
        self.path.rsplit('/').next().filter(|name| !name.is_empty())
    }

    fn parent(&self) -> &str {
        match self.path.rfind('/') {
            None | Some(0) => "/",
            Some(end) => &self.path[..end],
        }
    }
}

/// What is to be copied from this host.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    /// The file or directory.
    pub(crate) path: PathBuf,
    /// It is a directory.
    pub(crate) directory: bool,
    contents: bool,
    name: Option<String>,
}

impl Sources {
    /// Looks at what was typed.
    pub(crate) fn look(text: &str) -> Result<Self, Failure> {
        let path = PathBuf::from(text);
        let failed = |error| Failure::io(format!("read \"{text}\""), &error);
        // A link that was named is followed only with a slash at its end, as `cp -P` has it.
        let found = if text.ends_with('/') || text.ends_with("/.") || text == "." {
            std::fs::metadata(&path)
        } else {
            std::fs::symlink_metadata(&path)
        }
        .map_err(failed)?;
        let directory = found.is_dir();
        if text.ends_with('/') && !directory {
            return Err(Failure::usage(format!("\"{text}\" is not a directory")));
        }
        let contents = directory && (text.ends_with("/.") || text == ".");
        let name = match path.file_name() {
            Some(name) => name.to_str().map(str::to_owned),
            // "..", or "/": the directory itself has a name, or is the root.
            None => std::fs::canonicalize(&path)
                .map_err(failed)?
                .file_name()
                .and_then(|name| name.to_str())
                .map(str::to_owned),
        };
        Ok(Self {
            path,
            directory,
            contents,
            name,
        })
    }
}

/// What is at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nothing.
    Absent,
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

impl Target {
    /// What is at this path of this host; links are followed.
    pub(crate) fn of_path(path: &Path) -> Result<Self, Failure> {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => Ok(Self::Directory),
            Ok(_) => Ok(Self::File),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::Absent),
            Err(error) => Err(Failure::io(
                format!("look at \"{}\"", path.display()),
                &error,
            )),
        }
    }

    /// What an archive's first entry is.
    pub(crate) fn of_archive(archive: impl Read) -> Result<Self, Failure> {
        let mut archive = tar::Archive::new(archive);
        let bad = |error: std::io::Error| Failure::io("look at the destination", &error);
        match archive.entries().map_err(bad)?.next() {
            None => Ok(Self::Absent),
            Some(entry)
                if entry
                    .as_ref()
                    .is_ok_and(|entry| entry.header().entry_type().is_dir()) =>
            {
                Ok(Self::Directory)
            }
            Some(entry) => entry.map(|_| Self::File).map_err(bad),
        }
    }
}

/// Where a copy into a guest lands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Landing {
    /// The directory that the archive is unpacked into.
    pub(crate) directory: String,
    /// The name of its top entry; none: it has none, only contents.
    pub(crate) name: Option<String>,
}

impl Landing {
    /// The contents of an archive in this directory.
    pub(crate) fn into(directory: &str) -> Self {
        Self {
            directory: directory.to_owned(),
            name: None,
        }
    }
}

/// Where `sources` land at `to`, where `target` is.
pub(crate) fn land_in_guest(
    sources: &Sources,
    to: &Remote,
    target: &Target,
) -> Result<Landing, Failure> {
    let as_named = || {
        let name = to.file_name().map(str::to_owned);
        Landing {
            directory: to.parent().to_owned(),
            name,
        }
    };
    match target {
        Target::Directory if sources.contents => Ok(Landing::into(to.path())),
        Target::Directory => {
            let name = sources.name.clone().ok_or_else(|| {
                Failure::usage(format!(
                    "\"{}\" has no name to copy it under",
                    sources.path.display()
                ))
                .hint("copy its contents, with /. at the end")
            })?;
            Ok(Landing {
                directory: to.path().to_owned(),
                name: Some(name),
            })
        }
        _ if to.file_name().is_none() => Ok(Landing::into("/")),
        Target::Absent if to.slash && !sources.directory => {
            Err(no_directory(&format!("{}:{}", to.sandbox, to.path())))
        }
        Target::Absent => Ok(as_named()),
        Target::File if sources.directory => Err(not_over_file(
            &sources.path.display().to_string(),
            to.path(),
        )),
        Target::File if to.slash => Err(Failure::usage(format!(
            "\"{}\" is not a directory",
            to.path()
        ))),
        Target::File => Ok(as_named()),
    }
}

/// Where what `from` names lands on this host, for a top entry that is a directory or not.
pub(super) fn land_here(from: &Remote, to: &str, directory: bool) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(to);
    let slash = to.ends_with('/');
    match Target::of_path(&path)? {
        Target::Directory if directory && from.contents => Ok(path),
        Target::Directory => match from.file_name() {
            Some(name) => Ok(path.join(name)),
            None => Ok(path),
        },
        Target::Absent if slash && !directory => Err(no_directory(to)),
        Target::Absent => Ok(path),
        Target::File if directory => Err(not_over_file(from.path(), to)),
        Target::File if slash => Err(Failure::usage(format!("\"{to}\" is not a directory"))),
        Target::File => Ok(path),
    }
}

fn no_directory(path: &str) -> Failure {
    Failure::new(
        ErrorCode::NotFound,
        format!("there is no directory \"{path}\""),
    )
    .hint("make it first, or leave out the slash at the end to make a file of that name")
}

fn not_over_file(from: &str, to: &str) -> Failure {
    Failure::usage(format!(
        "cannot copy the directory \"{from}\" over the file \"{to}\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(text: &str) -> Remote {
        match Place::parse(text).unwrap() {
            Place::Remote(remote) => remote,
            other => panic!("{other:?}"),
        }
    }

    fn sources(directory: bool, contents: bool) -> Sources {
        Sources {
            path: "src".into(),
            directory,
            contents,
            name: Some("src".into()),
        }
    }

    #[test]
    fn places_are_told_apart() {
        assert_eq!(Place::parse("-").unwrap(), Place::Stream);
        for local in ["file", "./a:b", "/a:b", "a/b:c", "dir/"] {
            assert_eq!(
                Place::parse(local).unwrap(),
                Place::Local(local.into()),
                "{local}"
            );
        }
        let place = remote("web:/etc//hosts");
        assert_eq!(
            (place.sandbox.as_str(), place.path()),
            ("web", "/etc/hosts")
        );
        assert_eq!(remote("web:etc").path(), "/etc");
        assert!(remote("web:/etc/.").contents && remote("web:/etc/").slash);
        assert_eq!(remote("web:/").file_name(), None);
        for bad in ["", ":x", "web:", "web:/a/../b"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn copies_into_a_guest_land_where_docker_puts_them() {
        let land = |sources: Sources, to: &str, target| {
            land_in_guest(&sources, &remote(to), &target)
                .map(|landing| (landing.directory, landing.name.unwrap_or_default()))
                .map_err(|failure| failure.error.message)
        };
        let at = |directory: &str, name: &str| Ok((directory.to_owned(), name.to_owned()));
        let (file, tree, contents) = (
            || sources(false, false),
            || sources(true, false),
            || sources(true, true),
        );
        assert_eq!(land(file(), "w:/a/b", Target::Absent), at("/a", "b"));
        assert_eq!(land(file(), "w:/a/b", Target::File), at("/a", "b"));
        assert_eq!(land(file(), "w:/a/b", Target::Directory), at("/a/b", "src"));
        assert_eq!(land(file(), "w:/b", Target::Absent), at("/", "b"));
        assert_eq!(land(file(), "w:/", Target::Directory), at("/", "src"));
        assert!(
            land(file(), "w:/a/b/", Target::Absent)
                .unwrap_err()
                .contains("no directory")
        );
        assert_eq!(land(tree(), "w:/a/b", Target::Absent), at("/a", "b"));
        assert_eq!(land(tree(), "w:/a/b", Target::Directory), at("/a/b", "src"));
        assert_eq!(
            land(contents(), "w:/a/b", Target::Directory),
            at("/a/b", "")
        );
        assert_eq!(land(contents(), "w:/a/b", Target::Absent), at("/a", "b"));
        assert!(
            land(tree(), "w:/a/b", Target::File)
                .unwrap_err()
                .contains("over the file")
        );
    }

    #[test]
    fn copies_out_land_where_docker_puts_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let land = |from: &str, to: String, directory| {
            land_here(&remote(from), &to, directory)
                .map(|path| path.strip_prefix(dir.path()).unwrap().display().to_string())
                .map_err(|failure| failure.error.message)
        };
        assert_eq!(
            land("w:/etc/hosts", root.clone(), false),
            Ok("hosts".into())
        );
        assert_eq!(
            land("w:/etc/hosts", format!("{root}/new"), false),
            Ok("new".into())
        );
        assert_eq!(
            land("w:/etc/hosts", format!("{root}/file"), false),
            Ok("file".into())
        );
        assert!(land("w:/etc/hosts", format!("{root}/new/"), false).is_err());
        assert_eq!(land("w:/etc", root.clone(), true), Ok("etc".into()));
        assert_eq!(land("w:/etc/.", root.clone(), true), Ok(String::new()));
        assert_eq!(
            land("w:/etc", format!("{root}/new"), true),
            Ok("new".into())
        );
        assert!(land("w:/etc", format!("{root}/file"), true).is_err());
    }
}
