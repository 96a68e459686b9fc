//! What makes this guest a different one from its siblings: generation, random pool, boot id, host
//! name, machine id; and the clock.
//!
//! A restored guest wakes up as a copy. It is *told* so, with a generation that it was not told
//! before; a lost connection says nothing. Being told twice must change nothing the second time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowslip_proto::limits::MAX_ENTROPY_BYTES;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::etc::{self, ETC};
use crate::network::{connections, names};
use crate::sys;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NANOS: i64 = 1_000_000_000;

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("{0}")]
    Invalid(&'static str),
    #[error("cannot {what} in the guest: {source}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> IdentityError {
    move |source| IdentityError::Io {
        what,
        source: source.into(),
    }
}

/// What a guest is told about itself; what is empty or zero is left as it is.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) generation: u64,
    pub(crate) realtime_ns: i64,
    pub(crate) entropy: Vec<u8>,
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
    /// Abort the TCP connections to elsewhere.
    pub(crate) reset_connections: bool,
}

impl News {
    fn check(&self) -> Result<(), IdentityError> {
        if self.entropy.len() > MAX_ENTROPY_BYTES {
            return Err(IdentityError::Invalid(
                "more than 512 bytes of entropy were sent",
            ));
        }
        let name_char = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
        if self.hostname.len() > 64 || !self.hostname.bytes().all(name_char) {
            return Err(IdentityError::Invalid(
                "the host name is longer than 64 or has other characters than [A-Za-z0-9.-]",
            ));
        }
        let id = &self.machine_id;
        if !id.is_empty() && (id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit())) {
            return Err(IdentityError::Invalid(
                "the machine id is not 32 hexadecimal digits",
            ));
        }
        Ok(())
    }
}

/// The guest's identity as it was told last.
#[derive(Debug)]
pub(crate) struct Identity {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    generation: u64,
    /// The guest's address, where it has a network.
    address: Option<Ipv4Addr>,
    /// Is a boot id of ours mounted over the kernel's?
    boot_id_mounted: bool,
}

impl Identity {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                generation: 0,
                address: None,
                boot_id_mounted: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// A new guest: everything is applied, the kernel's own boot id stays.
    pub(crate) fn configure(
        &self,
        news: &News,
        address: Option<Ipv4Addr>,
    ) -> Result<(), IdentityError> {
        news.check()?;
        let mut state = self.lock();
        state.address = address;
        apply(news)?;
        know_own_name(address)?;
        state.generation = news.generation;
        Ok(())
    }

    /// A restored guest. False when it had been told this generation before: then nothing is done.
    pub(crate) fn restored(&self, news: &News) -> Result<bool, IdentityError> {
        news.check()?;
        let mut state = self.lock();
        if news.generation == state.generation {
            return Ok(false);
        }
        apply(news)?;
        if !news.hostname.is_empty() {
            know_own_name(state.address)?;
        }
        // After the reseeding: the new id comes from the kernel's generator.
        if state.boot_id_mounted {
            unmount(BOOT_ID, UnmountFlags::DETACH).map_err(failed("uncover the boot id"))?;
            state.boot_id_mounted = false;
        }
        cover_boot_id().map_err(failed("set a new boot id"))?;
        state.boot_id_mounted = true;
        // Only now: an error leaves the old generation, so that telling again tries again.
        state.generation = news.generation;
        Ok(true)
    }
}

fn apply(news: &News) -> Result<(), IdentityError> {
    // The clock first: every further step makes the time that was sent older.
    if news.realtime_ns > 0 {
        set_realtime(news.realtime_ns).map_err(failed("set the clock"))?;
    }
    if news.reset_connections {
        connections::reset().map_err(failed("reset the connections"))?;
    }
    if !news.entropy.is_empty() {
        let random = OpenOptions::new().write(true).open("/dev/urandom");
        random
            .and_then(|random| sys::add_entropy(random, &news.entropy))
            .map_err(failed("reseed the random pool"))?;
    }
    if !news.hostname.is_empty() {
        rustix::system::sethostname(news.hostname.as_bytes())
            .map_err(failed("set the host name"))?;
    }
    if !news.machine_id.is_empty() {
        let line = format!("{}\n", news.machine_id.to_ascii_lowercase());
        etc::write(Path::new(ETC), "machine-id", line.as_bytes())
            .map_err(failed("write \"/etc/machine-id\""))?;
    }
    Ok(())
}

/// Whatever the kernel was told last, or has by itself.
fn know_own_name(address: Option<Ipv4Addr>) -> Result<(), IdentityError> {
    let uname = rustix::system::uname();
    let hostname = uname.nodename().to_string_lossy();
    // The name of a kernel that has none.
    let hostname = if hostname == "(none)" { "" } else { &hostname };
    names::set_own_name(Path::new(ETC), hostname, address).map_err(failed("write \"/etc/hosts\""))
}

/// The boot id that the guest's programs see.
pub(crate) fn boot_id() -> String {
    let mut id = String::new();
    let read = File::open(BOOT_ID).and_then(|f| f.take(64).read_to_string(&mut id));
    if read.is_err() {
        return String::new();
    }
    id.trim_end().to_owned()
}

/// Mounts a fresh id over the kernel's, which never changes while a kernel runs. The file is
/// unlinked at once: the mount is all that holds it.
fn cover_boot_id() -> io::Result<()> {
    let mut id = String::new();
    File::open("/proc/sys/kernel/random/uuid")?
        .take(64)
        .read_to_string(&mut id)?;
    let path = Path::new("/run/.cowslip-boot-id");
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(id.as_bytes())?;
    let mode = rustix::fs::Mode::from_raw_mode(0o444);
    rustix::fs::fchmod(&file, mode)?;
    let mounted = mount_bind(path, BOOT_ID);
    fs::remove_file(path)?;
    Ok(mounted?)
}

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(NANOS).saturating_add(now.tv_nsec)
}

fn set_realtime(ns: i64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: ns.div_euclid(NANOS),
        tv_nsec: ns.rem_euclid(NANOS),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Steps the real-time clock and reads it.
pub(crate) fn step_clock(step_ns: i64) -> Result<i64, IdentityError> {
    if step_ns != 0 {
        let to = realtime_ns().checked_add(step_ns).filter(|&t| t > 0);
        let to = to.ok_or(IdentityError::Invalid("the clock cannot be stepped so far"))?;
        set_realtime(to).map_err(failed("step the clock"))?;
    }
    Ok(realtime_ns())
}

/// Nanoseconds since the guest's kernel started.
pub(crate) fn uptime_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec.saturating_mul(NANOS).saturating_add(now.tv_nsec)).unwrap_or(0)
}
