//! How fast an interface sends: the token bucket of tc-tbf(8). rtnetlink has no words for it.

use std::io;

use super::netlink::{CREATE, Message, REPLACE, Socket};

/// `RTM_NEWQDISC`, `RTM_DELQDISC`, `TC_H_ROOT`.
const NEW: u16 = 36;
const DELETE: u16 = 37;
const ROOT: u32 = u32::MAX;
/// `TCA_KIND`, `TCA_OPTIONS`, `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const PARAMETERS: u16 = 1;
const RATE: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel works out what takes how long, and wants no table of it.
const ETHERNET: u8 = 1;
/// What is sent at once, in bytes: some packets at least, and what passes between two ticks of the slowest clock.
const LEAST_BURST: u64 = 32 << 10;
const TICKS: u64 = 250;
/// How much waits: what is sent in a twentieth of a second.
const WAITS: u64 = 20;

/// Lets an interface of this thread's namespace send so many bytes in a second; none: as many as it can. Either takes the
/// place of what held before.
pub(super) fn shape(interface: &str, bandwidth: Option<u64>) -> io::Result<()> {
    let socket = Socket::open(None)?;
    let index = socket.index(interface)?;
    let Some(rate) = bandwidth else {
        let message = Message::new(DELETE, 0, &root_of(index)).acknowledged();
        return match socket.ask(vec![message]) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.map(drop),
        };
    };
    let burst = narrow((rate / TICKS).max(LEAST_BURST));
    let waits = narrow((rate / WAITS).saturating_add(burst.into()));
    let message = Message::new(NEW, CREATE | REPLACE, &root_of(index))
        .text(KIND, "tbf")
        .nest(OPTIONS, |options| {
            options
                .with(PARAMETERS, &parameters(narrow(rate), waits))
                .with(RATE, &rate.to_ne_bytes())
                .with(BURST, &burst.to_ne_bytes())
        });
    socket.ask(vec![message.acknowledged()]).map(drop)
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// `struct tcmsg` of an interface's root.
fn root_of(index: u32) -> Vec<u8> {
    // Family and padding, the interface, a handle of the kernel's choice, the parent, nothing more.
    [0, index, 0, ROOT, 0].map(u32::to_ne_bytes).concat()
}

/// `struct tc_tbf_qopt`: a rate, no rate of peaks, how much waits. The burst has an attribute.
fn parameters(rate: u32, waits: u32) -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[1] = ETHERNET;
    bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
    bytes[24..28].copy_from_slice(&waits.to_ne_bytes());
    bytes
}
