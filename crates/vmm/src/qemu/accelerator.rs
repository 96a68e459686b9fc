//! How the guest's instructions are run: by the processor (KVM) or by translation (TCG).
//!
//! That `/dev/kvm` opens proves nothing: some hosts, nested ones above all, offer a KVM that cannot
//! run a stock kernel. So a guest is booted once ([`super::probe`]) and the answer is remembered in a
//! file, together with what it depends on.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::program::Version;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accelerator {
    /// Its lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What the configuration says about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// KVM where a guest really boots on it, else TCG.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// TCG.
    Tcg,
}

/// A text that is no [`Choice`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no accelerator: write auto, kvm or tcg")]
pub struct ChoiceError(String);

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(ChoiceError(text.chars().take(40).collect())),
        }
    }
}

/// What the answer of a probe depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Circumstances {
    /// The host's kernel release.
    kernel: String,
    /// The host's processor.
    processor: String,
    /// The monitor's version.
    monitor: String,
}

impl Circumstances {
    pub(super) fn present(version: Version) -> Self {
        let kernel = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        Self {
            kernel,
            processor: processor(),
            monitor: version.to_string(),
        }
    }
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// The remembered answer of a probe.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    circumstances: Circumstances,
    accelerator: Accelerator,
}

/// Where probes are remembered.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    path: PathBuf,
}

impl Memory {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The answer for these circumstances, where there is one. A damaged file is as good as none.
    pub(super) fn recall(&self, present: &Circumstances) -> Option<Accelerator> {
        let bytes = std::fs::read(&self.path).ok()?;
        let remembered: Remembered = serde_json::from_slice(&bytes).ok()?;
        (remembered.circumstances == *present).then_some(remembered.accelerator)
    }

    /// Remembers. That it cannot be written costs the next start a probe, nothing else.
    pub(super) fn record(&self, circumstances: Circumstances, accelerator: Accelerator) {
        let remembered = Remembered {
            circumstances,
            accelerator,
        };
        let written = serde_json::to_vec_pretty(&remembered)
            .map_err(std::io::Error::from)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                cowslip_host::publish::publish(&self.path, &bytes)
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), error, "the probe of KVM could not be remembered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(micro: u32) -> Version {
        Version {
            major: 7,
            minor: 2,
            micro,
        }
    }

    #[test]
    fn an_answer_holds_only_for_its_circumstances() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(&dir.path().join("kvm.json"));
        let now = Circumstances::present(version(1));
        assert_eq!(memory.recall(&now), None);
        memory.record(now.clone(), Accelerator::Tcg);
        assert_eq!(memory.recall(&now), Some(Accelerator::Tcg));
        assert_eq!(memory.recall(&Circumstances::present(version(2))), None);
    }

    #[test]
    fn a_damaged_memory_is_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvm.json");
        std::fs::write(&path, b"{\"accelerator\": \"kvm\"").unwrap();
        assert_eq!(
            Memory::new(&path).recall(&Circumstances::present(version(1))),
            None
        );
    }

    #[test]
    fn choices_have_one_spelling() {
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert!("KVM".parse::<Choice>().is_err());
    }
}
