//! A ledger and the real host in a directory of their own, for networks without an engine.

use std::sync::Arc;

use cowslip_e2e::{HOST, SITE};
use cowslip_engine::netns_spec;
use cowslip_engine::unwind::unwind;
use cowslip_host::process::boot_id;
use cowslip_host::{Layout, LinuxHost, Netns, NetnsSpec, Networks, Site};
use cowslip_ledger::fault::Injector;
use cowslip_ledger::{Ledger, Owner};
use cowslip_model::NetworkSpec;
use cowslip_network::{AddressRange, HostRules, Inside, Slot, SlotAddresses};
use tempfile::TempDir;

use crate::Failure;

/// Whose tap it is: any user that is not root.
const USER: u32 = 300_000;

/// It, with the host's rules loaded.
pub(crate) struct Room {
    pub(crate) site: Site,
    pub(crate) directory: TempDir,
    /// Whether rules may log: an engine asks once, since the kernel takes long to answer.
    log: bool,
}

impl Room {
    pub(crate) fn new() -> Result<Self, Failure> {
        let directory = TempDir::with_prefix("cw-")?;
        let state = directory.path().join("state");
        std::fs::create_dir(&state)?;
        let layout = Layout::new(state.clone(), directory.path().join("run"));
        std::fs::create_dir_all(layout.networks())?;
        let ledger = Ledger::open(&state, &boot_id(), Injector::default())?;
        let host = LinuxHost::new(layout.clone(), ledger.instance())?;
        if let Some(why) = host.lacks_networks() {
            return Err(why.into());
        }
        host.set_forwarding(true)?;
        let rules = HostRules {
            instance: ledger.instance(),
            range: AddressRange::default(),
            published: Vec::new(),
        };
        host.load_host_rules(&rules.to_string())?;
        let log = host.has_packet_log()?;
        Ok(Self {
            log,
            site: Site {
                ledger,
                host: Arc::new(host),
                layout,
            },
            directory,
        })
    }

    fn addresses(slot: u32) -> Result<SlotAddresses, Failure> {
        let found = AddressRange::default().addresses(Slot(slot));
        Ok(found.ok_or("the slot has no addresses")?)
    }

    /// The network of a slot, as an engine has it.
    pub(crate) fn spec(&self, slot: u32) -> Result<NetnsSpec, Failure> {
        let (layout, instance) = (&self.site.layout, self.site.ledger.instance());
        let range = AddressRange::default();
        let spec = netns_spec(layout, instance, range, slot, Some((USER, USER)));
        Ok(spec.ok_or("the slot has no addresses")?)
    }

    /// The rules of a sandbox that asks for nothing.
    pub(crate) fn rules(&self, slot: u32) -> Result<String, Failure> {
        let inside = Inside {
            spec: &NetworkSpec::default(),
            addresses: Self::addresses(slot)?,
            range: AddressRange::default(),
            resolver: Some(SITE),
            host: &[HOST],
            log: self.log,
        };
        Ok(inside.to_string())
    }

    /// Makes the network of a slot.
    pub(crate) fn make(&self, slot: u32) -> Result<NetnsSpec, Failure> {
        let spec = self.spec(slot)?;
        let ledger = &self.site.ledger;
        let reserved = ledger.reserve::<Netns>(Owner::Slot(slot), spec.clone(), &[])?;
        self.site
            .host
            .make_netns(reserved, &self.rules(slot)?)?
            .settle();
        Ok(spec)
    }

    /// Takes it down.
    pub(crate) fn remove(&self, slot: u32) -> Result<(), Failure> {
        Ok(unwind(&self.site, Owner::Slot(slot))?)
    }
}
