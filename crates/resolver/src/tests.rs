//! Whatever arrives, nothing panics, and no answer has what the rules close.

use std::sync::Arc;
use std::sync::LazyLock;

use async_trait::async_trait;
use cowslip_model::NetworkSpec;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;

use crate::answer::Answer;
use crate::question::Transport;
use crate::resolver::Step;
use crate::{Gate, GateError, Opening, Policy, Resolver, Servers, Upstream};

struct NoGate;

#[async_trait]
impl Gate for NoGate {
    async fn open(&self, _: &[Opening]) -> Result<(), GateError> {
        Ok(())
    }
}

static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| {
    let spec = NetworkSpec {
        allow: vec!["*.example".parse().unwrap()],
        ..NetworkSpec::default()
    };
    let policy = Policy::new(&spec, &[]);
    Resolver::new(policy, Upstream::new(Servers::default()), Arc::new(NoGate))
});

fn question(name: &str) -> Vec<u8> {
    let mut question = Message::query();
    let name = Name::from_ascii(name).unwrap();
    question.queries.push(Query::query(name, RecordType::A));
    question.to_vec().unwrap()
}

/// What can be said to a packet at once is short: nobody is sent more than he sent, but for the words of a reason.
fn check(packet: &[u8]) {
    if let Step::Done(Some(reply)) = RESOLVER.begin(packet, Transport::Udp) {
        assert!(reply.len() <= packet.len() + 100, "{packet:?}: {reply:?}");
        assert_eq!(reply[..2], packet[..2]);
        assert_eq!(reply[2] & 0x80, 0x80);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_bytes_of_a_guest(packet in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&packet);
    }

    #[test]
    fn a_question_with_some_bytes_changed(
        name in "[a-z]{1,8}\\.(example|org)\\.",
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut packet = question(&name);
        packet.extend(tail);
        for (index, byte) in changes {
            let index = index.index(packet.len());
            packet[index] = byte;
        }
        check(&packet);
    }

    #[test]
    fn any_answer_of_a_server(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        tail in prop::collection::vec(any::<u8>(), 0..200),
        records in 0..6_u8,
    ) {
        let asked = question("a.example.");
        let query = Message::from_vec(&asked).unwrap().queries.remove(0);
        let mut packet = asked;
        packet[7] = records;
        for _ in 0..records {
            packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 8, 0, 0, 1]);
        }
        packet.extend(tail);
        for (index, byte) in changes {
            let index = index.index(packet.len());
            packet[index] = byte;
        }
        if let Ok(message) = Message::from_vec(&packet) {
            let answer = Answer::of(&message, &query);
            let mut owner = query.name;
            for record in &answer.records {
                prop_assert_eq!(&record.name, &owner);
                if let hickory_proto::rr::RData::CNAME(target) = &record.data {
                    owner = target.0.clone();
                } else {
                    prop_assert_eq!(record.record_type(), RecordType::A);
                }
            }
            prop_assert!(answer.ttl.as_secs() <= 3600);
        }
    }
}
