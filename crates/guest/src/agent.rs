//! The agent's part of the initramfs: the agent as `/init` and what it needs to start.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::cpio::{Archive, CpioError};
use crate::elf::{ET_DYN, ET_EXEC, Elf, PT_INTERP, PT_LOAD};

/// The largest agent that is accepted, in bytes; a real one is a few MiB, and every boot pays for it.
pub const MAX_AGENT: u64 = 64 << 20;

/// Why a file cannot be the guest's agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It would not start in an initramfs.
    #[error(
        "agent \"{path}\" cannot be a guest's /init: {reason}; build it with \"make build\" or name another"
    )]
    Unusable {
        /// The file as it was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It cannot be read.
    #[error("cannot read agent \"{path}\"")]
    Io {
        /// The file as it was named.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Reads the agent and checks that it is a static program for x86-64: the initramfs has no dynamic
/// linker and no libraries.
pub(crate) fn read_agent(path: &Path) -> Result<Vec<u8>, AgentError> {
    let failed = |source| AgentError::Io {
        path: path.to_owned(),
        source,
    };
    let unusable = |reason: String| AgentError::Unusable {
        path: path.to_owned(),
        reason,
    };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(unusable("it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_AGENT + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_AGENT {
        return Err(unusable("it is over 64 MiB".to_owned()));
    }
    let elf = Elf::parse(bytes.as_slice()).map_err(|error| unusable(format!("it is {error}")))?;
    // ET_DYN without an interpreter is a static program at a random address.
    if !matches!(elf.kind, ET_EXEC | ET_DYN) || !elf.has_segment(PT_LOAD) {
        return Err(unusable("it is an ELF file, but not a program".to_owned()));
    }
    if elf.has_segment(PT_INTERP) {
        return Err(unusable("it is linked dynamically".to_owned()));
    }
    Ok(bytes)
}

/// The archive with the agent as `/init`.
///
/// The kernel opens `/dev/console` for init before devtmpfs can be mounted; without the node the
/// agent would start with no standard output and its first words would be lost.
pub(crate) fn archive(agent: &[u8]) -> Result<Archive<'_>, CpioError> {
    let mut archive = Archive::new();
    archive.file("init", 0o755, agent)?;
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.char_device("dev/null", 0o666, 1, 3)?;
    for directory in ["newroot", "proc", "run", "sys"] {
        archive.directory(directory)?;
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn refusal(bytes: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        read_agent(file.path()).unwrap_err().to_string()
    }

    #[test]
    fn a_static_program_will_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), fixture::program(62, false)).unwrap();
        assert_eq!(
            read_agent(file.path()).unwrap(),
            fixture::program(62, false)
        );
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        assert!(refusal(&fixture::program(62, true)).contains("linked dynamically"));
        assert!(refusal(&fixture::program(183, false)).contains("not for 64-bit x86"));
        assert!(refusal(&fixture::module("x", "6.1.0", &[], None)).contains("not a program"));
        assert!(refusal(b"#!/bin/sh\n").contains("not an ELF file"));
        let whole = fixture::program(62, false);
        assert!(refusal(&whole[..whole.len() - 1]).contains("cut short"));
        let error = read_agent(Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
