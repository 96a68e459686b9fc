//! Making an image of a disk that guests wrote.
//!
//! Such a disk is as after a power cut: what the guest's kernel had put into the journal is to be put
//! in its place, and files that were deleted while they were open are to go. `e2fsck` does that, the
//! program that would do it on any other disk, and says whether the file system is whole. The disk is
//! a hostile guest's to choose, so where the engine is root `e2fsck` is nobody.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Digest;
use crate::digest::digest_file;
use crate::error::ImportError;
use crate::ext4::{find_program, inspect};

/// Neither a user of the host nor of a machine.
const NOBODY: u32 = 65534;
/// How it is told to open its standard input: the image has no name in there.
const STDIN: &str = "/proc/self/fd/0";

/// What an image turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// SHA-256 of the whole image, as `sha256sum` prints it.
    pub digest: Digest,
    /// Length of the image in bytes.
    pub size: u64,
    /// Bytes of the file system in use, its own metadata and journal included.
    pub used: u64,
    /// Its inodes in use: files, directories and others, the root not counted.
    pub entries: u64,
}

/// Brings the journal of the image at `path` home, checks the file system, and syncs and hashes the
/// whole. `drop_privileges` says that the caller is root.
///
/// # Errors
/// [`ImportError`] when `e2fsck` is missing, or the file system is not one that it can vouch for: the
/// image may have been written to then, and is for the caller to remove.
pub fn seal_image(path: &Path, drop_privileges: bool) -> Result<Sealed, ImportError> {
    let write = |operation| move |error: io::Error| ImportError::write(operation, path, error);
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(write("open"))?;
    // The directory that it is in lets nobody through but its owner.
    let open_to = |mode| file.set_permissions(Permissions::from_mode(mode));
    open_to(if drop_privileges { 0o666 } else { 0o600 }).map_err(write("set the mode of"))?;
    let checked = check(&file, path, drop_privileges);
    open_to(0o600).map_err(write("set the mode of"))?;
    checked?;
    let (superblock, entries) = inspect(&file)
        .map_err(write("read back"))?
        .map_err(ImportError::NotExt4)?;
    let size = file.metadata().map_err(write("look at"))?.len();
    if superblock.size() > size {
        return Err(ImportError::NotExt4("it is larger than its disk"));
    }
    // One waits for the disk, the other for the processor.
    let (synced, hashed) = std::thread::scope(|scope| {
        let sync = scope.spawn(|| file.sync_all());
        let hashed = digest_file(&file, |_| false);
        let synced = sync
            .join()
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        (synced, hashed)
    });
    synced.map_err(write("sync"))?;
    Ok(Sealed {
        digest: hashed.map_err(write("read back"))?,
        size,
        used: superblock.used(),
        entries,
    })
}

/// `e2fsck -p`: mends what every mount would, and refuses all else.
fn check(file: &File, path: &Path, drop_privileges: bool) -> Result<(), ImportError> {
    let image = file
        .try_clone()
        .map_err(|error| ImportError::write("open", path, error))?;
    let program = find_program("e2fsck").ok_or(ImportError::E2fsckMissing)?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        // The host's configuration must not decide what is in a template.
        .env("E2FSCK_CONFIG", "/dev/null")
        .args(["-f", "-p", STDIN])
        .current_dir("/")
        .stdin(image)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if drop_privileges {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command
        .output()
        .map_err(|error| ImportError::write("run e2fsck on", path, error))?;
    // 1: something was mended, as a mount would have.
    if matches!(output.status.code(), Some(0 | 1)) {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).replace(STDIN, "the disk");
    // Names in it are the guest's.
    let lines = text.lines().map(|line| line.escape_debug().to_string());
    let mut tail: Vec<String> = lines.filter(|line| !line.trim().is_empty()).collect();
    tail.drain(..tail.len().saturating_sub(4));
    Err(ImportError::E2fsck {
        status: output.status,
        output: tail.join("; "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    fn made(dir: &Path, arguments: &[&str]) -> std::path::PathBuf {
        let path = dir.join("image");
        let output = Command::new(find_program("mke2fs").unwrap())
            .args(["-q", "-F", "-t", "ext4", "-b", "4096"])
            .args(arguments)
            .arg(&path)
            .arg("16M")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        path
    }

    fn fsck(path: &Path) -> bool {
        let output = Command::new(find_program("e2fsck").unwrap())
            .arg("-fn")
            .arg(path)
            .output();
        output.unwrap().status.success()
    }

    fn debugfs(path: &Path, request: &str) {
        let output = Command::new(find_program("debugfs").unwrap())
            .args(["-w", "-R", request])
            .arg(path)
            .output();
        assert!(output.unwrap().status.success());
    }

    #[test]
    fn a_whole_file_system_is_counted_and_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("a/b")).unwrap();
        std::fs::write(source.join("a/file"), "text").unwrap();
        let path = made(dir.path(), &["-d", source.to_str().unwrap()]);
        let sealed = seal_image(&path, root()).unwrap();
        // a, a/b, a/file and lost+found.
        assert_eq!(sealed.entries, 4);
        assert_eq!(sealed.size, 16 << 20);
        assert!(sealed.used > 0 && sealed.used < sealed.size);
        let again = digest_file(&File::open(&path).unwrap(), |_| false).unwrap();
        assert_eq!(sealed.digest, again);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(fsck(&path));
    }

    #[test]
    fn what_a_mount_would_mend_is_mended() {
        // covers R24: as a guest leaves it that lost its power, with a journal that is not empty.
        let dir = tempfile::tempdir().unwrap();
        let path = made(dir.path(), &[]);
        let orphan = dir.path().join("orphan");
        std::fs::write(&orphan, [7; 10_000]).unwrap();
        debugfs(&path, &format!("write {} orphan", orphan.display()));
        // A transaction in the journal: block 4000 as it will be.
        let requests = dir.path().join("requests");
        let block = dir.path().join("block");
        std::fs::write(&block, [9; 4096]).unwrap();
        std::fs::write(
            &requests,
            format!("jo\njw -b 4000 {}\njc\n", block.display()),
        )
        .unwrap();
        let output = Command::new(find_program("debugfs").unwrap())
            .args(["-w", "-f", requests.to_str().unwrap()])
            .arg(&path)
            .output();
        assert!(output.unwrap().status.success());
        let block_4000 = || {
            let mut found = [0; 4096];
            let file = File::open(&path).unwrap();
            file.read_exact_at(&mut found, 4000 * 4096).unwrap();
            found
        };
        assert_eq!(
            block_4000(),
            [0; 4096],
            "the journal is not to be replayed yet"
        );
        seal_image(&path, root()).unwrap();
        assert_eq!(block_4000(), [9; 4096]);
        assert!(fsck(&path));
    }

    #[test]
    fn a_damaged_or_foreign_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = made(dir.path(), &[]);
        // The root directory is no directory any more.
        debugfs(&path, "set_inode_field <2> mode 0100644");
        let error = seal_image(&path, root()).unwrap_err();
        assert!(matches!(error, ImportError::E2fsck { .. }), "{error}");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let error = seal_image(&path, root()).unwrap_err();
        assert!(matches!(error, ImportError::E2fsck { .. }), "{error}");
        assert!(!error.to_string().contains("/proc"), "{error}");
    }
}
