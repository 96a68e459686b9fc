//! The files that a build may copy: those of one directory that `.dockerignore` does not leave out.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::ignore::{Ignore, glob};
use super::{BuildError, path};

const IGNORE_FILE: &str = ".dockerignore";
/// Bytes of a file that are hashed at once.
const PIECE: usize = 256 << 10;

/// A directory with files to copy.
#[derive(Debug)]
pub(crate) struct Context {
    root: PathBuf,
    /// By their paths, relative and without `./`; a directory comes before what is in it.
    files: BTreeMap<String, Metadata>,
}

/// What one COPY copies.
#[derive(Debug, Clone)]
pub(crate) struct Copied {
    /// The directory of the guest that the tar is unpacked in.
    pub(crate) directory: String,
    /// What one file is called there, unless that is a directory already: then it goes into it under its own name.
    pub(crate) name: Option<String>,
    /// The own name of that one file.
    own_name: String,
    /// Names in the tar, and what they stand for on this host.
    entries: BTreeMap<String, (PathBuf, Metadata)>,
    /// Permissions that take the place of the files' own.
    mode: Option<u32>,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::File {
        operation,
        path,
        source,
    }
}

impl Context {
    /// Lists a directory.
    pub(crate) fn open(root: &Path) -> Result<Self, BuildError> {
        let rules = root.join(IGNORE_FILE);
        let ignore = match fs::read_to_string(&rules) {
            Ok(text) => Ignore::parse(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ignore::default(),
            Err(error) => return Err(failed("read", &rules)(error)),
        };
        let mut context = Self {
            root: root.to_owned(),
            files: BTreeMap::new(),
        };
        context.list("", &ignore)?;
        Ok(context)
    }

    fn list(&mut self, below: &str, ignore: &Ignore) -> Result<(), BuildError> {
        let directory = self.root.join(below);
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let entry = entry.map_err(failed("list", &directory))?;
            let name = entry.file_name().into_string().map_err(|name| {
                let source =
                    io::Error::other("its name is not UTF-8; leave it out in .dockerignore");
                failed("take", &directory.join(name))(source)
            })?;
            let path = match below {
                "" => name,
                below => format!("{below}/{name}"),
            };
            let found = entry.metadata().map_err(failed("look at", &entry.path()))?;
            let is_dir = found.is_dir();
            let left_out = ignore.leaves_out(&path);
            if !left_out {
                self.files.insert(path.clone(), found);
            }
            if is_dir && (!left_out || ignore.takes_back()) {
                self.list(&path, ignore)?;
            }
        }
        Ok(())
    }

    /// What `sources` name, to be at `destination` in the guest, seen from `workdir`.
    pub(crate) fn select(
        &self,
        sources: &[String],
        (workdir, destination): (&str, &str),
        mode: Option<u32>,
    ) -> Result<Copied, BuildError> {
        let mut found = Vec::new();
        for source in sources {
            found.extend(self.matching(source)?);
        }
        for path in &found {
            self.refuse_special(path)?;
        }
        let target = path::join(workdir, destination);
        let is_dir = |path: &str| self.is_dir(path);
        let into_directory = destination.ends_with('/')
            || matches!(destination.rsplit('/').next(), Some("." | ".."));
        let into = into_directory || found.len() > 1 || found.iter().any(|path| is_dir(path));
        if found.len() > 1 && !into_directory {
            return Err(BuildError::Recipe(format!(
                "several files are copied to \"{destination}\": end it with a slash, so that it is a directory"
            )));
        }
        let (directory, name) = match into {
            true => (target, None),
            false => {
                let (directory, name) = path::split(&target);
                (directory, Some(name))
            }
        };
        let mut entries = BTreeMap::new();
        for source in &found {
            if is_dir(source) {
                let prefix = match source.as_str() {
                    "" => 0,
                    source => source.len() + 1,
                };
                for (path, meta) in self.below(source) {
                    let place = (self.root.join(path), meta.clone());
                    entries.insert(path[prefix..].to_owned(), place);
                }
            } else if let Some(meta) = self.files.get(source) {
                let name = name.clone().unwrap_or_else(|| last_of(source));
                entries.insert(name, (self.root.join(source), meta.clone()));
            }
        }
        Ok(Copied {
            directory,
            name,
            own_name: found.first().map(|path| last_of(path)).unwrap_or_default(),
            entries,
            mode,
        })
    }

    fn is_dir(&self, path: &str) -> bool {
        path.is_empty()
            || self.files.get(path).is_some_and(Metadata::is_dir)
            // One that is left out, but for something in it.
            || self.below(path).next().is_some()
    }

    fn below<'c>(&'c self, path: &str) -> impl Iterator<Item = (&'c String, &'c Metadata)> {
        let prefix = match path {
            "" => String::new(),
            path => format!("{path}/"),
        };
        self.files
            .range(prefix.clone()..)
            .take_while(move |(path, _)| path.starts_with(&prefix))
    }

    /// Sockets, pipes and devices have no content to copy.
    fn refuse_special(&self, path: &str) -> Result<(), BuildError> {
        let itself = self.files.get_key_value(path);
        let inside = self.is_dir(path).then(|| self.below(path));
        for (path, meta) in itself.into_iter().chain(inside.into_iter().flatten()) {
            if !meta.is_file() && !meta.is_dir() && !meta.is_symlink() {
                let what = match meta.file_type().is_socket() {
                    true => "it is a socket",
                    false => "it is a device or a pipe",
                };
                let source = io::Error::other(format!("{what}; leave it out in .dockerignore"));
                return Err(failed("copy", &self.root.join(path))(source));
            }
        }
        Ok(())
    }

    /// Paths of the context that a source names.
    fn matching(&self, source: &str) -> Result<Vec<String>, BuildError> {
        // As seen from the context's root: nothing leads out of it.
        let plain = path::join("/", source);
        let plain = &plain[1..];
        if plain.is_empty() {
            return Ok(vec![String::new()]);
        }
        if self.files.contains_key(plain) || self.is_dir(plain) {
            return Ok(vec![plain.to_owned()]);
        }
        let matcher = glob(plain)?.compile_matcher();
        let found: Vec<String> = self
            .files
            .keys()
            .filter(|path| matcher.is_match(path))
            .cloned()
            .collect();
        match found.is_empty() {
            true => Err(BuildError::Recipe(format!(
                "\"{source}\" is not in \"{}\", or .dockerignore leaves it out",
                self.root.display()
            ))),
            false => Ok(found),
        }
    }
}

impl Copied {
    /// SHA-256 of names, types, permissions and content: what decides whether a step was taken already. Times do
    /// not count.
    pub(crate) fn digest(&self) -> Result<String, BuildError> {
        let mut hasher = Sha256::new();
        for (name, (path, meta)) in &self.entries {
            let mode = self.mode_of(meta);
            hasher.update(format!("{}:{name}:{mode:o}:", name.len()));
            if meta.is_symlink() {
                let target = fs::read_link(path).map_err(failed("read", path))?;
                hasher.update(b"l");
                hasher.update(target.as_os_str().as_encoded_bytes());
            } else if meta.is_file() {
                hasher.update(format!("f{}:", meta.size()));
                let mut file = open_unchanged(path, meta)?;
                let mut buffer = vec![0; PIECE];
                loop {
                    match file.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(length) => hasher.update(&buffer[..length]),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(failed("read", path)(error)),
                    }
                }
                refuse_changed(path, &file.into_inner(), meta)?;
            } else {
                hasher.update(b"d");
            }
        }
        let digest = hasher.finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn mode_of(&self, meta: &Metadata) -> u32 {
        match self.mode {
            Some(mode) if !meta.is_symlink() => mode,
            _ => meta.mode() & 0o7777,
        }
    }

    /// How many entries the tar has.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Writes the tar. All of it is root's, unless whoever unpacks it says otherwise. `into_directory`: what the one
    /// file was to be called is a directory.
    ///
    /// After an error nothing more is written, not even the end: half a tar must not look like a whole one.
    pub(crate) fn write(&self, out: impl Write, into_directory: bool) -> Result<(), BuildError> {
        let shut = Rc::new(Cell::new(false));
        let mut builder = Builder::new(Gate {
            out,
            shut: Rc::clone(&shut),
        });
        for (name, (path, meta)) in &self.entries {
            let name = match into_directory {
                true => &self.own_name,
                false => name,
            };
            let added = self.add(&mut builder, name, path, meta);
            if added.is_err() {
                shut.set(true);
                return added;
            }
        }
        let ended = builder.into_inner().and_then(|mut out| out.flush());
        ended.map_err(failed("send", Path::new("the files")))
    }

    fn add<W: Write>(
        &self,
        builder: &mut Builder<W>,
        name: &str,
        path: &Path,
        meta: &Metadata,
    ) -> Result<(), BuildError> {
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        header.set_mode(self.mode_of(meta));
        header.set_uid(0);
        header.set_gid(0);
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(failed("read", path))?;
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            let added = builder.append_link(&mut header, name, target);
            return added.map_err(failed("send", path));
        }
        if meta.is_dir() {
            header.set_size(0);
            let added = builder.append_data(&mut header, name, io::empty());
            return added.map_err(failed("send", path));
        }
        let mut file = open_unchanged(path, meta)?;
        let added = builder.append_data(&mut header, name, &mut file);
        // What was sent has to be what the step is named after; and why reading failed says more than that sending did.
        refuse_changed(path, file.get_ref(), meta)?;
        if file.limit() > 0 && added.is_ok() {
            let cut = io::Error::other("it was cut while it was read");
            return Err(failed("read", path)(cut));
        }
        added.map_err(failed("send", path))
    }
}

/// Lets nothing through once it is shut.
struct Gate<W> {
    out: W,
    shut: Rc<Cell<bool>>,
}

impl<W: Write> Write for Gate<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.shut.get() {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => self.out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn last_of(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

/// Opens a file that is as it was when the directory was listed.
fn open_unchanged(path: &Path, meta: &Metadata) -> Result<io::Take<File>, BuildError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(failed("open", path))?;
    refuse_changed(path, &file, meta)?;
    Ok(file.take(meta.size()))
}

fn refuse_changed(path: &Path, file: &File, meta: &Metadata) -> Result<(), BuildError> {
    let now = file.metadata().map_err(failed("look at", path))?;
    let what = |meta: &Metadata| {
        let time = (meta.mtime(), meta.mtime_nsec());
        (meta.dev(), meta.ino(), meta.size(), time)
    };
    match what(&now) == what(meta) {
        true => Ok(()),
        false => {
            let source = io::Error::other("it changed since the build began: build again");
            Err(failed("copy", path)(source))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> (tempfile::TempDir, Context) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("a.txt", "a"),
            ("b.txt", "b"),
            ("src/main.rs", "main"),
            ("src/sub/deep.rs", "deep"),
            ("secret/key", "key"),
            (".dockerignore", "secret\n"),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        std::os::unix::fs::symlink("main.rs", dir.path().join("src/link")).unwrap();
        let context = Context::open(dir.path()).unwrap();
        (dir, context)
    }

    fn names(copied: &Copied) -> Vec<&str> {
        copied.entries.keys().map(String::as_str).collect()
    }

    #[test]
    fn sources_land_where_docker_puts_them() {
        let (_dir, context) = context();
        let select = |sources: &[&str], destination: &str| {
            let sources: Vec<String> = sources.iter().map(|&one| one.to_owned()).collect();
            context.select(&sources, ("/app", destination), None)
        };
        for (sources, destination, directory, expected) in [
            (&["a.txt"][..], "b", "/app", &["b"][..]),
            (&["a.txt"], "/opt/", "/opt", &["a.txt"]),
            (&["a.txt"], ".", "/app", &["a.txt"]),
            (&["*.txt"], "./", "/app", &["a.txt", "b.txt"]),
            (
                &["src"],
                "/opt/app",
                "/opt/app",
                &["link", "main.rs", "sub", "sub/deep.rs"],
            ),
            (
                &["src/sub/", "a.txt"],
                "/app/",
                "/app",
                &["a.txt", "deep.rs"],
            ),
            (&["/src/main.rs"], "x/y", "/app/x", &["y"]),
        ] {
            let copied = select(sources, destination).unwrap();
            assert_eq!(copied.directory, directory, "{sources:?} {destination}");
            assert_eq!(names(&copied), expected, "{sources:?} {destination}");
        }
        assert!(
            !names(&select(&["."], "/").unwrap())
                .iter()
                .any(|name| name.starts_with("secret"))
        );
        for (sources, destination) in [
            (&["none"][..], "/"),
            (&["secret/key"], "/"),
            (&["../outside"], "/"),
            (&["*.md"], "/"),
            (&["a.txt", "b.txt"], "/one"),
        ] {
            assert!(select(sources, destination).is_err(), "{sources:?}");
        }
    }

    #[test]
    fn the_digest_is_of_content_and_not_of_times() {
        let (dir, context) = context();
        let digest = |context: &Context, mode| {
            let copied = context
                .select(&["src".to_owned()], ("/", "/"), mode)
                .unwrap();
            copied.digest().unwrap()
        };
        let before = digest(&context, None);
        let touched = dir.path().join("src/main.rs");
        fs::write(&touched, "main").unwrap();
        let again = Context::open(dir.path()).unwrap();
        assert_eq!(digest(&again, None), before);
        assert_ne!(digest(&again, Some(0o700)), before);
        fs::write(&touched, "Main").unwrap();
        assert_ne!(digest(&Context::open(dir.path()).unwrap(), None), before);
        fs::rename(&touched, dir.path().join("src/other.rs")).unwrap();
        fs::write(&touched, "main").unwrap();
        assert_ne!(digest(&Context::open(dir.path()).unwrap(), None), before);
    }

    #[test]
    fn the_tar_has_files_directories_and_links() {
        let (_dir, context) = context();
        let copied = context
            .select(&["src".to_owned()], ("/", "/"), Some(0o750))
            .unwrap();
        let mut bytes = Vec::new();
        copied.write(&mut bytes, false).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let found: Vec<(String, EntryType, u32, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let name = entry.path().unwrap().display().to_string();
                (
                    name,
                    header.entry_type(),
                    header.mode().unwrap() & 0o777,
                    header.uid().unwrap(),
                )
            })
            .collect();
        let file = |name: &str| (name.to_owned(), EntryType::Regular, 0o750, 0);
        assert_eq!(found[0].1, EntryType::Symlink);
        assert_eq!(found[1..2], [file("main.rs")]);
        assert_eq!(found[2], ("sub".to_owned(), EntryType::Directory, 0o750, 0));
        assert_eq!(found[3..], [file("sub/deep.rs")]);
    }

    #[test]
    fn half_a_tar_does_not_look_whole() {
        let (dir, context) = context();
        let copied = context
            .select(&["src".to_owned()], ("/", "/"), None)
            .unwrap();
        fs::write(dir.path().join("src/main.rs"), "longer than it was").unwrap();
        let mut bytes = Vec::new();
        let error = copied.write(&mut bytes, false).unwrap_err().to_string();
        assert!(error.contains("main.rs"), "{error}");
        // No end: neither the two blocks of zeros, nor what came after.
        assert!(bytes.len() < 1024, "{} bytes", bytes.len());
        assert!(copied.digest().is_err());
        let path = dir.path().join("src/socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let again = Context::open(dir.path()).unwrap();
        let refused = again.select(&["src".to_owned()], ("/", "/"), None);
        assert!(refused.unwrap_err().to_string().contains("socket"));
    }

    #[test]
    fn what_is_taken_back_is_copied_with_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("docs")).unwrap();
        fs::write(dir.path().join("docs/README.md"), "read").unwrap();
        fs::write(dir.path().join("docs/other"), "other").unwrap();
        fs::write(dir.path().join(".dockerignore"), "docs\n!docs/README.md\n").unwrap();
        let context = Context::open(dir.path()).unwrap();
        let copied = context
            .select(&["docs".to_owned()], ("/", "/x"), None)
            .unwrap();
        assert_eq!(names(&copied), ["README.md"]);
    }
}
