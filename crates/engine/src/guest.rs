//! The guest, as the verbs see it. The real one is the agent over gRPC; the simulated one is a few
//! counters.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cowslip_model::SandboxId;
use cowslip_proto::AgentClient;
use cowslip_proto::client::{CallError, Configure, ConnectError, GuestNetwork, Restore};
use cowslip_vmm::{AgentChannel, Machine, VmmError};

/// How often a connection that breaks off while it is made is tried.
const CONNECT_ATTEMPTS: u32 = 5;

/// How long a guest may take to answer the first call over a connection made right after its machine was saved or
/// restored. Its driver drops all connections then, and tells nobody: one that was made a moment too early
/// stands for the host and gets no answer. Twice as long each further time.
pub(crate) const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// Talking to a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No agent answered.
    #[error("the agent of sandbox {sandbox} did not answer within {seconds} s")]
    TimedOut {
        /// The sandbox.
        sandbox: SandboxId,
        /// The bound.
        seconds: u64,
    },
    /// The machine ended first.
    #[error("the machine of sandbox {sandbox} ended before its agent answered{}", detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
    Ended {
        /// The sandbox.
        sandbox: SandboxId,
        /// The monitor's last words.
        detail: Option<String>,
    },
    /// The connection was not made.
    #[error("connect to the agent of sandbox {sandbox}")]
    Connect {
        /// The sandbox.
        sandbox: SandboxId,
        /// The cause.
        source: ConnectError,
    },
    /// The agent refused, or the link broke.
    #[error("{operation} in sandbox {sandbox}")]
    Call {
        /// What was asked.
        operation: &'static str,
        /// The sandbox.
        sandbox: SandboxId,
        /// The cause.
        source: CallError,
    },
    /// A simulated guest's failure.
    #[error("{operation} in sandbox {sandbox}: {why}")]
    Simulated {
        /// What was asked.
        operation: &'static str,
        /// The sandbox.
        sandbox: SandboxId,
        /// Why.
        why: String,
    },
    /// The monitor gave no channel.
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// How long the phases of a boot took in the guest, in microseconds since its kernel started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BootTimes {
    /// Until the agent began.
    pub kernel_us: u64,
    /// Until the agent answered.
    pub agent_us: u64,
}

/// What a first boot is told.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its host name.
    pub hostname: String,
    /// 32 hexadecimal digits.
    pub machine_id: String,
    /// Environment of every process.
    pub env: Vec<(String, String)>,
    /// Grow the root file system to its disk.
    pub grow_root: bool,
    /// The sandbox's generation.
    pub generation: u64,
    /// For the random pool.
    pub entropy: Vec<u8>,
    /// Its interface; none: it has only its own loopback.
    pub network: Option<GuestNetwork>,
}

/// What a restored guest is told.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Higher than any it was told before (R52).
    pub generation: u64,
    /// A new host name; none: it keeps its own.
    pub hostname: Option<String>,
    /// A new machine id; none: it keeps its own.
    pub machine_id: Option<String>,
    /// For the random pool.
    pub entropy: Vec<u8>,
    /// Abort its TCP connections to elsewhere, whose other ends are gone.
    pub reset_connections: bool,
}

/// Makes connections to guests.
#[async_trait]
pub trait Guests: Send + Sync + 'static {
    /// Connects, waiting at most `within` for the agent (R53), and less if the machine ends.
    ///
    /// # Errors
    /// When no agent answers.
    async fn connect(
        &self,
        sandbox: SandboxId,
        machine: &Arc<dyn Machine>,
        within: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError>;
}

/// A connected guest.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// How long its boot took.
    fn boot_times(&self) -> BootTimes;

    /// Sets up a guest that has booted.
    ///
    /// # Errors
    /// When the agent does not do it; so for every method.
    async fn configure(&self, setup: Setup) -> Result<(), GuestError>;

    /// Tells a guest that it was restored: clock, randomness, identity (R51).
    async fn restored(&self, news: Restored) -> Result<(), GuestError>;

    /// Sets the clock of a guest that stood still for a moment.
    async fn set_clock(&self) -> Result<(), GuestError>;

    /// Writes the guest's file systems to its disk.
    async fn sync(&self) -> Result<(), GuestError>;

    /// Ends all processes, giving them `grace`, syncs, and powers off (R36).
    async fn shutdown(&self, grace: Duration) -> Result<(), GuestError>;

    /// Whether the connection is gone.
    fn is_closed(&self) -> bool;

    /// The agent itself, for processes and files; none in a simulation.
    fn agent(&self) -> Option<&AgentClient>;
}

/// Guests that run cowslip's agent.
#[derive(Debug, Default)]
pub struct AgentGuests;

struct AgentGuest {
    sandbox: SandboxId,
    client: AgentClient,
    boot_times: BootTimes,
}

impl AgentGuest {
    fn failed(&self, operation: &'static str) -> impl FnOnce(CallError) -> GuestError {
        let sandbox = self.sandbox;
        move |source| GuestError::Call {
            operation,
            sandbox,
            source,
        }
    }
}

#[async_trait]
impl Guests for AgentGuests {
    async fn connect(
        &self,
        sandbox: SandboxId,
        machine: &Arc<dyn Machine>,
        within: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let connect = async {
            let mut attempt = 1;
            loop {
                let connected = match machine.agent().await? {
                    AgentChannel::Serial(stream) => {
                        AgentClient::connect_serial(stream, within).await
                    }
                    AgentChannel::Connection(stream) => {
                        AgentClient::connect_stream(stream, within).await
                    }
                };
                match connected {
                    // The agent may just then notice that an earlier connection has ended.
                    Err(
                        error @ (ConnectError::Http(_)
                        | ConnectError::Hello(
                            CallError::LinkLost { .. } | CallError::Timeout { .. },
                        )),
                    ) if attempt < CONNECT_ATTEMPTS => {
                        tracing::info!(%sandbox, attempt, %error, "connect to the agent again");
                        attempt += 1;
                    }
                    other => {
                        return other.map_err(|source| GuestError::Connect { sandbox, source });
                    }
                }
            }
        };
        let (client, hello) = tokio::select! {
            connected = connect => connected?,
            detail = machine.ended() => return Err(GuestError::Ended { sandbox, detail }),
            () = tokio::time::sleep(within) => {
                return Err(GuestError::TimedOut { sandbox, seconds: within.as_secs() });
            }
        };
        let boot_times = times_of(&hello);
        Ok(Arc::new(AgentGuest {
            sandbox,
            client,
            boot_times,
        }))
    }
}

/// The agent's first phase is the kernel's own time; its last one ends when it is ready.
fn times_of(hello: &cowslip_proto::pb::HelloReply) -> BootTimes {
    let micros =
        |phase: Option<&cowslip_proto::pb::BootPhase>| phase.map_or(0, |p| p.ended_ns / 1000);
    BootTimes {
        kernel_us: micros(hello.boot_phases.first()),
        agent_us: micros(hello.boot_phases.last()),
    }
}

#[async_trait]
impl Guest for AgentGuest {
    fn boot_times(&self) -> BootTimes {
        self.boot_times
    }

    async fn configure(&self, setup: Setup) -> Result<(), GuestError> {
        self.client
            .configure(Configure {
                generation: setup.generation,
                entropy: setup.entropy,
                hostname: Some(setup.hostname),
                machine_id: Some(setup.machine_id),
                env: setup.env,
                grow_root: setup.grow_root,
                network: setup.network,
            })
            .await
            .map(drop)
            .map_err(self.failed("configure"))
    }

    async fn restored(&self, news: Restored) -> Result<(), GuestError> {
        self.client
            .restored(Restore {
                generation: news.generation,
                entropy: news.entropy,
                hostname: news.hostname,
                machine_id: news.machine_id,
                reset_connections: news.reset_connections,
            })
            .await
            .map_err(self.failed("tell of the restore"))?;
        self.set_clock().await
    }

    async fn set_clock(&self) -> Result<(), GuestError> {
        // A tenth of what is promised (R51): the rest is for the way there.
        self.client
            .sync_clock(Duration::from_millis(5))
            .await
            .map(drop)
            .map_err(self.failed("set the clock"))
    }

    async fn sync(&self) -> Result<(), GuestError> {
        self.client.sync().await.map_err(self.failed("sync"))
    }

    async fn shutdown(&self, grace: Duration) -> Result<(), GuestError> {
        self.client
            .shutdown(grace)
            .await
            .map(drop)
            .map_err(self.failed("shut down"))
    }

    fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    fn agent(&self) -> Option<&AgentClient> {
        Some(&self.client)
    }
}
