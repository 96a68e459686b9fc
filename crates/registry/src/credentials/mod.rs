//! Who one is to a registry, and where users keep that: in the files of `docker login`, `podman login` and
//! `skopeo login`, and with the helper programs that those name.

mod file;
mod helper;
#[cfg(test)]
mod tests;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::host::Host;

/// Who one is to a registry. Secrets are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user with a password, or with a token in its place.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the registry's token server gives others for.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { user, .. } => f
                .debug_struct("Basic")
                .field("user", user)
                .finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
        }
    }
}

/// Why credentials that are kept somewhere cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read the credentials in \"{}\"", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("the credentials in \"{}\" are damaged: {why}; log in again with \"docker login {registry}\"", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The registry that was looked up.
        registry: String,
        /// What is wrong; it has nothing of the file in it.
        why: String,
    },
    /// A file names a helper that cannot be one.
    #[error("\"{}\" names the credential helper \"{}\", which is no name of a program", path.display(), name.escape_debug())]
    HelperName {
        /// The file.
        path: PathBuf,
        /// What it says.
        name: String,
    },
    /// A helper cannot be run.
    #[error("cannot run \"{program}\", which \"{}\" names; install it, or take it out of the file", path.display())]
    HelperStart {
        /// The file.
        path: PathBuf,
        /// The program.
        program: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A helper failed.
    #[error(
        "\"{program}\" gives no credentials for {registry} ({status}){}",
        said(message)
    )]
    HelperFailed {
        /// The program.
        program: String,
        /// The registry that was looked up.
        registry: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        message: String,
    },
}

fn said(message: &str) -> String {
    match message.is_empty() {
        true => String::new(),
        false => format!(": {}", message.escape_debug()),
    }
}

/// The files that may have credentials, in the order in which they count: `$REGISTRY_AUTH_FILE` alone where it is
/// set; else `config.json` in `$DOCKER_CONFIG` or `~/.docker`, then `containers/auth.json` in `$XDG_RUNTIME_DIR`.
#[must_use]
pub fn files() -> Vec<PathBuf> {
    files_from(|name| env::var_os(name))
}

fn files_from(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(only) = path("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let docker = path("DOCKER_CONFIG").or_else(|| Some(path("HOME")?.join(".docker")));
    let docker = docker.map(|directory| directory.join("config.json"));
    let containers =
        path("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json"));
    docker.into_iter().chain(containers).collect()
}

/// Looks a registry up in the files of [`files`]. What the first of them says counts. Where no file says anything, and
/// where there are no files, it is [`Credentials::Anonymous`].
///
/// It may run a helper program, which may ask the user, and waits for it.
///
/// # Errors
/// [`CredentialsError`], for a file that is damaged and a helper that fails.
pub fn lookup(
    files: &[impl AsRef<Path>],
    registry: &Host,
) -> Result<Credentials, CredentialsError> {
    for path in files {
        let found = file::lookup(path.as_ref(), registry)?;
        if found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    Ok(Credentials::Anonymous)
}
