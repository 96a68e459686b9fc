//! Real guests on an engine in the lab, and the namespaces that they are in.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cowslip_e2e::{Instance, Kernel, SITE, Setup};
use cowslip_network::{AddressRange, Slot};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Failure;

/// An engine with a small template, and these lines for its `[network]`.
pub(crate) fn engine(range: &str, network: &str) -> Instance {
    let setup = Setup {
        network: format!("range = \"{range}\"\nresolvers = [\"{SITE}\"]\n{network}"),
        ..Setup::default()
    };
    Instance::ready(setup, Kernel::Guest)
}

/// The namespace of a sandbox's network.
pub(crate) fn namespace(engine: &Instance, range: &str, sandbox: &str) -> Result<PathBuf, Failure> {
    let range: AddressRange = range.parse()?;
    let address = engine.sandbox(sandbox).network.address;
    let has_it = |slot: &u32| {
        let pair = range.addresses(Slot(*slot));
        pair.map(|pair| pair.sandbox) == address
    };
    let slot = (0..range.slots()).find(has_it);
    let slot = slot.ok_or("the sandbox has no network")?;
    Ok(engine.run_dir().join("net").join(slot.to_string()))
}

/// Does something in a namespace.
pub(crate) fn inside<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let namespace = File::open(path)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().map_err(|_| "a thread died")?
    })
}
