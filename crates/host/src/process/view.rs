//! What one process sees and no other does: a mount namespace with directories and files of the host at
//! paths of its own.
//!
//! ```text
//!   host            <run>/vm/<id>/          /dev/dm-3
//!                        │ bound                │ bound
//!   process   /run ─ /run/cowslip/self/ ── /run/cowslip/self/rootfs
//!             (empty but for that)
//! ```
//!
//! The mounts go with the last process of the namespace: there is nothing to release. What the host
//! unmounts later is unmounted in there too, so that no process keeps a file system busy.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::DeviceNumber;

/// A directory or file of the host, and where the process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// On the host.
    pub source: PathBuf,
    /// In the process' view. What is not there is made.
    pub target: PathBuf,
}

/// A block device that only the process can open, as the user who is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Which.
    pub device: DeviceNumber,
    /// Who owns the node.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Where the process sees it, over a file that is there or is made.
    pub target: PathBuf,
}

/// What a process is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// A directory of the host that the process sees empty but for what is bound below it.
    pub blank: PathBuf,
    /// What else it may hold, in bytes, where device nodes and programs work there; none: they do not,
    /// and there is room for names only.
    pub jail: Option<u64>,
    /// What is bound below it, in this order.
    pub bindings: Vec<Binding>,
    /// Nodes made in it, for a view with a jail. They come after the bindings.
    pub nodes: Vec<Node>,
}

/// A view in the form that can be set up between fork and exec: no allocation, system calls only.
#[derive(Debug)]
pub(super) struct Prepared {
    blank: CString,
    flags: libc::c_ulong,
    options: CString,
    bindings: Vec<Bound>,
    nodes: Vec<Made>,
    /// For one who is not root: contents of `uid_map` and `gid_map`. Only in a user namespace of its
    /// own may such a process mount anything.
    maps: Option<(CString, CString)>,
}

#[derive(Debug)]
struct Bound {
    source: CString,
    place: Place,
}

/// Where something is put.
#[derive(Debug)]
struct Place {
    target: CString,
    /// Directories to be made, outermost first.
    parents: Vec<CString>,
    is_file: bool,
}

#[derive(Debug)]
struct Made {
    device: libc::dev_t,
    uid: u32,
    gid: u32,
    /// Where the node itself lies, which the target shows: its own file system allows devices.
    node: CString,
    place: Place,
}

const MAP_MODE: libc::c_int = libc::O_WRONLY | libc::O_CLOEXEC;

impl Prepared {
    /// Looks at the sources and makes all texts.
    pub(super) fn new(view: &View) -> io::Result<Self> {
        let bindings = view.bindings.iter();
        let maps = (!super::is_root()).then(|| {
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            let map = |id: u32| CString::new(format!("{id} {id} 1"));
            Ok::<_, io::Error>((map(uid.as_raw())?, map(gid.as_raw())?))
        });
        let nodes = view.nodes.iter().enumerate();
        let (flags, size) = match view.jail {
            Some(size) => (libc::MS_NOSUID, size),
            None => (BARE, NAMES),
        };
        Ok(Self {
            blank: text(&view.blank)?,
            flags,
            options: CString::new(format!("size={size},mode=755"))?,
            bindings: bindings
                .map(|binding| Bound::new(&view.blank, binding))
                .collect::<io::Result<_>>()?,
            nodes: nodes
                .map(|(index, node)| Made::new(&view.blank, index, node))
                .collect::<io::Result<_>>()?,
            maps: maps.transpose()?,
        })
    }

    /// Sets the view up for the calling process. Between fork and exec.
    pub(super) fn enter(&self) -> io::Result<()> {
        // Whoever the process becomes goes through the directories that are made.
        // SAFETY: a system call on an integer; it cannot fail.
        let mask = unsafe { libc::umask(0o022) };
        self.set_up()?;
        // SAFETY: as above.
        unsafe { libc::umask(mask) };
        Ok(())
    }

    fn set_up(&self) -> io::Result<()> {
        let own_user = if self.maps.is_some() {
            libc::CLONE_NEWUSER
        } else {
            0
        };
        // SAFETY: a system call on integers.
        check(unsafe { libc::unshare(libc::CLONE_NEWNS | own_user) })?;
        if let Some((uid, gid)) = &self.maps {
            write(c"/proc/self/setgroups", c"deny")?;
            write(c"/proc/self/uid_map", uid)?;
            write(c"/proc/self/gid_map", gid)?;
        }
        mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None)?;
        // Sources may lie below what becomes blank, so they are all taken first. There is no room to
        // keep their descriptors but the stack, and never more than a few.
        let mut trees: [RawFd; BINDINGS_MAX] = [-1; BINDINGS_MAX];
        for (bound, tree) in self.bindings.iter().zip(&mut trees) {
            *tree = open_tree(&bound.source)?;
        }
        let tmpfs = Some(c"tmpfs");
        mount(tmpfs, &self.blank, tmpfs, self.flags, Some(&self.options))?;
        for (bound, tree) in self.bindings.iter().zip(trees) {
            bound.place.make()?;
            move_mount(tree, &bound.place.target)?;
        }
        for made in &self.nodes {
            made.place.make()?;
            // SAFETY: system calls on integers and on a text that lives across them.
            unsafe {
                let mode = libc::S_IFBLK | 0o600;
                check(libc::mknod(made.node.as_ptr(), mode, made.device))?;
                check(libc::chown(made.node.as_ptr(), made.uid, made.gid))?;
            }
            mount(
                Some(&made.node),
                &made.place.target,
                None,
                libc::MS_BIND,
                None,
            )?;
        }
        Ok(())
    }
}

/// A blank directory that nothing works in.
const BARE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
/// Room for names, in bytes.
const NAMES: u64 = 64 << 10;

impl Place {
    /// The place of a directory or a file at `target`, which is below `blank`.
    fn new(blank: &Path, target: &Path, is_file: bool) -> io::Result<Self> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a binding outside the view");
        let below = target.strip_prefix(blank).map_err(|_| outside())?;
        let parts: Vec<Component<'_>> = below.components().collect();
        let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
        if parts.is_empty() || !parts.iter().all(plain) {
            return Err(outside());
        }
        let mut path = blank.to_owned();
        let mut parents = Vec::new();
        for part in &parts[..parts.len() - usize::from(is_file)] {
            path.push(part);
            parents.push(text(&path)?);
        }
        Ok(Self {
            target: text(target)?,
            parents,
            is_file,
        })
    }

    /// Makes what is not there. Between fork and exec.
    fn make(&self) -> io::Result<()> {
        for parent in &self.parents {
            // SAFETY: a system call on a text that lives across it.
            there(unsafe { libc::mkdir(parent.as_ptr(), 0o755) })?;
        }
        if self.is_file {
            // SAFETY: as above.
            there(unsafe { libc::mknod(self.target.as_ptr(), libc::S_IFREG | 0o600, 0) })?;
        }
        Ok(())
    }
}

/// What is there already is fine.
fn there(result: libc::c_int) -> io::Result<()> {
    match check(result) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

impl Made {
    fn new(blank: &Path, index: usize, node: &Node) -> io::Result<Self> {
        Ok(Self {
            device: libc::makedev(node.device.major, node.device.minor),
            uid: node.uid,
            gid: node.gid,
            node: text(&blank.join(format!(".node-{index}")))?,
            place: Place::new(blank, &node.target, true)?,
        })
    }
}

/// The most bindings that a view can have.
const BINDINGS_MAX: usize = 8;

impl Bound {
    fn new(blank: &Path, binding: &Binding) -> io::Result<Self> {
        let is_file = !std::fs::metadata(&binding.source)?.is_dir();
        Ok(Self {
            source: text(&binding.source)?,
            place: Place::new(blank, &binding.target, is_file)?,
        })
    }
}

impl View {
    /// Refuses a view that cannot be set up.
    pub(super) fn prepare(&self) -> io::Result<Prepared> {
        let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if self.bindings.len() > BINDINGS_MAX {
            return invalid("more bindings than a view can have");
        }
        if self.jail.is_none() && !self.nodes.is_empty() {
            return invalid("device nodes in a view where none works");
        }
        Prepared::new(self)
    }
}

fn text(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn write(path: &CStr, content: &CStr) -> io::Result<()> {
    let bytes = content.to_bytes();
    // SAFETY: system calls on texts that live across them, and on the descriptor just opened.
    unsafe {
        let fd = check(libc::open(path.as_ptr(), MAP_MODE))?;
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        let result = if written == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        };
        libc::close(fd);
        result
    }
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: a system call on texts that live across it.
    check(unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(options).cast(),
        )
    })
    .map(drop)
}

/// Takes a copy of the mount at `path` that can be put anywhere (Linux 5.2).
fn open_tree(path: &CStr) -> io::Result<RawFd> {
    // SAFETY: a system call on a text that lives across it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
        )
    };
    let fd = libc::c_int::try_from(fd).map_err(|_| io::ErrorKind::Other)?;
    check(fd)
}

/// Puts a copy where it belongs. Its descriptor closes with exec.
fn move_mount(tree: RawFd, target: &CStr) -> io::Result<()> {
    // SAFETY: a system call on texts that live across it and on an open descriptor.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    let result = libc::c_int::try_from(result).map_err(|_| io::ErrorKind::Other)?;
    check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_stays_below_the_blank_directory() {
        let prepared = |target: &str| {
            View {
                blank: "/run".into(),
                jail: None,
                bindings: vec![Binding {
                    source: "/".into(),
                    target: target.into(),
                }],
                nodes: Vec::new(),
            }
            .prepare()
        };
        let good = prepared("/run/cowslip/self").unwrap();
        assert_eq!(
            good.bindings[0].place.parents,
            [c"/run/cowslip".to_owned(), c"/run/cowslip/self".to_owned()]
        );
        for bad in ["/etc", "/run/../etc", "run/x"] {
            assert!(prepared(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_there_cannot_be_bound() {
        let view = View {
            blank: "/run".into(),
            jail: None,
            bindings: vec![Binding {
                source: "/nonexistent".into(),
                target: "/run/x".into(),
            }],
            nodes: Vec::new(),
        };
        assert!(view.prepare().is_err());
    }
}
