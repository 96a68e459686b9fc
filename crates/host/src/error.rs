//! What the host layer reports.

use std::path::{Path, PathBuf};

use cowslip_ledger::LedgerError;

/// A host operation that failed: which, on what, and why.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call on a path failed.
    #[error("{operation} \"{path}\": {source}")]
    Path {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A process could not be started, found or ended.
    #[error("{operation} process {process}: {source}")]
    Process {
        /// What was being done.
        operation: &'static str,
        /// A pid or a program.
        process: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A thread could not be kept from the rest of the host.
    #[error("keep a thread from the rest of the host: {0}")]
    Confine(#[source] std::io::Error),
    /// A file system object is not the one the row speaks of.
    #[error(
        "\"{path}\" is not what the ledger recorded ({why}): it is left alone; look at it, then remove it by hand"
    )]
    Foreign {
        /// The path.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// A process that was ours by pid and start time says that it is another one.
    #[error(
        "process {pid} was started as \"{mark}\" and its command line does not say so any more: it is left alone; look at it, then end it by hand: kill -KILL {pid}"
    )]
    Unmarked {
        /// The process.
        pid: u32,
        /// What its command line should carry.
        mark: String,
    },
    /// A path that a row may not name.
    #[error("\"{path}\" lies outside cowslip's directories: it is left alone")]
    Outside {
        /// The path.
        path: PathBuf,
    },
    /// An interface of the network.
    #[error("{operation} the network interface {name}: {source}")]
    Interface {
        /// What was being done.
        operation: &'static str,
        /// Its name.
        name: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Rules for packets were refused.
    #[error("load rules for the packets of a sandbox: {source}")]
    Rules {
        /// What nft said.
        source: std::io::Error,
    },
    /// nft is not installed.
    #[error(
        "nft was not found: install the package nftables, or create the sandbox with --network none"
    )]
    NoNft,
    /// An address of a sandbox's link is on the host already.
    #[error(
        "this host has the address {address} already: give this engine a network.range of its own, which no network of the \
         host and no other engine has"
    )]
    AddressTaken {
        /// Which.
        address: std::net::Ipv4Addr,
    },
    /// A row of a kind this host does not know.
    #[error("this cowslip knows no handles of kind \"{0}\": use the version that made it")]
    UnknownKind(String),
    /// Device-mapper.
    #[error(transparent)]
    Device(#[from] crate::dm::DmError),
    /// A loop device that stays attached.
    #[error(
        "/dev/loop{index} stays attached to \"{path}\": it is in use by {}", holders.join(", ")
    )]
    LoopBusy {
        /// The backing file.
        path: PathBuf,
        /// `/dev/loop<index>`.
        index: u32,
        /// Devices and processes that have it open.
        holders: Vec<String>,
    },
    /// The ledger failed in the middle of an acquisition.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl HostError {
    /// An error of `operation` on `path`, for use in `map_err`.
    pub fn path<E: Into<std::io::Error>>(
        operation: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Path {
            operation,
            path,
            source: source.into(),
        }
    }

    /// An error of `operation` on a process, for use in `map_err`.
    pub fn process<E: Into<std::io::Error>>(
        operation: &'static str,
        process: impl ToString,
    ) -> impl FnOnce(E) -> Self {
        let process = process.to_string();
        move |source| Self::Process {
            operation,
            process,
            source: source.into(),
        }
    }

    /// Whether the disk was full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Path { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
    }
}
