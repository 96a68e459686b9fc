//! Connections to simulated guests: what the agent would do to a guest's memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cowslip_engine::guest::{BootTimes, Guest, GuestError, Guests, Restored, Setup};
use cowslip_ledger::LedgerError;
use cowslip_ledger::fault::Injector;
use cowslip_model::SandboxId;
use cowslip_proto::AgentClient;
use cowslip_vmm::{Machine, VmmError};

use crate::world::{GuestState, Inner, NoGuest, World};

/// One engine's connections to the guests of a [`World`].
#[derive(Clone)]
pub struct SimGuests {
    world: World,
    faults: Injector,
}

impl SimGuests {
    /// Connections with this injector.
    #[must_use]
    pub fn new(world: World, faults: Injector) -> Self {
        Self { world, faults }
    }
}

struct SimGuest {
    world: World,
    faults: Injector,
    sandbox: SandboxId,
    pid: u32,
}

/// A step of a dead engine, or one that was made to fail.
fn fault(fault: cowslip_ledger::Fault) -> GuestError {
    GuestError::Vmm(VmmError::Ledger(LedgerError::Fault(fault)))
}

impl SimGuest {
    /// Acts in the guest as one step; it must run.
    fn step<T>(
        &self,
        step: &str,
        operation: &'static str,
        act: impl FnOnce(&mut Inner) -> Result<T, NoGuest>,
    ) -> Result<T, GuestError> {
        let sandbox = self.sandbox;
        let outcome = self.faults.around(step, || {
            let mut inner = self.world.lock();
            if !inner.processes.contains_key(&self.pid) {
                return Err(NoGuest::Gone(sandbox));
            }
            act(&mut inner)
        });
        outcome
            .map_err(fault)?
            .map_err(|error| GuestError::Simulated {
                operation,
                sandbox,
                why: error.to_string(),
            })
    }
}

#[async_trait]
impl Guests for SimGuests {
    async fn connect(
        &self,
        sandbox: SandboxId,
        _machine: &Arc<dyn Machine>,
        within: Duration,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        let found = self.faults.around("guest: connect", || {
            let inner = self.world.lock();
            let process = inner.process_of(sandbox);
            process.and_then(|(pid, process)| Some((pid, process.machine.as_ref()?.state)))
        });
        match found.map_err(fault)? {
            None => Err(GuestError::Ended {
                sandbox,
                detail: None,
            }),
            Some((_, GuestState::Paused)) => Err(GuestError::TimedOut {
                sandbox,
                seconds: within.as_secs(),
            }),
            Some((pid, GuestState::Running)) => Ok(Arc::new(SimGuest {
                world: self.world.clone(),
                faults: self.faults.clone(),
                sandbox,
                pid,
            })),
        }
    }
}

#[async_trait]
impl Guest for SimGuest {
    fn boot_times(&self) -> BootTimes {
        BootTimes {
            kernel_us: 1,
            agent_us: 2,
        }
    }

    async fn configure(&self, setup: Setup) -> Result<(), GuestError> {
        self.step("guest: configure", "configure", |inner| {
            let again = inner.with_guest(self.sandbox, |machine| {
                machine.told = true;
                let memory = &mut machine.memory;
                memory.generation = setup.generation;
                memory.hostname = setup.hostname;
                memory.machine_id = setup.machine_id;
                std::mem::replace(&mut memory.configured, true)
            })?;
            if again {
                inner.violation(format!(
                    "the guest of sandbox {} was set up twice",
                    self.sandbox
                ));
            }
            inner.note_entropy(self.sandbox, setup.entropy);
            Ok(())
        })
    }

    async fn restored(&self, news: Restored) -> Result<(), GuestError> {
        self.step(
            "guest: tell of the restore",
            "tell of the restore",
            |inner| {
                let before = inner.with_guest(self.sandbox, |machine| {
                    machine.told = true;
                    let memory = &mut machine.memory;
                    if let Some(hostname) = news.hostname {
                        memory.hostname = hostname;
                    }
                    if let Some(machine_id) = news.machine_id {
                        memory.machine_id = machine_id;
                    }
                    std::mem::replace(&mut memory.generation, news.generation)
                })?;
                if before >= news.generation {
                    inner.violation(format!(
                        "the guest of sandbox {} was told generation {} after {before} (R52)",
                        self.sandbox, news.generation
                    ));
                }
                inner.note_entropy(self.sandbox, news.entropy);
                inner.check_identities();
                Ok(())
            },
        )
    }

    async fn set_clock(&self) -> Result<(), GuestError> {
        self.step("guest: set the clock", "set the clock", |inner| {
            inner.with_guest(self.sandbox, |_| ())
        })
    }

    async fn sync(&self) -> Result<(), GuestError> {
        self.step("guest: sync", "sync", |inner| {
            inner.with_guest(self.sandbox, |_| ())
        })
    }

    async fn shutdown(&self, _grace: Duration) -> Result<(), GuestError> {
        self.step("guest: shut down", "shut down", |inner| {
            inner.with_guest(self.sandbox, |_| ())?;
            inner.end_process(self.pid, None);
            Ok(())
        })
    }

    fn is_closed(&self) -> bool {
        !self.world.lock().processes.contains_key(&self.pid)
    }

    fn agent(&self) -> Option<&AgentClient> {
        None
    }
}
