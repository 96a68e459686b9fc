//! Sessions: commands and connections that a client talks with over a WebSocket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CreateRequest, ErrorBody, Sandbox};
use crate::id::ProcessId;
use crate::time::Lifetime;

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

/// Connect to a port of the guest's loopback. Binary messages of the session are the connection's bytes: channel 0
/// to the guest, channel 1 from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardRequest {
    /// The port.
    #[schema(minimum = 1)]
    pub port: u16,
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

/// First byte of a binary message of a session.
pub mod channel {
    /// Client to server: standard input.
    pub const STDIN: u8 = 0;
    /// Server to client: standard output (or the terminal).
    pub const STDOUT: u8 = 1;
    /// Server to client: standard error.
    pub const STDERR: u8 = 2;
}

/// Text messages of the client in a session; the first one is the request itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Standard input has ended; of a forwarded connection: nothing more goes to the guest.
    StdinEnd,
    /// So many bytes of what came by a forwarded connection were taken. The server sends at most 256 KiB beyond
    /// this.
    OutputTaken {
        /// Bytes since the session began.
        bytes: u64,
    },
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

/// Text messages of the server in a session.
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
    /// The connection to the guest's port is there.
    Connected,
    /// Nothing more comes from the guest by a forwarded connection. The session ends when both sides have said so.
    OutputEnd,
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
