//! Names and bounds that both sides agree on.

/// Version of `agent.proto`. Raised when an older peer would misunderstand.
pub const PROTOCOL: u32 = 1;
/// Name of the virtio-serial port that the agent opens.
pub const PORT_NAME: &str = "org.cowslip.agent";
/// Port on which the agent listens for plain HTTP/2 over vsock.
pub const VSOCK_PORT: u32 = 10_320;

/// Port of the host on which the agent rings when it listens: a connection that is made and ends. Nobody need answer.
pub const BELL_PORT: u32 = 10_321;

/// Largest message that either side takes, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of data in one message of a stream.
pub const CHUNK_BYTES: usize = 32 * 1024;
/// Output that the agent holds for a process, in bytes.
pub const OUTPUT_HELD_BYTES: usize = 256 * 1024;
/// Processes that the agent runs at once.
pub const MAX_PROCESSES: usize = 512;
/// Exited processes whose status and output the agent still remembers.
pub const MAX_EXITED: usize = 32;
/// Calls that one connection may have open at once.
pub const MAX_CALLS: u32 = 1024;
/// Followers of one process.
pub const MAX_FOLLOWERS: usize = 8;
/// Bytes of all arguments and of the whole environment of a process, together.
pub const MAX_ARGS_BYTES: usize = 1024 * 1024;
/// Length of a process id chosen by the caller.
pub const MAX_PROCESS_ID: usize = 64;
/// Bytes of entropy that one message may bring.
pub const MAX_ENTROPY_BYTES: usize = 512;

/// Connections that the agent forwards at once. Fewer than calls, so that there is always one for another purpose.
pub const MAX_FORWARDS: usize = 512;
/// Bytes of a forwarded connection that may be on their way in one direction.
pub const FORWARD_WINDOW: u64 = 256 * 1024;

/// Is this a process id that the agent takes: 1 to [`MAX_PROCESS_ID`] of `[A-Za-z0-9_-]`?
#[must_use]
pub fn is_process_id(id: &str) -> bool {
    (1..=MAX_PROCESS_ID).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}
