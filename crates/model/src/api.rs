//! The types of the HTTP API, which are also what `--json` prints: one documented, stable schema.
//!
//! Fields are only ever added. Times are milliseconds since the Unix epoch, sizes are bytes, spans
//! are seconds unless the name says otherwise. Requests refuse unknown fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::cpu::CpuTemplate;
use crate::id::{CheckpointId, KernelId, LayerId, ProcessId, SandboxId, TemplateId};
use crate::image::ImageConfig;
use crate::limits::DiskLimits;
use crate::monitor::{Isolation, MonitorKind};
use crate::name::Name;
use crate::size::ByteSize;
use crate::spec::OnExpiry;
use crate::state::{SandboxState, Transition};
use crate::time::{Lifetime, Timestamp};

/// Exit codes of the command line, as docker has them.
pub mod exit {
    /// Our own time-out ended the command.
    pub const TIMED_OUT: u8 = 124;
    /// The engine failed.
    pub const ENGINE: u8 = 125;
    /// The command cannot be invoked.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// The command was not found.
    pub const NOT_FOUND: u8 = 127;
    /// Added to the number of the signal that ended the command.
    pub const SIGNAL_BASE: u8 = 128;
}

/// What went wrong, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// A value in the request is not acceptable.
    Invalid,
    /// There is no such object.
    NotFound,
    /// The object's state, or another object, forbids it.
    Conflict,
    /// The name is taken.
    Exists,
    /// The command is not in the guest.
    CommandNotFound,
    /// The command is there and cannot be run.
    CommandNotExecutable,
    /// A bound was reached: time.
    TimedOut,
    /// The disk is full, or memory is short.
    NoSpace,
    /// This host cannot do it.
    Unsupported,
    /// The caller may not.
    Forbidden,
    /// Anything else.
    Internal,
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// One line: the operation, the object, what is wrong.
    pub message: String,
    /// The causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Its id.
    pub id: TemplateId,
    /// The names it goes by.
    pub names: Vec<Name>,
    /// sha256 of the image.
    pub digest: String,
    /// Size of its disk, in bytes.
    pub size: ByteSize,
    /// Bytes of it on the host's disk.
    pub used: ByteSize,
    /// Files, directories and links in it.
    pub entries: u64,
    /// "directory", "tar", "OCI image layout", "OCI archive" or "docker archive", a registry's
    /// "docker://…", or the sandbox or checkpoint that it was made from: `sandbox "web"`.
    pub source: String,
    /// How it is run, where its image says so: the defaults of its sandboxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ImageConfig>,
    /// When it was imported.
    pub created_at: Timestamp,
    /// Layers that stand on it.
    pub layers: u64,
}

/// A guest kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Kernel {
    /// Its id.
    pub id: KernelId,
    /// Its name.
    pub name: Name,
    /// What `uname -r` says in the guest.
    pub release: String,
    /// sha256 of the kernel image.
    pub digest: String,
    /// "bzImage" or "elf".
    pub format: String,
    /// Modules in its initramfs.
    pub modules: u64,
    /// Bytes of kernel and initramfs.
    pub size: ByteSize,
    /// When it was imported.
    pub created_at: Timestamp,
    /// Used where a request names no kernel.
    pub default: bool,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// Its name.
    pub name: Name,
    /// Its template's id.
    pub template: TemplateId,
    /// A name of its template, where it has one.
    pub template_name: Option<Name>,
    /// Its kernel's name.
    pub kernel: String,
    /// Where it stands.
    pub state: SandboxState,
    /// What is being done to it.
    pub transition: Option<Transition>,
    /// Why it failed.
    pub reason: Option<String>,
    /// Whether its vCPUs stand still because the host's disk is nearly full. It goes on by itself.
    #[serde(default)]
    pub frozen: bool,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory, in bytes.
    pub memory: ByteSize,
    /// Size of its disk, in bytes.
    pub disk: ByteSize,
    /// Bytes its layers occupy on the host's disk, those it shares with others included.
    pub disk_used: ByteSize,
    /// Depth of its chain of layers.
    pub layers: u64,
    /// "dm", "qcow2" or "copy".
    pub backend: String,
    /// Why its disk is a whole copy, where the backend makes devices.
    pub disk_fallback: Option<String>,
    /// What runs its machine.
    #[serde(default)]
    pub vmm: MonitorKind,
    /// How Firecracker is kept apart from the host; none of QEMU, which always is in the same way.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// What of its processor the guest is shown: the name of a template, or "custom".
    #[serde(default)]
    pub cpu_template: Option<String>,
    /// How fast it may use its disk.
    #[serde(default)]
    pub disk_limits: DiskLimits,
    /// The monitor of its last run, as "qemu 7.2.22 (tcg)".
    pub monitor: Option<String>,
    /// Environment of its processes.
    pub env: BTreeMap<String, String>,
    /// Working directory of its processes.
    pub workdir: Option<String>,
    /// User of its processes.
    pub user: Option<String>,
    /// The command `run` was given.
    pub command: Option<Vec<String>>,
    /// How that command ended.
    pub exit_code: Option<i32>,
    /// The checkpoint it was forked from.
    pub forked_from: Option<CheckpointId>,
    /// How often it was restored.
    pub generation: u64,
    /// Pid of its monitor on the host.
    pub pid: Option<u32>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its current run began.
    pub started_at: Option<Timestamp>,
    /// When its TTL ends.
    pub expires_at: Option<Timestamp>,
    /// What becomes of it then.
    #[serde(default)]
    pub on_expiry: OnExpiry,
    /// How long the parts of its last start, fork or resume took, in order: together they are the whole.
    #[serde(default)]
    pub phases: Vec<Phase>,
}

/// A part of what was done, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Phase {
    /// Which part.
    pub name: String,
    /// In microseconds.
    pub us: u64,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Its id.
    pub id: CheckpointId,
    /// Its name.
    pub name: Name,
    /// The sandbox it was taken of.
    pub sandbox: SandboxId,
    /// That sandbox's name at the time.
    pub sandbox_name: Name,
    /// Its template's id.
    pub template: TemplateId,
    /// Its disk is all there is of it: forks of it boot. Steps of a build are such.
    #[serde(default)]
    pub disk_only: bool,
    /// Virtual processors.
    pub cpus: u32,
    /// Guest memory, in bytes.
    pub memory: ByteSize,
    /// Bytes of memory and device state that it holds itself on the host's disk.
    pub memory_used: ByteSize,
    /// Images of memory that it stands on, each with what changed since the one below; 0: it holds all.
    #[serde(default)]
    pub memory_chain: u64,
    /// Bytes of its layer on the host's disk; shared with what stands on it.
    pub disk_used: ByteSize,
    /// The monitor that can restore it.
    pub monitor: String,
    /// The processor that it ran on, where it needs one like that.
    #[serde(default)]
    pub cpu: Option<String>,
    /// sha256 of its template's image.
    #[serde(default)]
    pub template_digest: Option<String>,
    /// sha256 of its kernel.
    #[serde(default)]
    pub kernel_digest: Option<String>,
    /// Milliseconds for which the vCPUs stood still.
    pub downtime_ms: f64,
    /// Milliseconds until it was published.
    pub publication_ms: f64,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// What: `sandbox.started`, `checkpoint.created`, …
    pub kind: String,
    /// The object's id.
    pub id: String,
    /// The object's name.
    pub name: Option<String>,
    /// More, by kind.
    #[schema(value_type = Object)]
    pub detail: serde_json::Value,
}

/// What this engine is and uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Info {
    /// Version of the engine.
    pub version: String,
    /// Id of the state directory.
    pub instance: String,
    /// Its pid.
    pub pid: u32,
    /// The state directory.
    pub state_dir: String,
    /// The run directory.
    pub run_dir: String,
    /// The volume backend.
    pub backend: String,
    /// Why that one.
    pub backend_reason: String,
    /// The monitor, with version and accelerator.
    pub monitor: Option<String>,
    /// Why that accelerator.
    pub accelerator_reason: String,
    /// Sandboxes by state.
    pub sandboxes: BTreeMap<String, u64>,
    /// Templates.
    pub templates: u64,
    /// Kernels.
    pub kernels: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Handles in the ledger.
    pub handles: u64,
    /// Bytes free on the state directory's disk.
    pub disk_free: ByteSize,
    /// Bytes of memory the host could still give.
    pub memory_available: ByteSize,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, but slower or with less.
    Warning,
    /// Something that is needed fails.
    Failed,
}

/// One check of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at: "kvm", "mke2fs", "state directory", …
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// The command or step that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// What `doctor` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// False when something that is needed fails.
    pub healthy: bool,
    /// The checks.
    pub checks: Vec<Check>,
    /// What the ledger thinks differs from the host, as the steps that recovery would take.
    pub differences: Vec<String>,
}

/// What `gc` released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcReport {
    /// What was released, in words.
    pub released: Vec<String>,
    /// What is left and cannot be attributed, or did not go, and why.
    pub left: Vec<String>,
}

/// A sandbox to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Name or id of the template.
    pub template: String,
    /// Its name; none: one is made up.
    #[serde(default)]
    pub name: Option<Name>,
    /// Name or id of the kernel; none: the default one.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Virtual processors; none: 1.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Guest memory, in bytes; none: 256 MiB.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// Size of the disk, in bytes; none: the template's.
    #[serde(default)]
    pub disk: Option<ByteSize>,
    /// Environment of its processes.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory of its processes.
    #[serde(default)]
    pub workdir: Option<String>,
    /// User of its processes: a name, `uid` or `uid:gid`.
    #[serde(default)]
    pub user: Option<String>,
    /// How long it may live, in seconds.
    #[serde(default)]
    pub ttl: Option<Lifetime>,
    /// What becomes of it then; none: it is removed.
    #[serde(default)]
    pub on_expiry: Option<OnExpiry>,
    /// What runs its machine; none: as the engine's configuration says.
    #[serde(default)]
    pub vmm: Option<MonitorKind>,
    /// How Firecracker is kept apart from the host; none: as the engine's configuration says, which less
    /// than that is refused by.
    #[serde(default)]
    pub isolation: Option<Isolation>,
    /// What of its processor the guest is shown, in Firecracker; none: all that it has.
    #[serde(default)]
    pub cpu_template: Option<CpuTemplate>,
    /// Bytes of its disk that it may read and write in a second; none: no limit.
    #[serde(default)]
    pub disk_bandwidth: Option<ByteSize>,
    /// Requests that it may make of its disk in a second; none: no limit.
    #[serde(default)]
    pub disk_iops: Option<u64>,
}

/// A process to be started in a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The command and its arguments; at least one word, but for a `run`.
    pub argv: Vec<String>,
    /// Added to the sandbox's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; none: the sandbox's.
    #[serde(default)]
    pub workdir: Option<String>,
    /// User; none: the sandbox's.
    #[serde(default)]
    pub user: Option<String>,
    /// Keep standard input open; else it is empty.
    #[serde(default)]
    pub stdin: bool,
    /// Give it a terminal of this size.
    #[serde(default)]
    pub terminal: Option<WindowSize>,
    /// Kill it after so many seconds.
    #[serde(default)]
    pub timeout: Option<Lifetime>,
    /// Leave it running in the background: the session ends once it has started.
    #[serde(default)]
    pub detach: bool,
}

/// Make, start and use a sandbox in one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The sandbox.
    pub sandbox: CreateRequest,
    /// Its main process; none: the sandbox just runs. Without words it is what the template's image says, and
    /// its words are arguments where the image has an entrypoint.
    #[serde(default)]
    pub exec: Option<ExecRequest>,
    /// The program, instead of the one that the template's image says; empty: none.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Remove the sandbox when the main process ends or the session breaks off.
    #[serde(default)]
    pub remove: bool,
    /// Keep the sandbox running after the main process has ended; else it is stopped.
    #[serde(default)]
    pub keep: bool,
}

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

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// First byte of a binary message of an exec or run session.
pub mod channel {
    /// Client to server: standard input.
    pub const STDIN: u8 = 0;
    /// Server to client: standard output (or the terminal).
    pub const STDOUT: u8 = 1;
    /// Server to client: standard error.
    pub const STDERR: u8 = 2;
}

/// Text messages of the client in an exec or run session; the first one is the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Standard input has ended.
    StdinEnd,
    /// The window has a new size.
    Resize {
        /// The size.
        size: WindowSize,
    },
    /// Send a signal to the process.
    Signal {
        /// Its number.
        signal: i32,
    },
}

/// Text messages of the server in an exec or run session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage {
    /// A step of `run` is done.
    Progress {
        /// Which: "created", "booted", …
        step: String,
        /// Microseconds it took.
        took_us: u64,
    },
    /// The sandbox exists.
    Sandbox {
        /// It.
        sandbox: Box<Sandbox>,
    },
    /// Where the files of a build's step go.
    Destination {
        /// What the one file was to be called is a directory: it goes into it, under its own name.
        is_directory: bool,
    },
    /// The process has started.
    Started {
        /// Its id in the guest.
        process: ProcessId,
    },
    /// So many bytes of standard input went on to the guest. A client that keeps at most 256 KiB
    /// beyond this in flight never has a signal wait behind input that the process does not read.
    StdinTaken {
        /// Bytes since the session began.
        bytes: u64,
    },
    /// The process has ended; all its output was sent before.
    Exited {
        /// The exit code as a shell would give it: 128 + N for signal N.
        code: i32,
    },
    /// The session failed; the last message.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// Import a kernel from files on the engine's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelImportRequest {
    /// Its name.
    pub name: Name,
    /// Absolute path of the kernel image.
    pub image: String,
    /// Absolute path of its modules' directory.
    #[serde(default)]
    pub modules: Option<String>,
}

/// Import a template from a place that the engine reads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Its name.
    pub name: Name,
    /// The place.
    pub source: ImportSource,
    /// What is made of it.
    #[serde(default)]
    pub options: ImportOptions,
}

/// A place that the engine reads itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImportSource {
    /// A directory on the engine's host: a root file system.
    Directory {
        /// Absolute.
        path: String,
    },
    /// A directory on the engine's host: an OCI image layout.
    OciLayout {
        /// Absolute.
        path: String,
        /// Which of its images; none: the only one.
        #[serde(default)]
        tag: Option<String>,
    },
    /// A registry, through the engine's cache.
    Registry {
        /// `REGISTRY/REPOSITORY[:TAG][@DIGEST]`.
        reference: String,
        /// When the registry is asked.
        #[serde(default)]
        pull: PullPolicy,
        /// Who asks; none: nobody in particular.
        #[serde(default)]
        credentials: Option<RegistryCredentials>,
    },
}

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// When the cache does not have the whole image, as it was when it was pulled last.
    #[default]
    Missing,
    /// Always, for what the tag is now.
    Always,
    /// Never: it is in the cache, or the import fails.
    Never,
}

/// Who one is to a registry. They are used for one import, and are kept nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RegistryCredentials {
    /// A user with a password, or with a token in its place.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token that the registry's token server gives others for.
    IdentityToken {
        /// It.
        token: String,
    },
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets are in no log.
        match self {
            Self::Basic { user, .. } => write!(f, "Basic({user:?}, ..)"),
            Self::IdentityToken { .. } => f.write_str("IdentityToken(..)"),
        }
    }
}

/// What is made of an import's source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImportOptions {
    /// The disk is at least this large, in bytes; none: the content and some room.
    pub size: Option<ByteSize>,
    /// Which of an image's platforms, as `linux/arm64`; none: the host's.
    pub platform: Option<String>,
    /// The program that `run` starts; none: what the image says.
    pub entrypoint: Option<Vec<String>>,
}

/// What the bytes are that an import is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImportFormat {
    /// A tar of a root file system: plain, gzip, zstd or xz.
    #[default]
    Tar,
    /// An OCI image layout in a tar.
    OciArchive,
    /// What `docker save` wrote.
    DockerArchive,
}

/// What a template is exported as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// A tar of its root file system.
    #[default]
    Tar,
    /// An OCI image layout in a tar, with one layer and how it is run.
    OciArchive,
}

/// A line of the answer to an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ImportMessage {
    /// How far it is.
    Progress {
        /// "reading", "building", "hashing", …
        phase: String,
        /// Entries so far.
        entries: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// How far the download of a layer is.
    Layer {
        /// Its digest.
        digest: String,
        /// Its size, in bytes.
        total: u64,
        /// Bytes that are there; all of them once it is whole and checked.
        bytes: u64,
    },
    /// It is there.
    Done {
        /// The template.
        template: Box<Template>,
        /// What was left out, and why.
        skipped: Vec<String>,
        /// False when the same content was there already.
        new: bool,
    },
    /// It failed; the last message.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// Take a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// Name or id of the sandbox.
    pub sandbox: String,
    /// Its name; none: one is made up.
    #[serde(default)]
    pub name: Option<Name>,
}

/// Make a template of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlattenRequest {
    /// Name or id of the sandbox or checkpoint.
    pub source: String,
    /// The template's name.
    pub name: Name,
    /// How it is run; none: as the template below says.
    #[serde(default)]
    pub config: Option<ImageConfig>,
}

/// What the layers of a disk changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// The template below them.
    pub template: TemplateId,
    /// The first of its names.
    pub template_name: Option<Name>,
    /// Size of the disk, in bytes.
    pub size: ByteSize,
    /// The volume backend.
    pub backend: String,
    /// Bytes of the disk that the layers changed together.
    pub changed: ByteSize,
    /// Whether a machine writes the last layer: then its numbers are those of its last sync, or a
    /// little newer.
    pub live: bool,
    /// Each layer, base first.
    pub layers: Vec<LayerDiff>,
}

/// What one layer changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerDiff {
    /// Its id.
    pub id: LayerId,
    /// Bytes of the disk that it has instead of what is below it; with the `copy` backend, instead of
    /// what the template has.
    pub changed: ByteSize,
    /// Bytes of the host's disk that it occupies.
    pub occupied: ByteSize,
    /// Whether nothing writes it any more.
    pub frozen: bool,
    /// Checkpoints that have it as their last.
    pub checkpoints: Vec<Name>,
}

/// Restore sandboxes from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// How many; none: 1.
    #[serde(default)]
    pub count: Option<u32>,
    /// Its name; with several, `-1`, `-2`, … are appended.
    #[serde(default)]
    pub name: Option<Name>,
    /// How long each may live, in seconds; none: as the checkpoint's sandbox.
    #[serde(default)]
    pub ttl: Option<Lifetime>,
    /// What becomes of each then; none: as of the checkpoint's sandbox.
    #[serde(default)]
    pub on_expiry: Option<OnExpiry>,
    /// How Firecracker is kept apart from the host; none: as the checkpoint's sandbox. The configuration
    /// of the engine refuses less than it says.
    #[serde(default)]
    pub isolation: Option<Isolation>,
}

/// Stop a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Seconds its processes get to end before they are killed; none: 10. 0: kill at once.
    #[serde(default)]
    pub timeout: Option<u64>,
}
