//! Questions as guests ask them, and the form of what they are answered.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Record, RecordType};

/// Bytes of the largest question that is read; a name has 255 at most, and options are few.
pub(crate) const QUESTION_MAX: usize = 4096;

/// Bytes of a header.
const HEADER: usize = 12;
/// Bytes of an answer by UDP to who does not say how much it takes, and the most that is sent whatever it says: it fits
/// in a packet of any link, so nothing is ever in fragments.
const UDP_LEAST: u16 = 512;
const UDP_MOST: u16 = 1232;

/// A question that is understood.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    head: Metadata,
    /// As the guest spells it.
    pub(crate) query: Query,
    /// Whether it speaks EDNS (RFC 6891), and how much it takes by UDP.
    edns: Option<u16>,
}

/// What a packet is.
#[derive(Debug)]
pub(crate) enum Packet {
    /// Nothing that anybody is answered.
    Junk,
    /// Something wrong, and what is said to it.
    Wrong(Vec<u8>),
    /// A question.
    Question(Question),
}

/// What is asked for, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Addresses.
    Addresses,
    /// What can lead to no address by itself.
    Other,
    /// What no guest has a use for, or what would bring addresses past the rules: IPv6, and hints in HTTPS and SVCB.
    Nothing,
    /// Zones, and all there is: never given.
    Whole,
}

/// What a guest is told.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    /// Why it is not what it might be: a code of RFC 8914 and words, for people with a tool that shows them.
    pub(crate) reason: Option<(u16, &'static str)>,
}

/// How an answer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Packet {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        // An answer is never answered: two resolvers would go on for ever.
        if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
            return Self::Junk;
        }
        let Ok(message) = Message::from_vec(bytes) else {
            return Self::Wrong(bare(bytes, ResponseCode::FormErr));
        };
        if message.op_code != OpCode::Query {
            return Self::Wrong(bare(bytes, ResponseCode::NotImp));
        }
        let [query] = message.queries.as_slice() else {
            return Self::Wrong(bare(bytes, ResponseCode::FormErr));
        };
        let question = Question {
            head: message.metadata,
            query: query.clone(),
            edns: message.edns.as_ref().map(Edns::max_payload),
        };
        if message.edns.is_some_and(|edns| edns.version() > 0) {
            let reply = Reply::of(ResponseCode::BADVERS);
            return match question.write(reply, Transport::Udp) {
                Some(bytes) => Self::Wrong(bytes),
                None => Self::Junk,
            };
        }
        Self::Question(question)
    }
}

/// A header alone, with a code.
fn bare(question: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut reply = vec![0; HEADER];
    reply[..2].copy_from_slice(&question[..2]);
    // It is an answer; what was asked, and whether with recursion, as it was.
    reply[2] = 0x80 | question[2] & 0x79;
    reply[3] = 0x80 | code.low();
    reply
}

impl Question {
    pub(crate) fn kind(&self) -> Kind {
        match self.query.query_type {
            _ if self.query.query_class != DNSClass::IN => Kind::Whole,
            RecordType::A => Kind::Addresses,
            RecordType::CAA
            | RecordType::CNAME
            | RecordType::MX
            | RecordType::NAPTR
            | RecordType::NS
            | RecordType::OPENPGPKEY
            | RecordType::PTR
            | RecordType::SMIMEA
            | RecordType::SOA
            | RecordType::SRV
            | RecordType::SSHFP
            | RecordType::TLSA
            | RecordType::TXT => Kind::Other,
            RecordType::ANY
            | RecordType::AXFR
            | RecordType::IXFR
            | RecordType::OPT
            | RecordType::TSIG
            | RecordType::ZERO
            // TKEY, MAILB, MAILA
            | RecordType::Unknown(249 | 253 | 254) => Kind::Whole,
            _ => Kind::Nothing,
        }
    }

    /// The answer's bytes; none if it cannot be written.
    pub(crate) fn write(&self, reply: Reply, transport: Transport) -> Option<Vec<u8>> {
        let mut message = Message::new(self.head.id, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.head);
        message.metadata.recursion_available = true;
        message.metadata.response_code = reply.code;
        message.queries.push(self.query.clone());
        message.answers = reply.answers;
        message.edns = self.edns.map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MOST)
                .set_rcode_high(reply.code.high());
            if let Some((code, words)) = reply.reason {
                let text = [&code.to_be_bytes(), words.as_bytes()].concat();
                let extended_error = 15;
                edns.options_mut()
                    .insert(EdnsOption::Unknown(extended_error, text));
            }
            edns
        });
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= self.room(transport) {
            return Some(bytes);
        }
        // Half a set of addresses is never shown: the guest asks again, by TCP.
        message.answers.clear();
        message.metadata.truncation = true;
        message.to_vec().ok()
    }

    fn room(&self, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => self
                .edns
                .unwrap_or(UDP_LEAST)
                .clamp(UDP_LEAST, UDP_MOST)
                .into(),
        }
    }
}

impl Reply {
    pub(crate) const fn of(code: ResponseCode) -> Self {
        Self {
            code,
            answers: Vec::new(),
            reason: None,
        }
    }

    pub(crate) const fn because(code: ResponseCode, reason: (u16, &'static str)) -> Self {
        Self {
            code,
            answers: Vec::new(),
            reason: Some(reason),
        }
    }
}
