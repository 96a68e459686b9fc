//! What a guest boots: a kernel file, the modules it needs and the agent, as one initramfs.
//!
//! ```text
//!  vmlinuz ──probe──► release ─┐
//!  lib/modules/<release> ──select──► modules.cpio ─┐
//!  cowslip-agent (static ELF) ─────► /init archive ┴─► initramfs
//! ```
//!
//! An imported kernel is one directory of four files: `vmlinuz`, `modules.cpio`, `initramfs` and
//! `manifest.json`, which is written last and so marks the whole as complete. The module archive is
//! kept beside the initramfs because the agent changes with every release of cowslip, and the
//! distribution's module tree may be gone by then: [`refresh_initramfs`] needs only the directory.
//!
//! This crate reads and writes files, synchronously. It starts no process, knows neither the ledger
//! nor the monitor, and never runs anything of what it reads: kernels, modules and trees come from
//! outside, so every length in them is checked before it is believed.

pub mod agent;
pub mod cpio;
pub mod import;
pub mod kernel;
pub mod manifest;
pub mod modules;

mod digest;
mod durable;
mod elf;
#[cfg(test)]
mod fixture;

pub use agent::AgentError;
pub use digest::{Digest, DigestError};
pub use import::{ImportError, RefreshError, import_kernel, refresh_initramfs};
pub use kernel::{KernelError, KernelFormat, KernelImage, probe_kernel};
pub use manifest::{FileRecord, KernelManifest, ManifestError, ModuleRecord};
pub use modules::{ModulesError, Stage};

/// The kernel image in an imported kernel's directory, as it was given.
pub const VMLINUZ: &str = "vmlinuz";
/// The archive of modules alone.
pub const MODULES_CPIO: &str = "modules.cpio";
/// What the monitor hands to the guest: the modules' archive, then the agent's.
pub const INITRAMFS: &str = "initramfs";
/// The manifest, written last.
pub const MANIFEST: &str = "manifest.json";
