//! Steps of builds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ExecRequest;
use crate::name::Name;
use crate::size::ByteSize;

/// One step of a build: a new sandbox on a disk, something done in it, and its disk as a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildStepRequest {
    /// The disk that it begins with.
    pub base: BuildBase,
    /// The name of the checkpoint that it ends in.
    pub name: Name,
    /// What is done.
    pub action: BuildAction,
    /// Directories of the guest that are made first where they are missing; absolute.
    #[serde(default)]
    pub directories: Vec<String>,
    /// Virtual processors; none: 1.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Guest memory, in bytes; none: 256 MiB.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// Size of the disk of a first step, in bytes; none: the template's and 4 GiB more.
    #[serde(default)]
    pub disk: Option<ByteSize>,
    /// Name or id of the kernel; none: the default one.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Leave the sandbox running where its command failed.
    #[serde(default)]
    pub keep_failed: bool,
}

/// The disk that a step of a build begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildBase {
    /// A template, by name or id.
    Template(String),
    /// What another step ended in, by name or id.
    Checkpoint(String),
}

/// What a step of a build does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildAction {
    /// Nothing: the disk as it is.
    Nothing,
    /// A command. It succeeds with exit code 0.
    Run(Box<ExecRequest>),
    /// Unpacks the tar that is sent as standard input.
    Unpack {
        /// Into this directory of the guest.
        directory: String,
        /// Where this name is a directory already, into that; the client is told (`Destination`) before it sends.
        #[serde(default)]
        name: Option<String>,
        /// How many entries the tar has: one that ends too early is no success.
        entries: u64,
        /// All of it is this user's: `USER` or `USER:GROUP`; none: as in the tar.
        #[serde(default)]
        owner: Option<String>,
    },
}
