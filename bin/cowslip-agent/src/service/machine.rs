//! Calls about the machine.

use std::path::Path;
use std::time::Duration;

use cowslip_proto::limits::PROTOCOL;
use cowslip_proto::pb;
use tonic::Status;

use super::Service;
use crate::files::blocking;
use crate::machine::etc::ETC;
use crate::machine::identity::{self, IdentityError, News};
use crate::machine::{disk, metrics, shutdown};
use crate::network::{Network, NetworkError, PATIENCE};

/// Variables in the environment of a sandbox.
const MAX_ENV: usize = 1024;

impl Service {
    pub(super) fn do_hello(&self) -> pb::HelloReply {
        let uname = rustix::system::uname();
        let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
        pb::HelloReply {
            protocol: PROTOCOL,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: identity::boot_id(),
            generation: self.0.identity.generation(),
            uptime_ns: identity::uptime_ns(),
            kernel_release: text(uname.release()),
            realtime_ns: identity::realtime_ns(),
            hostname: text(uname.nodename()),
            mode: self.0.mode.into(),
            boot_phases: self.0.boot_phases.clone(),
        }
    }

    pub(super) async fn do_configure(
        &self,
        request: pb::ConfigureRequest,
    ) -> Result<pb::ConfigureReply, Status> {
        if request.env.len() > MAX_ENV {
            return Err(Status::invalid_argument(
                "the environment has more than 1024 variables",
            ));
        }
        let bad = |(name, value): (&String, &String)| {
            name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
        };
        if request.env.iter().any(bad) {
            return Err(Status::invalid_argument(
                "a variable's name or value cannot be carried",
            ));
        }
        let network = request.network.map(Network::try_from).transpose();
        let network = network.map_err(|e| no_network(&e))?;
        self.owns_machine()?;
        let news = News {
            generation: request.generation,
            realtime_ns: request.realtime_ns,
            entropy: request.entropy,
            hostname: request.hostname,
            machine_id: request.machine_id,
            reset_connections: false,
        };
        let address = network.as_ref().map(|network| network.address);
        self.0
            .identity
            .configure(&news, address)
            .map_err(|e| refused(&e))?;
        if let Some(network) = network {
            let set_up = move || network.set_up(Path::new(ETC), PATIENCE);
            blocking(move || set_up().map_err(|e| no_network(&e))).await?;
        }
        let env = request.env.into_iter().map(|(name, value)| pb::EnvVar {
            name: name.into_bytes(),
            value: value.into_bytes(),
        });
        self.0.processes.set_env(env.collect());
        if !request.grow_root {
            return Ok(pb::ConfigureReply::default());
        }
        let grow = || disk::grow_root().map_err(|e| Status::unknown(e.to_string()));
        let (root_bytes_before, root_bytes_after) = blocking(grow).await?;
        Ok(pb::ConfigureReply {
            root_bytes_before,
            root_bytes_after,
        })
    }

    pub(super) fn do_restored(
        &self,
        request: pb::RestoredRequest,
    ) -> Result<pb::RestoredReply, Status> {
        self.owns_machine()?;
        let news = News {
            generation: request.generation,
            realtime_ns: request.realtime_ns,
            entropy: request.entropy,
            hostname: request.hostname,
            machine_id: request.machine_id,
            reset_connections: request.reset_connections,
        };
        let applied = self.0.identity.restored(&news).map_err(|e| refused(&e))?;
        let realtime_ns = identity::realtime_ns();
        Ok(pb::RestoredReply {
            applied,
            boot_id: identity::boot_id(),
            realtime_ns,
        })
    }

    pub(super) fn do_clock(&self, request: pb::ClockRequest) -> Result<pb::ClockReply, Status> {
        if request.step_ns != 0 {
            self.owns_machine()?;
        }
        let realtime_ns = identity::step_clock(request.step_ns).map_err(|e| refused(&e))?;
        Ok(pb::ClockReply { realtime_ns })
    }

    pub(super) async fn do_sync(&self) -> Result<pb::SyncReply, Status> {
        let sync = || disk::sync_all().map_err(|e| Status::unknown(e.to_string()));
        blocking(sync).await.map(|()| pb::SyncReply {})
    }

    pub(super) async fn do_shutdown(
        &self,
        request: pb::ShutdownRequest,
    ) -> Result<pb::ShutdownReply, Status> {
        self.owns_machine()?;
        let shared = self.0.clone();
        let grace = Duration::from_millis(request.grace_ms.into());
        // A task of its own: once begun it is finished, whoever still listens.
        let settled = tokio::spawn(async move {
            let reply = shutdown::settle(&shared.children, grace).await;
            shared.power_off.notify_one();
            reply
        });
        settled
            .await
            .map_err(|_| Status::internal("the agent gave up this call"))
    }

    pub(super) async fn do_metrics(&self) -> Result<pb::MetricsReply, Status> {
        let read =
            || metrics::read().map_err(|e| Status::unknown(format!("cannot read the meters: {e}")));
        blocking(read).await
    }
}

fn no_network(error: &NetworkError) -> Status {
    match error {
        NetworkError::Invalid(_) => Status::invalid_argument(error.to_string()),
        NetworkError::Missing { .. } => Status::not_found(error.to_string()),
        NetworkError::Io { .. } => Status::unknown(error.to_string()),
    }
}

fn refused(error: &IdentityError) -> Status {
    match error {
        IdentityError::Invalid(_) => Status::invalid_argument(error.to_string()),
        IdentityError::Io { .. } => Status::unknown(error.to_string()),
    }
}
