//! Which state and run directory a command works on, and their preparation.
//!
//! ```text
//!                    state                          run
//!  root              /var/lib/cowslip               /run/cowslip
//!  ordinary user     $XDG_STATE_HOME/cowslip        $XDG_RUNTIME_DIR/cowslip
//!                    (~/.local/state/cowslip)       (/tmp/cowslip-<uid>)
//!  --state-dir DIR   DIR                            DIR/run, or where a socket's path would be too
//!                                                   long <the above>-<hash of DIR>
//! ```

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cowslip_host::Layout;
use cowslip_host::layout::SOCKET_PATH_MAX;
use cowslip_model::api::ErrorCode;
use sha2::{Digest, Sha256};

use crate::exit::Failure;

/// What the sockets below the run directory need of [`SOCKET_PATH_MAX`]: `/vm/<16 digits>/<name>`.
const BELOW_RUN: usize = "/vm/0123456789abcdef/restore-agent.sock".len();

/// What the choice depends on, apart from the command line.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// The effective user.
    pub(crate) uid: u32,
    /// `HOME`.
    pub(crate) home: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub(crate) state_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub(crate) runtime_dir: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process. Relative XDG paths are ignored, as their specification wants.
    pub(crate) fn ours() -> Self {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Self {
            uid: rustix::process::geteuid().as_raw(),
            home: absolute("HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            runtime_dir: absolute("XDG_RUNTIME_DIR"),
        }
    }
}

/// The layout for these options.
pub(crate) fn layout(
    state_dir: Option<&Path>,
    run_dir: Option<&Path>,
    around: &Surroundings,
) -> Result<Layout, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| {
            Failure::io(format!("find the directory \"{}\"", path.display()), &error)
        })
    };
    let state = match state_dir {
        Some(path) => absolute(path)?,
        None => default_state(around)?,
    };
    let run = match (run_dir, state_dir) {
        (Some(path), _) => absolute(path)?,
        (None, Some(_)) => run_beside(&state, around),
        (None, None) => default_run(around),
    };
    if run.as_os_str().len() + BELOW_RUN > SOCKET_PATH_MAX {
        return Err(Failure::usage(format!(
            "the run directory \"{}\" has a path of {} bytes: sockets below it need one of at most {}",
            run.display(),
            run.as_os_str().len(),
            SOCKET_PATH_MAX - BELOW_RUN,
        ))
        .hint("choose a shorter one with --run-dir"));
    }
    Ok(Layout::new(state, run))
}

fn default_state(around: &Surroundings) -> Result<PathBuf, Failure> {
    if around.uid == 0 {
        return Ok("/var/lib/cowslip".into());
    }
    let home = around.home.as_ref().map(|home| home.join(".local/state"));
    around
        .state_home
        .clone()
        .or(home)
        .map(|base| base.join("cowslip"))
        .ok_or_else(|| {
            Failure::usage("there is no place for the state directory: HOME is not set")
                .hint("name one with --state-dir or COWSLIP_STATE_DIR")
        })
}

fn default_run(around: &Surroundings) -> PathBuf {
    match (&around.runtime_dir, around.uid) {
        (_, 0) => "/run/cowslip".into(),
        (Some(base), _) => base.join("cowslip"),
        (None, uid) => format!("/tmp/cowslip-{uid}").into(),
    }
}

/// The run directory of a state directory that was named: in it, or where that path is too long in
/// the usual place under a name that only this state directory has.
fn run_beside(state: &Path, around: &Surroundings) -> PathBuf {
    let inside = state.join("run");
    if inside.as_os_str().len() + BELOW_RUN <= SOCKET_PATH_MAX {
        return inside;
    }
    let digest = Sha256::digest(state.as_os_str().as_bytes());
    let tag: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut name = default_run(around).into_os_string();
    name.push(format!("-{tag}"));
    name.into()
}

/// Makes both directories, private to this user, or says in one line why they cannot be used.
pub(crate) fn prepare(layout: &Layout) -> Result<(), Failure> {
    let uid = rustix::process::geteuid().as_raw();
    make_private("state", layout.state(), uid)?;
    make_private("run", layout.run(), uid)
}

/// Makes the run directory alone, for what is done without an engine.
pub(crate) fn prepare_run(layout: &Layout) -> Result<(), Failure> {
    make_private("run", layout.run(), rustix::process::geteuid().as_raw())
}

fn make_private(what: &str, path: &Path, uid: u32) -> Result<(), Failure> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| {
                    Failure::io(format!("make the {what} directory \"{shown}\""), &error)
                        .hint(format!("choose another with --{what}-dir"))
                })?;
        }
        Err(error) => {
            return Err(Failure::io(
                format!("look at the {what} directory \"{shown}\""),
                &error,
            ));
        }
        // /tmp is open to everybody: a link of a third user's could lead anywhere.
        Ok(link) if link.uid() != uid && link.uid() != 0 => {
            return Err(foreign(what, path, link.uid(), uid));
        }
        Ok(_) => {}
    }
    let found = std::fs::metadata(path).map_err(|error| {
        Failure::io(format!("look at the {what} directory \"{shown}\""), &error)
    })?;
    if !found.is_dir() {
        return Err(Failure::usage(format!(
            "the {what} directory \"{shown}\" is not a directory"
        ))
        .hint(format!("choose another with --{what}-dir")));
    }
    if found.uid() != uid {
        return Err(foreign(what, path, found.uid(), uid));
    }
    if found.mode() & 0o077 != 0 {
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(path, private).map_err(|error| {
            Failure::io(
                format!("make the {what} directory \"{shown}\" private"),
                &error,
            )
        })?;
    }
    rustix::fs::access(
        path,
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    )
    .map_err(|error| {
        Failure::io(
            format!("write to the {what} directory \"{shown}\""),
            &error.into(),
        )
        .hint(format!("choose another with --{what}-dir"))
    })
}

fn foreign(what: &str, path: &Path, owner: u32, uid: u32) -> Failure {
    let shown = path.display();
    let message =
        format!("the {what} directory \"{shown}\" belongs to user {owner}, and this is user {uid}");
    Failure::new(ErrorCode::Forbidden, message)
        .hint(format!("choose one of your own with --{what}-dir"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Surroundings {
        Surroundings {
            uid: 1000,
            home: Some("/home/u".into()),
            state_home: None,
            runtime_dir: Some("/run/user/1000".into()),
        }
    }

    fn chosen(state: Option<&str>, run: Option<&str>, around: &Surroundings) -> (String, String) {
        let layout = layout(state.map(Path::new), run.map(Path::new), around).unwrap();
        (
            layout.state().display().to_string(),
            layout.run().display().to_string(),
        )
    }

    #[test]
    fn every_user_has_directories_of_his_own() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let root = Surroundings { uid: 0, ..user() };
        assert_eq!(
            chosen(None, None, &root),
            pair("/var/lib/cowslip", "/run/cowslip")
        );
        let home = user();
        assert_eq!(
            chosen(None, None, &home),
            pair("/home/u/.local/state/cowslip", "/run/user/1000/cowslip")
        );
        let xdg = Surroundings {
            state_home: Some("/x".into()),
            runtime_dir: None,
            ..user()
        };
        assert_eq!(
            chosen(None, None, &xdg),
            pair("/x/cowslip", "/tmp/cowslip-1000")
        );
        assert_eq!(chosen(Some("/s"), None, &home), pair("/s", "/s/run"));
        assert_eq!(chosen(Some("/s"), Some("/r"), &home), pair("/s", "/r"));
    }

    #[test]
    fn a_long_state_directory_gets_a_short_run_directory() {
        let long = format!("/{}", "x".repeat(120));
        let (_, run) = chosen(Some(&long), None, &user());
        assert!(
            run.starts_with("/run/user/1000/cowslip-") && run.len() < 60,
            "{run}"
        );
        let other = format!("/{}", "y".repeat(120));
        assert_ne!(run, chosen(Some(&other), None, &user()).1);
        let error = layout(None, Some(Path::new(&long)), &user()).unwrap_err();
        assert!(error.error.message.contains("run directory"), "{error}");
    }

    #[test]
    fn without_a_home_the_next_step_is_named() {
        let nowhere = Surroundings {
            home: None,
            ..user()
        };
        let error = layout(None, None, &nowhere).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn directories_are_made_private_and_files_in_their_place_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("a/state"), dir.path().join("a/run"));
        prepare(&layout).unwrap();
        assert_eq!(
            std::fs::metadata(layout.state()).unwrap().mode() & 0o777,
            0o700
        );
        std::fs::write(dir.path().join("file"), "").unwrap();
        let wrong = Layout::new(dir.path().join("file"), dir.path().join("run"));
        assert!(
            prepare(&wrong)
                .unwrap_err()
                .to_string()
                .contains("is not a directory")
        );
        let below = Layout::new(dir.path().join("file/state"), dir.path().join("run"));
        assert!(
            prepare(&below)
                .unwrap_err()
                .to_string()
                .contains("not a directory")
        );
    }
}
