//! A thread that may touch little of the host: for work on what comes from outside.
//!
//! ```text
//!  landlock   files: what it is given, and programs and libraries; no TCP (from Linux 6.7 on)
//!  seccomp    no new socket of any kind, and no io_uring, which could make one
//! ```
//!
//! Both bind the thread and the programs that it starts, for as long as they live. The thread has the engine's
//! memory all the same: this is against names and formats that lead astray, not against foreign machine code.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use crate::error::HostError;

/// Renames from one directory to another are refused before this one, whatever the rules say.
const LEAST: ABI = ABI::V2;
/// The newest whose rights are used.
const NEWEST: ABI = ABI::V5;
/// What helper programs need: their files, their libraries, their settings.
const PROGRAMS: [&str; 8] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/nix",
];
const DEVICES: [&str; 4] = ["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// What a confined thread may use of the host's files.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Files and directories that it may read, with all that is below them.
    pub read: Vec<PathBuf>,
    /// Directories that it may do anything in.
    pub write: Vec<PathBuf>,
}

/// Runs `work` on a thread of its own that may use only what is allowed. Blocking.
///
/// # Errors
/// When this host cannot confine a thread, or what is allowed is not there.
///
/// # Panics
/// As `work` does.
pub fn confined<T: Send>(
    allowed: &Allowed,
    work: impl FnOnce() -> T + Send,
) -> Result<T, HostError> {
    let thread = || {
        confine(allowed).map_err(HostError::Confine)?;
        Ok(work())
    };
    std::thread::scope(|scope| {
        let handle = std::thread::Builder::new()
            .name("confined".to_owned())
            .spawn_scoped(scope, thread)
            .map_err(HostError::Confine)?;
        handle
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether this host can confine a thread; else why not.
///
/// # Errors
/// As [`confined`].
pub fn is_possible() -> Result<(), HostError> {
    // What a kernel can do it can do until the next boot.
    static TRIED: OnceLock<()> = OnceLock::new();
    if TRIED.get().is_none() {
        confined(&Allowed::default(), || ())?;
        TRIED.get_or_init(|| ());
    }
    Ok(())
}

fn confine(allowed: &Allowed) -> io::Result<()> {
    if restrict_files(allowed)? == RulesetStatus::NotEnforced {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel has no landlock, or an old one (before Linux 5.19), or it is not among the lsm= of its \
             command line",
        ));
    }
    forbid_sockets().map_err(io::Error::other)
}

fn restrict_files(allowed: &Allowed) -> io::Result<RulesetStatus> {
    let all = AccessFs::from_all(NEWEST);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::from_all(LEAST))
        .map(|ruleset| ruleset.set_compatibility(CompatLevel::BestEffort))
        .and_then(|ruleset| ruleset.handle_access(all))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let read = AccessFs::from_read(NEWEST);
    let programs = PROGRAMS.map(|path| (Path::new(path), read));
    let devices = DEVICES.map(|path| (Path::new(path), AccessFs::ReadFile | AccessFs::WriteFile));
    // Not every host has all of them.
    let there = programs
        .into_iter()
        .chain(devices)
        .filter(|(path, _)| path.exists());
    let given = allowed.read.iter().map(|path| (path.as_path(), read));
    let given = given.chain(allowed.write.iter().map(|path| (path.as_path(), all)));
    for (path, access) in there.chain(given) {
        let opened = PathFd::new(path).map_err(io::Error::other)?;
        // A file has fewer rights than a directory, and those that it cannot have are refused.
        let access = match path.is_dir() {
            true => access,
            false => access & AccessFs::from_file(NEWEST),
        };
        ruleset = ruleset
            .add_rule(PathBeneath::new(opened, access))
            .map_err(io::Error::other)?;
    }
    let status = ruleset.restrict_self().map_err(io::Error::other)?;
    Ok(status.ruleset)
}

fn forbid_sockets() -> Result<(), seccompiler::Error> {
    let calls = [libc::SYS_socket, libc::SYS_io_uring_setup];
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.into_iter().map(|call| (call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_is_given_can_be_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["mine", "given", "foreign"] {
            std::fs::create_dir(path(name)).unwrap();
            std::fs::write(path(name).join("file"), name).unwrap();
        }
        let allowed = Allowed {
            read: vec![path("given")],
            write: vec![path("mine")],
        };
        let outside = std::env::current_dir().unwrap();
        confined(&allowed, || {
            let refused = |result: io::Result<()>, what: &str| {
                let kind = result.map_err(|error| error.kind());
                assert_eq!(kind, Err(io::ErrorKind::PermissionDenied), "{what}");
            };
            let read = |name: &str| std::fs::read_to_string(path(name).join("file"));
            assert_eq!(read("given").unwrap(), "given");
            refused(read("foreign").map(drop), "read");
            refused(std::fs::read_dir(&outside).map(drop), "list");
            refused(std::fs::write(path("given/file"), "x"), "write");
            refused(std::fs::remove_file(path("foreign/file")), "remove");
            std::fs::create_dir(path("mine/below")).unwrap();
            std::fs::rename(path("mine/file"), path("mine/below/file")).unwrap();
            refused(TcpListener::bind("127.0.0.1:0").map(drop), "a socket");
            // What it starts is bound as well, and can be started at all.
            let cat = |name: &str| Command::new("cat").arg(path(name)).output().unwrap();
            assert_eq!(cat("given/file").stdout, b"given");
            let found = cat("foreign/file");
            assert!(
                !found.status.success() && found.stdout.is_empty(),
                "{found:?}"
            );
        })
        .unwrap();
        // Nobody else is.
        assert!(path("mine/below/file").exists());
        drop(TcpListener::bind("127.0.0.1:0").unwrap());
        std::fs::write(path("foreign/file"), "x").unwrap();
    }

    #[test]
    fn what_is_to_be_given_must_be_there() {
        let allowed = Allowed {
            read: vec!["/no/such/place".into()],
            write: Vec::new(),
        };
        let error = confined(&allowed, || ()).unwrap_err().to_string();
        assert!(error.contains("/no/such/place"), "{error}");
    }
}
