//! Who is at the other end of a connection, by the kernel's word.

use std::path::PathBuf;

use cowslip_model::api::ErrorCode;

use crate::error::ApiError;

/// The process that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its user, where the kernel told.
    pub(crate) uid: Option<u32>,
}

impl Peer {
    /// Checks that this peer may have the engine read files of this host: only root and the engine's
    /// own user can read them anyway.
    pub(crate) fn may_name_files(self, what: &str) -> Result<(), ApiError> {
        let engine = rustix::process::geteuid().as_raw();
        match self.uid {
            Some(0) => Ok(()),
            Some(uid) if uid == engine => Ok(()),
            _ => Err(ApiError::new(
                ErrorCode::Forbidden,
                format!("{what}: only root and the engine's own user may name files of this host"),
            )),
        }
    }
}

/// A path of this host, as a request names it.
pub(crate) fn absolute(what: &str, path: String) -> Result<PathBuf, ApiError> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    let message = format!("{what}: the path \"{}\" is not absolute", path.display());
    Err(ApiError::new(ErrorCode::Invalid, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_our_own_user_may_name_files() {
        let own = rustix::process::geteuid().as_raw();
        assert!(Peer { uid: Some(own) }.may_name_files("x").is_ok());
        assert!(Peer { uid: Some(0) }.may_name_files("x").is_ok());
        for uid in [None, Some(own.wrapping_add(4242))] {
            let (status, _) = Peer { uid }.may_name_files("x").unwrap_err().into_parts();
            assert_eq!(status.as_u16(), 403);
        }
        assert!(absolute("x", "etc".to_owned()).is_err());
    }
}
