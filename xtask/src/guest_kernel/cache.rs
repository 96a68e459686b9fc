//! The cache: a directory a kernel, named by what it was made from.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::GuestKernelError;
use super::build::{Product, RECIPE};

/// What a kernel was made from, as the first 16 bytes of a SHA-256 in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    /// The key for this fragment, the bytes of this source archive, this compiler and our recipe.
    pub(super) fn of(
        fragment: &str,
        source: &Path,
        compiler: &str,
    ) -> Result<Self, GuestKernelError> {
        let mut hash = Sha256::new();
        for part in [RECIPE, fragment, compiler] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash_file(&mut hash, source).map_err(io_error("read", source))?;
        let digest = hash.finalize();
        Ok(Self(
            digest
                .iter()
                .take(16)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        ))
    }
}

fn hash_file(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        hash.update(&buffer[..count]);
    }
}

pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// `$COWSLIP_CACHE`, else `$XDG_CACHE_HOME/cowslip`, else `$HOME/.cache/cowslip`.
    pub(super) fn open() -> Result<Self, GuestKernelError> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let base = set("COWSLIP_CACHE")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("cowslip")))
            .or_else(|| set("HOME").map(|dir| PathBuf::from(dir).join(".cache/cowslip")))
            .ok_or(GuestKernelError::NoCacheDir)?;
        Self::at(base.join("guest-kernel"))
    }

    fn at(dir: PathBuf) -> Result<Self, GuestKernelError> {
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        // Kbuild wants absolute paths.
        let dir = fs::canonicalize(&dir).map_err(io_error("find", &dir))?;
        Ok(Self { dir })
    }

    /// The directory of the kernel with this key, if it was built.
    pub(super) fn find(&self, key: &Key) -> Option<PathBuf> {
        let dir = self.dir.join(&key.0);
        dir.is_dir().then_some(dir)
    }

    /// Waits until no other build runs in this cache; the lock goes with the file.
    pub(super) fn lock(&self) -> Result<File, GuestKernelError> {
        let path = self.dir.join(".lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }

    /// An empty directory to build in. What an interrupted build left is removed: only the holder of
    /// the lock calls this.
    pub(super) fn work_dir(&self) -> Result<PathBuf, GuestKernelError> {
        let dir = self.dir.join(".build");
        match fs::remove_dir_all(&dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &dir)(source));
            }
            _ => {}
        }
        fs::create_dir(&dir).map_err(io_error("create", &dir))?;
        Ok(dir)
    }

    /// Moves the product to its own directory by one rename and removes the work directory.
    pub(super) fn publish(
        &self,
        key: &Key,
        product: &Product,
    ) -> Result<PathBuf, GuestKernelError> {
        let dir = self.dir.join(&key.0);
        fs::rename(&product.dir, &dir).map_err(io_error("publish", &dir))?;
        // The kernel is there; a work directory that stays is removed by the next build.
        let _ = fs::remove_dir_all(self.dir.join(".build"));
        Ok(dir)
    }
}

pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> GuestKernelError {
    let path = path.to_owned();
    move |source| GuestKernelError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_each_of_its_parts() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::write(&source, b"one").unwrap();
        let key = |fragment: &str, compiler: &str| Key::of(fragment, &source, compiler).unwrap();
        let first = key("CONFIG_A=y", "gcc 12");
        assert_eq!(first, key("CONFIG_A=y", "gcc 12"));
        assert_ne!(first, key("CONFIG_B=y", "gcc 12"));
        assert_ne!(first, key("CONFIG_A=y", "gcc 13"));
        // Parts do not run into one another.
        assert_ne!(key("ab", "c"), key("a", "bc"));
        fs::write(&source, b"two").unwrap();
        assert_ne!(first, key("CONFIG_A=y", "gcc 12"));
    }

    #[test]
    fn only_a_published_kernel_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("guest-kernel")).unwrap();
        let key = Key("0123".to_owned());
        let _lock = cache.lock().unwrap();
        let work = cache.work_dir().unwrap();
        let product = Product {
            dir: work.join("product"),
        };
        fs::create_dir(&product.dir).unwrap();
        fs::write(product.dir.join("bzImage"), b"kernel").unwrap();
        assert_eq!(cache.find(&key), None);
        // As if interrupted here: the next build starts empty.
        let work = cache.work_dir().unwrap();
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
        fs::create_dir(&product.dir).unwrap();
        let published = cache.publish(&key, &product).unwrap();
        assert_eq!(cache.find(&key), Some(published));
        assert!(!work.exists());
    }
}
