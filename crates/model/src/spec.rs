//! What a sandbox is made of, fixed when it is created.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cpu::CpuTemplate;
use crate::id::{KernelId, TemplateId};
use crate::limits::DiskLimits;
use crate::monitor::{Isolation, MonitorKind, UnknownWord};
use crate::network::NetworkSpec;
use crate::size::ByteSize;
use crate::time::Lifetime;

/// Virtual hardware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Resources {
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory, in bytes; a multiple of 1 MiB.
    pub memory: ByteSize,
    /// Size of the root disk, in bytes; at least the template's.
    pub disk: ByteSize,
}

/// What becomes of a sandbox whose time to live is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnExpiry {
    /// It is removed with all that it holds. Its time is counted from its creation.
    #[default]
    Remove,
    /// Its machine is ended, its disk kept. Its time is counted from each start.
    Stop,
    /// It is taken to disk with its memory. Its time is counted from each start and resume.
    Pause,
}

impl FromStr for OnExpiry {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "remove" => Ok(Self::Remove),
            "stop" => Ok(Self::Stop),
            "pause" => Ok(Self::Pause),
            _ => Err(UnknownWord::new(text, "\"remove\", \"stop\" or \"pause\"")),
        }
    }
}

/// A sandbox's whole specification. A checkpoint carries it, so that a fork of a fork knows all
/// that the first sandbox knew (R33).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxSpec {
    /// The template below every layer of the disk.
    pub template: TemplateId,
    /// The guest kernel.
    pub kernel: KernelId,
    /// Virtual hardware.
    pub resources: Resources,
    /// Environment of every process started in it.
    pub env: BTreeMap<String, String>,
    /// Working directory of its processes, where a request names none.
    pub workdir: Option<String>,
    /// User of its processes, where a request names none: a name, `uid` or `uid:gid`.
    pub user: Option<String>,
    /// How long it may live, counted from its creation.
    pub ttl: Option<Lifetime>,
    /// What becomes of it then.
    #[serde(default)]
    pub on_expiry: OnExpiry,
    /// What runs its machine.
    #[serde(default)]
    pub vmm: MonitorKind,
    /// How that is kept apart from the host; a configuration that asks for more gets more.
    #[serde(default)]
    pub isolation: Isolation,
    /// What of its processor the guest is shown; none: all that the monitor has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// How fast it may use its disk.
    #[serde(default)]
    pub disk_limits: DiskLimits,
    /// Its network; those that were made before there was any have none.
    #[serde(default = "NetworkSpec::none")]
    pub network: NetworkSpec,
}
