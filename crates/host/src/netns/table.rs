//! What changes and what is read in a table of nftables while its rules stay as they are.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use rustix::net::netlink::NETFILTER;

use super::netlink::{self, CREATE, Message, Socket};

/// `NFNL_SUBSYS_NFTABLES`, and what `struct nfgenmsg` has for it: `NFPROTO_INET`.
const NFTABLES: u8 = 10;
const INET: u8 = 1;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// `NFT_MSG_NEWTABLE`, and so on.
const NEW_TABLE: u8 = 0;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const NEW_ELEMENT: u8 = 12;
const DELETE_ELEMENT: u8 = 14;
const GET_OBJECT: u8 = 19;
/// What sets, objects, chains and rules have first: the table's name, and then their own (rules: their chain's).
const TABLE: u16 = 1;
const NAME: u16 = 2;
const CHAIN_NAME: u16 = 3;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`, `NFTA_SET_ELEM_KEY`, `NFTA_SET_ELEM_TIMEOUT`.
const ELEMENTS: u16 = 3;
const KEY: u16 = 1;
const TIMEOUT: u16 = 4;
/// `NFTA_LIST_ELEM`, `NFTA_DATA_VALUE`.
const LIST_ELEMENT: u16 = 1;
const VALUE: u16 = 1;
/// `NFTA_OBJ_TYPE`, `NFT_OBJECT_COUNTER`, `NFTA_OBJ_DATA`, `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`.
const OBJECT_TYPE: u16 = 3;
const COUNTER: u32 = 1;
const OBJECT_DATA: u16 = 4;
const BYTES: u16 = 1;
const PACKETS: u16 = 2;
/// `NFTA_RULE_EXPRESSIONS`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`, `NFTA_LOG_GROUP`.
const EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const LOG_GROUP: u16 = 1;
/// The least that an element stays: below a tick of the kernel's clock some kernels keep it for ever.
const LEAST: Duration = Duration::from_secs(1);

/// An address that is in a set for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The set's name.
    pub set: String,
    /// The address.
    pub address: Ipv4Addr,
    /// For how long from now; at least a second.
    pub lasts: Duration,
    /// It was never put there. One that may be there is deleted first, and a transaction that deletes waits for all
    /// processors.
    pub fresh: bool,
}

/// What a counter has counted since its rules were loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

fn request(kind: u8, flags: u16, table: &str) -> Message {
    Message::netfilter(NFTABLES, kind, flags, INET, 0).text(TABLE, table)
}

/// One transaction; where it is not ended it is only tried.
fn batch(changes: Vec<Message>, end: bool) -> Vec<Message> {
    let border = |kind| Message::new(kind, 0, &[0, 0, 0, NFTABLES]);
    let mut messages = vec![border(BEGIN)];
    messages.extend(changes);
    if let Some(last) = messages.pop() {
        messages.push(last.acknowledged());
    }
    messages.extend(end.then(|| border(END)));
    messages
}

/// Puts all of these into their sets by one transaction. Those that are there stay for as long as is said now.
pub(super) fn add(socket: &Socket, table: &str, elements: &[Element]) -> io::Result<()> {
    if elements.is_empty() {
        return Ok(());
    }
    let changes: Vec<Message> = elements
        .iter()
        .flat_map(|element| renewal(table, element))
        .collect();
    match socket.ask(batch(changes.clone(), true)) {
        // Before Linux 6.8 one that was there may run out in the middle of a transaction, once.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            socket.ask(batch(changes, true)).map(drop)
        }
        other => other.map(drop),
    }
}

/// Before Linux 6.12 adding what is there changes nothing, and deleting what is not there is an error: so it is added,
/// deleted, and added.
fn renewal(table: &str, element: &Element) -> Vec<Message> {
    let lasts = element.lasts.max(LEAST).as_millis();
    let lasts = u64::try_from(lasts).unwrap_or(u64::MAX);
    let change = |kind, flags, timeout: Option<u64>| {
        let list = |list: Message| {
            list.nest(LIST_ELEMENT, |one| {
                let one = one.nest(KEY, |key| key.with(VALUE, &element.address.octets()));
                match timeout {
                    Some(lasts) => one.with(TIMEOUT, &lasts.to_be_bytes()),
                    None => one,
                }
            })
        };
        request(kind, flags, table)
            .text(NAME, &element.set)
            .nest(ELEMENTS, list)
    };
    let add = || change(NEW_ELEMENT, CREATE, Some(lasts));
    match element.fresh {
        true => vec![add()],
        false => vec![add(), change(DELETE_ELEMENT, 0, None), add()],
    }
}

/// What a counter with a name has counted.
pub(super) fn count(table: &str, counter: &str) -> io::Result<Count> {
    let socket = Socket::open(Some(NETFILTER))?;
    let question = request(GET_OBJECT, 0, table)
        .text(NAME, counter)
        .with(OBJECT_TYPE, &COUNTER.to_be_bytes())
        .acknowledged();
    let answers = socket.ask(vec![question])?;
    let number = |data: &[u8], kind| {
        let value: &[u8] = netlink::attribute(data, kind)?;
        Some(u64::from_be_bytes(value.try_into().ok()?))
    };
    let count = |answer: &Vec<u8>| {
        let data = netlink::attribute(answer.get(4..)?, OBJECT_DATA)?;
        Some(Count {
            packets: number(data, PACKETS)?,
            bytes: number(data, BYTES)?,
        })
    };
    answers
        .iter()
        .find_map(count)
        .ok_or_else(|| io::Error::other("the kernel told no number"))
}

/// Whether rules may log: tried with a table that never comes to be.
pub(super) fn may_log() -> io::Result<bool> {
    const PROBE: &str = "cowslip-probe";
    let socket = Socket::open(Some(NETFILTER))?;
    let log = |rule: Message| {
        rule.nest(LIST_ELEMENT, |one| {
            one.text(EXPRESSION_NAME, "log")
                .nest(EXPRESSION_DATA, |data| {
                    data.with(LOG_GROUP, &1_u16.to_be_bytes())
                })
        })
    };
    let changes = vec![
        request(NEW_TABLE, CREATE, PROBE),
        request(NEW_CHAIN, CREATE, PROBE).text(CHAIN_NAME, PROBE),
        request(NEW_RULE, CREATE, PROBE)
            .text(NAME, PROBE)
            .nest(EXPRESSIONS, log),
    ];
    match socket.ask(batch(changes, false)) {
        Ok(_) => Ok(true),
        // Of the logger of packets, or of the expression.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
