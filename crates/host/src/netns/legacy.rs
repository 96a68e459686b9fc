//! The table "filter" of iptables-legacy (x_tables), which nftables does not list: read as iptables itself reads it, by
//! socket options (linux/netfilter_ipv4/ip_tables.h).
//!
//! ```text
//!   entry = 112 bytes: what is asked of addresses and interfaces │ matches │ target: 32 bytes, a verdict or a name
//! ```

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::firewall::{DOCKER_USER, DroppingChain, Firewall, covers};

/// The tables that there are: one that is asked for and is not there is made, with all its hooks.
const NAMES: &str = "/proc/thread-self/net/ip_tables_names";
const FILTER: &str = "filter";
/// `IPT_SO_GET_INFO` with `struct ipt_getinfo`, `IPT_SO_GET_ENTRIES` with `struct ipt_get_entries`.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
const INFO_LENGTH: usize = 84;
const ENTRIES_HEADER: usize = 40;
/// Where in the former is what: the hooks' first entries, their last ones (the policy's), the size of all entries.
const FIRST: usize = 36;
const LAST: usize = 56;
const SIZE: usize = 80;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
/// `struct ipt_entry`: the four of an interface's name, the end of what is asked, the target's place, the next entry's.
const IN: usize = 16;
const OUT: usize = 32;
const IN_MASK: usize = 48;
const OUT_MASK: usize = 64;
const ASKED: usize = 84;
const TARGET: usize = 88;
const NEXT: usize = 90;
const ENTRY_LENGTH: usize = 112;
const NAME_LENGTH: usize = 16;
/// `struct xt_entry_target`: its name, and what comes after it.
const TARGET_NAME: usize = 2;
const TARGET_NAME_LENGTH: usize = 29;
const TARGET_LENGTH: usize = 32;
/// The target that user chains begin with; its name is the chain's. An empty one is a verdict.
const ERROR: &[u8] = b"ERROR";
/// Verdicts: a packet's fate, negative, or the place of a chain's first entry.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
/// How often the table may change while it is read.
const TRIES: usize = 10;

/// The table as the kernel gives it.
#[derive(Debug)]
pub(super) struct Filter {
    info: Vec<u8>,
    entries: Vec<u8>,
}

/// An entry of it.
#[derive(Clone, Copy)]
struct Entry<'a>(&'a [u8]);

/// The table of this thread's namespace, if it has one.
pub(super) fn filter() -> io::Result<Option<Filter>> {
    let names = match std::fs::read_to_string(NAMES) {
        // A kernel without such tables.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if !names.lines().any(|name| name == FILTER) {
        return Ok(None);
    }
    let protocol = Some(ipproto::RAW);
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    let mut tries = 0;
    loop {
        tries += 1;
        match read(&socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES => {}
            other => return other.map(Some),
        }
    }
}

fn read(socket: &OwnedFd) -> io::Result<Filter> {
    let mut info = vec![0; INFO_LENGTH];
    info[..FILTER.len()].copy_from_slice(FILTER.as_bytes());
    get(socket, GET_INFO, &mut info)?;
    let size = number(&info, SIZE).unwrap_or_default();
    let mut entries = vec![0; ENTRIES_HEADER + size];
    entries[..FILTER.len()].copy_from_slice(FILTER.as_bytes());
    entries[32..36].copy_from_slice(&info[SIZE..SIZE + 4]);
    get(socket, GET_ENTRIES, &mut entries)?;
    entries.drain(..ENTRIES_HEADER);
    Ok(Filter { info, entries })
}

/// Has the kernel fill a buffer in which is what it is asked for.
#[allow(unsafe_code)]
fn get(socket: &OwnedFd, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    let (value, fd) = (buffer.as_mut_ptr().cast(), socket.as_raw_fd());
    // SAFETY: the kernel reads and writes the buffer, `length` bytes of it at most, and the length.
    match unsafe { libc::getsockopt(fd, libc::SOL_IP, option, value, &raw mut length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let number = u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?);
    usize::try_from(number).ok()
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

impl Filter {
    /// The chain FORWARD, if it drops what no rule lets pass and none lets links pass, both ways, whose names begin with
    /// `links`.
    pub(super) fn dropping(&self, links: &str) -> Option<DroppingChain> {
        let at = |list: usize| number(&self.info, list + 4 * FORWARD);
        let (first, policy) = (at(FIRST)?, at(LAST)?);
        if Entry(self.entries.get(policy..)?).verdict() != Some(DROP) {
            return None;
        }
        let chain = self.from(first).take_while(|(place, _)| *place < policy);
        let chain: Vec<Entry<'_>> = chain.map(|(_, entry)| entry).collect();
        let users = self.first_of(DOCKER_USER.as_bytes());
        let is_sent = |entry: &Entry<'_>| {
            entry.asks_nothing() && entry.place().is_some_and(|to| Some(to) == users)
        };
        let users = users.filter(|_| chain.iter().any(is_sent));
        let more = users.map(|first| {
            let chain = self.from(first).map(|(_, entry)| entry);
            chain.take_while(|entry| entry.chain().is_none())
        });
        let asked: Vec<Entry<'_>> = chain
            .into_iter()
            .chain(more.into_iter().flatten())
            .collect();
        let passes = |name, mask| asked.iter().any(|entry| entry.lets_pass(name, mask, links));
        (!passes(IN, IN_MASK) || !passes(OUT, OUT_MASK)).then(|| DroppingChain {
            firewall: Firewall::IptablesLegacy,
            name: "FORWARD".to_owned(),
            own_rules: match users {
                Some(_) => DOCKER_USER.to_owned(),
                None => "FORWARD".to_owned(),
            },
        })
    }

    /// The entries from a place on, each with its place; what is no whole entry ends them.
    fn from(&self, place: usize) -> impl Iterator<Item = (usize, Entry<'_>)> {
        let mut place = place;
        std::iter::from_fn(move || {
            let rest = self.entries.get(place..)?;
            let length: usize = u16::from_ne_bytes(*rest.get(NEXT..)?.first_chunk()?).into();
            let entry = Entry(rest.get(..length.max(ENTRY_LENGTH))?);
            let found = (place, entry);
            place += entry.0.len();
            Some(found)
        })
    }

    /// The place of the first rule of a chain with a name.
    fn first_of(&self, name: &[u8]) -> Option<usize> {
        let mut all = self.from(0);
        let (place, head) = all.find(|(_, entry)| entry.chain() == Some(name))?;
        Some(place + head.0.len())
    }
}

impl<'a> Entry<'a> {
    fn target(self) -> Option<&'a [u8]> {
        let place: usize = u16::from_ne_bytes(*self.0.get(TARGET..)?.first_chunk()?).into();
        self.0.get(place..)
    }

    fn target_name(self) -> Option<&'a [u8]> {
        let name = self.target()?.get(TARGET_NAME..)?;
        name.get(..TARGET_NAME_LENGTH).map(text)
    }

    /// The name of the chain that begins here.
    fn chain(self) -> Option<&'a [u8]> {
        (self.target_name()? == ERROR).then_some(())?;
        self.target()?.get(TARGET_LENGTH..).map(text)
    }

    fn verdict(self) -> Option<i32> {
        self.target_name()?.is_empty().then_some(())?;
        let verdict = self.target()?.get(TARGET_LENGTH..)?;
        Some(i32::from_ne_bytes(*verdict.first_chunk()?))
    }

    /// Where it sends what it matches.
    fn place(self) -> Option<usize> {
        usize::try_from(self.verdict()?).ok()
    }

    /// Whether it has no matches, and asks nothing of addresses and protocols.
    fn asks_interfaces_only(self) -> bool {
        let place = self.0.get(TARGET..).and_then(|bytes| bytes.first_chunk());
        let has_no_matches =
            place.is_some_and(|place| usize::from(u16::from_ne_bytes(*place)) == ENTRY_LENGTH);
        has_no_matches && self.is_zero(0..IN) && self.is_zero(OUT_MASK + NAME_LENGTH..ASKED)
    }

    /// Whether any interface will do.
    fn is_any(self, mask: usize) -> bool {
        self.is_zero(mask..mask + NAME_LENGTH)
    }

    fn is_zero(self, range: Range<usize>) -> bool {
        let bytes = self.0.get(range);
        bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
    }

    fn asks_nothing(self) -> bool {
        self.asks_interfaces_only() && self.is_any(IN_MASK) && self.is_any(OUT_MASK)
    }

    /// The name of an interface that it asks for, with a `*` where it goes on.
    fn pattern(self, name: usize, mask: usize) -> Option<String> {
        let [name, mask] = [name, mask].map(|at| self.0.get(at..at + NAME_LENGTH));
        let length = mask?.iter().take_while(|byte| **byte != 0).count();
        let name = name?.get(..length)?;
        match name.split_last() {
            Some((0, whole)) => String::from_utf8(whole.to_vec()).ok(),
            _ => Some(format!("{}*", std::str::from_utf8(name).ok()?)),
        }
    }

    /// Whether it lets all links pass whose names begin like this, and asks nothing more.
    fn lets_pass(self, name: usize, mask: usize, links: &str) -> bool {
        let other = if mask == IN_MASK { OUT_MASK } else { IN_MASK };
        let named = self.pattern(name, mask);
        self.verdict() == Some(ACCEPT)
            && self.asks_interfaces_only()
            && self.is_any(other)
            && named.is_some_and(|pattern| covers(&pattern, links))
    }
}
