//! What of an upstream's answer is an answer to the question.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// How long anything is kept, and shown to guests: names move.
const TTL_MAX: Duration = Duration::from_secs(60 * 60);
/// How long it is kept that there is nothing.
const NOTHING_MAX: Duration = Duration::from_secs(5 * 60);
/// Links of a chain of names; a loop ends here as well.
const CHAIN_MAX: usize = 16;
/// Records at the end of the chain: more addresses than any program tries.
const RECORDS_MAX: usize = 64;

/// The records of a chain from the question's name to what was asked for, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `NoError` or `NXDomain`.
    pub(crate) code: ResponseCode,
    pub(crate) records: Vec<Record>,
    /// How long it holds.
    pub(crate) ttl: Duration,
}

impl Answer {
    /// What of a message is the answer to a query. Sections beside the answer's own could bring addresses that nobody
    /// asked for.
    pub(crate) fn of(message: &Message, query: &Query) -> Self {
        let mut records: Vec<Record> = Vec::new();
        let mut owner = query.name.clone();
        let mut whole = false;
        while records.len() < CHAIN_MAX {
            let found: Vec<&Record> = of(message, &owner, query.query_type)
                .take(RECORDS_MAX)
                .collect();
            if !found.is_empty() {
                records.extend(found.into_iter().cloned());
                whole = true;
                break;
            }
            let link = of(message, &owner, RecordType::CNAME).next().cloned();
            let Some(link) = link.filter(|link| !records.contains(link)) else {
                break;
            };
            if let Some(target) = target(&link) {
                owner = target.clone();
            }
            records.push(link);
        }
        let shown = records.iter().map(|record| seconds(record.ttl)).min();
        let ttl = match whole {
            true => shown.unwrap_or_default().min(TTL_MAX),
            false => nothing(message, &owner)
                .min(shown.unwrap_or(NOTHING_MAX))
                .min(NOTHING_MAX),
        };
        Self {
            code: message.response_code,
            records,
            ttl,
        }
    }

    /// The names that the question's own leads to.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &Name> {
        self.records.iter().filter_map(target)
    }
}

/// The records of a name that are of a type.
fn of<'a>(
    message: &'a Message,
    name: &'a Name,
    of: RecordType,
) -> impl Iterator<Item = &'a Record> {
    message.answers.iter().filter(move |record| {
        record.record_type() == of && record.dns_class == DNSClass::IN && record.name == *name
    })
}

fn target(record: &Record) -> Option<&Name> {
    match &record.data {
        RData::CNAME(name) => Some(name),
        _ => None,
    }
}

/// The address of a record of one.
pub(crate) fn address(record: &Record) -> Option<Ipv4Addr> {
    match record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    }
}

/// How long it holds that there is nothing (RFC 2308); not at all, if nobody says so.
fn nothing(message: &Message, name: &Name) -> Duration {
    let soa = message
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) if record.name.zone_of(name) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        });
    soa.map(seconds).unwrap_or_default()
}

/// A time to live. One with the highest bit is none (RFC 2181).
fn seconds(ttl: u32) -> Duration {
    match i32::try_from(ttl) {
        Ok(_) => Duration::from_secs(ttl.into()),
        Err(_) => Duration::ZERO,
    }
}
