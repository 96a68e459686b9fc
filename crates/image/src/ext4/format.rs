//! Running `mke2fs`, the only helper program, on a file with a name of ours.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::geometry::Geometry;
use super::plan::Plan;
use super::superblock::RawSuperblock;
use crate::error::ImportError;
use crate::job::Sizing;
use crate::spool::BLOCK_U64;

/// Our own configuration: the host's must not decide what is in a template.
///
/// Kernels since 4.9 mount this; `resize_inode` and `64bit` let a guest grow it while mounted.
const CONFIG: &str = "\
[defaults]
\tblocksize = 4096
\tinode_size = 256
\treserved_ratio = 0
\tenable_periodic_fsck = 0
\tdefault_mntopts = acl,user_xattr
\tlazy_itable_init = 0
\tbase_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
[fs_types]
\text4 = {
\t\tfeatures = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
\t}
";

/// Makes an empty file system with room for the plan at `image`, a sparse file.
///
/// # Errors
/// When `mke2fs` is missing or fails, or the content is too much for ext4.
pub(crate) fn format(
    work_dir: &Path,
    image: &Path,
    label: &str,
    plan: &Plan<'_>,
    sizing: &Sizing,
) -> Result<File, ImportError> {
    let config = work_dir.join("mke2fs.conf");
    std::fs::write(&config, CONFIG).map_err(|e| ImportError::write("write", &config, e))?;
    let uuid = plan.uuid();
    let mut extra = 0;
    // The computed size counts all that mke2fs lays out. Should a version of it lay out more, its own
    // numbers say by how much.
    for _ in 0..3 {
        let geometry = Geometry::for_content(plan.needs(), sizing, extra)?;
        let file = make(image, label, &config, &geometry, &uuid)?;
        let superblock = RawSuperblock::read(&file)
            .map_err(|e| ImportError::write("read back", image, e))?
            .parse()
            .map_err(ImportError::Layout)?;
        if superblock.blocks != geometry.blocks {
            return Err(ImportError::Layout("another size than asked for"));
        }
        if u64::from(superblock.inodes) < geometry.inodes {
            return Err(ImportError::Layout("fewer inodes than asked for"));
        }
        match geometry.must_be_free.checked_sub(superblock.free_blocks) {
            None | Some(0) => return Ok(file),
            Some(deficit) => extra += deficit,
        }
        tracing::debug!(
            extra,
            "mke2fs left less room than computed, formatting again"
        );
    }
    Err(ImportError::Layout(
        "its metadata takes more room than it can",
    ))
}

fn make(
    image: &Path,
    label: &str,
    config: &Path,
    geometry: &Geometry,
    uuid: &[u8; 16],
) -> Result<File, ImportError> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(image)
        .and_then(|file| {
            file.set_len(geometry.blocks * BLOCK_U64)?;
            Ok(file)
        })
        .map_err(|e| ImportError::write("create", image, e))?;
    let uuid = uuid_text(uuid);
    let mut command = Command::new(find_program("mke2fs").ok_or(ImportError::Mke2fsMissing)?);
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("MKE2FS_CONFIG", config)
        // Every time stamp of its own is this one: 0 would mean the time of day.
        .env("E2FSPROGS_FAKE_TIME", "1")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        .args(["-e", "remount-ro", "-L", label, "-U", &uuid])
        .args(["-N", &geometry.inodes.to_string()])
        .args(["-J", &format!("size={}", geometry.journal_mib)])
        .args([
            "-E",
            &format!(
                "resize={},hash_seed={uuid},lazy_journal_init=1",
                geometry.growable
            ),
        ])
        .arg(image)
        .arg(geometry.blocks.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ImportError::Mke2fsMissing,
        _ => ImportError::write("run mke2fs on", image, error),
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let tail: Vec<&str> = lines.rev().take(3).collect();
        return Err(ImportError::Mke2fs {
            status: output.status,
            stderr: tail.into_iter().rev().collect::<Vec<_>>().join("; "),
        });
    }
    Ok(file)
}

/// Looks on PATH, then where distributions keep it: users often have no `sbin` on PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
