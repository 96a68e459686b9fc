//! Handles for objects that are on the host already: after the database was lost, what the other
//! witnesses know is recorded again.

use std::path::PathBuf;

use cowslip_ledger::Owner;

use crate::directory::{Directory, DirectorySpec};
use crate::error::HostError;
use crate::file::{File, FileSpec, Inode};
use crate::site::Site;

/// Records the directory at `path` as held for `owner`.
///
/// # Errors
/// When it is not there, or the ledger fails.
pub fn directory(site: &Site, owner: Owner, path: PathBuf) -> Result<(), HostError> {
    let inode = Inode::of(&path)?;
    let slot = site
        .ledger
        .reserve::<Directory>(owner, DirectorySpec { path, mode: 0o700 }, &[])?;
    slot.acquired(inode)?.settle();
    Ok(())
}

/// Records the file at `path` as held for `owner`.
///
/// # Errors
/// As for [`directory`].
pub fn file(site: &Site, owner: Owner, path: PathBuf) -> Result<(), HostError> {
    let inode = Inode::of(&path)?;
    let slot = site
        .ledger
        .reserve::<File>(owner, FileSpec { path, mode: 0o600 }, &[])?;
    slot.acquired(inode)?.settle();
    Ok(())
}
