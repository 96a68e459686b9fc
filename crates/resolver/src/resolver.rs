//! From a question to its answer.

use std::sync::Arc;
use std::time::Duration;

use cowslip_model::api::NameCounts;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Record;
use tokio::time::{Instant, timeout};

use crate::answer::address;
use crate::cache::{Cache, Found, Key};
use crate::counters::Counters;
use crate::policy::{Fate, plain};
use crate::question::{Kind, Packet, Question, Reply, Transport};
use crate::{Gate, GateError, Opening, Policy, Upstream};

/// How much longer an address is open than its guest is shown: a program asks, and connects some time later. Programs
/// that keep an address for longer than they are told lose it, or ask again.
const GRACE: Duration = Duration::from_secs(60);
/// How long a gate may take.
const GATE_TIME: Duration = Duration::from_secs(5);

/// Reasons for guests, with their codes of RFC 8914.
const BLOCKED: (u16, &str) = (15, "the sandbox's network rules do not allow this name");
const TAKEN: (u16, &str) = (
    17,
    "addresses of a private network are left out: only a rule with the address opens one",
);
const UNREACHABLE: (u16, &str) = (22, "no name server of the host gave an answer");
const SHUT: (u16, &str) = (0, "its addresses could not be opened");

/// The resolver of one sandbox. Clones are the same one.
#[derive(Clone)]
pub struct Resolver(Arc<Desk>);

struct Desk {
    policy: Policy,
    upstream: Upstream,
    gate: Arc<dyn Gate>,
    cache: Cache,
    counters: Counters,
}

/// What becomes of a packet.
pub(crate) enum Step {
    /// It is answered with this; none: with silence.
    Done(Option<Vec<u8>>),
    /// Somebody else must be asked first.
    Ask(Pending),
}

/// A question that the rules allow.
pub(crate) struct Pending {
    question: Question,
    key: Key,
}

impl Resolver {
    /// A resolver that answers by a policy. Rules that replace others come with a resolver of their own.
    #[must_use]
    pub fn new(policy: Policy, upstream: Upstream, gate: Arc<dyn Gate>) -> Self {
        Self(Arc::new(Desk {
            policy,
            upstream,
            gate,
            cache: Cache::default(),
            counters: Counters::default(),
        }))
    }

    /// What became of the questions so far.
    #[must_use]
    pub fn counts(&self) -> NameCounts {
        self.0.counters.counts()
    }

    /// Counts a question that is left unanswered.
    pub(crate) fn drop_one(&self) {
        self.0.counters.dropped.add();
    }

    /// What can be said without asking anybody.
    pub(crate) fn begin(&self, packet: &[u8], transport: Transport) -> Step {
        let question = match Packet::read(packet) {
            Packet::Junk => return Step::Done(None),
            Packet::Wrong(bytes) => return Step::Done(Some(bytes)),
            Packet::Question(question) => question,
        };
        self.0.counters.asked.add();
        match self.0.judge(&question) {
            Ok(key) => Step::Ask(Pending { question, key }),
            Err(reply) => Step::Done(question.write(reply, transport)),
        }
    }

    /// The answer to a question that [`Self::begin`] let through.
    pub(crate) async fn finish(&self, pending: Pending, transport: Transport) -> Option<Vec<u8>> {
        let Pending { question, key } = pending;
        let reply = match self.0.answer(&question, key).await {
            Ok(reply) | Err(reply) => reply,
        };
        question.write(reply, transport)
    }
}

impl Desk {
    /// The question's key in the cache, or what is said without it.
    fn judge(&self, question: &Question) -> Result<Key, Reply> {
        let kind = question.kind();
        if kind == Kind::Whole {
            self.counters.refused.add();
            return Err(Reply::of(ResponseCode::Refused));
        }
        let policy = &self.policy;
        if policy.hides(&question.query.name) {
            return Err(Reply::of(ResponseCode::NoError));
        }
        let name = plain(&question.query.name).filter(|name| policy.rules(name).is_some());
        let name = name.ok_or_else(|| self.blocked())?;
        match kind {
            Kind::Nothing => Err(Reply::of(ResponseCode::NoError)),
            _ => Ok((name, question.query.query_type)),
        }
    }

    /// A refused name does not exist. To REFUSED and SERVFAIL musl waits for another server until its time is up, and
    /// glibc asks again and tells programs to try later. There is no SOA with it, so that nobody keeps it when the
    /// rules are others.
    fn blocked(&self) -> Reply {
        self.counters.refused.add();
        Reply::because(ResponseCode::NXDomain, BLOCKED)
    }

    async fn find(&self, question: &Question, key: Key) -> Result<Found, Reply> {
        if let Some(found) = self.cache.get(&key) {
            return Ok(found);
        }
        match self.upstream.ask(&question.query).await {
            Ok(answer) => Ok(self.cache.put(key, answer)),
            Err(error) => {
                let error: &(dyn std::error::Error + 'static) = &error;
                tracing::debug!(name = key.0, error, "a guest's question has no answer");
                self.counters.failed.add();
                Err(Reply::because(ResponseCode::ServFail, UNREACHABLE))
            }
        }
    }

    async fn answer(&self, question: &Question, key: Key) -> Result<Reply, Reply> {
        let name = key.0.clone();
        let found = self.find(question, key).await?;
        let policy = &self.policy;
        let rules = policy.rules(&name).ok_or_else(|| self.blocked())?;
        let denied = |target: &_| plain(target).is_some_and(|name| policy.denies(&name));
        if found.answer.targets().any(denied) {
            return Err(self.blocked());
        }
        let ttl = found.until.saturating_duration_since(Instant::now());
        let (mut reply, opened) = self.let_through(&found);
        let shown = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        for record in &mut reply.answers {
            record.ttl = shown;
            if record.name == question.query.name {
                record.name = question.query.name.clone();
            }
        }
        let opening = |(rule, address): (&usize, &_)| Opening {
            rule: *rule,
            address: *address,
            ttl: ttl + GRACE,
        };
        let openings: Vec<Opening> = rules
            .iter()
            .flat_map(|rule| opened.iter().map(move |address| (rule, address)))
            .map(opening)
            .collect();
        if let Err(error) = self.open(&openings).await {
            // A guest can make this happen again and again, but not fill the log.
            let count = self.counters.unopened.add();
            if count.is_power_of_two() {
                tracing::warn!(name, %error, count, "addresses of a name could not be opened to a guest");
            }
            return Err(Reply::because(ResponseCode::ServFail, SHUT));
        }
        Ok(reply)
    }

    /// What the policy leaves of an answer, and the addresses in it that are to be opened.
    fn let_through(&self, found: &Found) -> (Reply, Vec<std::net::Ipv4Addr>) {
        let answer = &found.answer;
        let mut opened = Vec::new();
        let mut pass = |record: &&Record| match address(record).map(|to| (to, self.policy.fate(to)))
        {
            Some((_, Fate::Taken)) => false,
            Some((_, Fate::Given)) | None => true,
            Some((address, Fate::Opened)) => {
                opened.push(address);
                true
            }
        };
        let answers: Vec<Record> = answer.records.iter().filter(&mut pass).cloned().collect();
        let mut reply = Reply::of(answer.code);
        if answers.len() < answer.records.len() {
            self.counters.rebinding.add();
            reply.reason = Some(TAKEN);
        }
        reply.answers = answers;
        (reply, opened)
    }

    async fn open(&self, openings: &[Opening]) -> Result<(), GateError> {
        if openings.is_empty() {
            return Ok(());
        }
        match timeout(GATE_TIME, self.gate.open(openings)).await {
            Ok(opened) => opened,
            Err(_) => Err("it took too long".into()),
        }
    }
}
