//! Why a host could not be prepared.

use std::path::PathBuf;

use crate::error::HostError;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A system call.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The record does not say what was done.
    #[error(
        "\"{path}\" is no record of this version of cowslip ({why}): take back by hand what it names, then remove it"
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A module did not load.
    #[error("load the module \"{module}\": {why}")]
    Module {
        /// Its name.
        module: String,
        /// What modprobe said.
        why: String,
    },
    /// Somebody mounted something over what was mounted here.
    #[error(
        "another mount lies over ours on \"{path}\": unmount it (umount {path}), then try again"
    )]
    Covered {
        /// The cache's directory.
        path: PathBuf,
    },
    /// A limit that is no number.
    #[error("read \"{path}\": \"{text}\" is no number; set it by hand")]
    Number {
        /// The file below `/proc/sys`.
        path: PathBuf,
        /// What it says.
        text: String,
    },
}
