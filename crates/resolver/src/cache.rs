//! Answers that still hold.
//!
//! Each sandbox has its own: another one's could be pushed out by a neighbour, and tell it by the time that an answer
//! takes who asked for what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::rr::{Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use tokio::time::Instant;

use crate::answer::{Answer, address};

/// Answers of a sandbox.
const ENTRIES_MAX: usize = 512;
/// Records of an answer that is kept, and bytes of each that is not an address: with the number of answers, some
/// megabytes of the worst kind.
const RECORDS_MAX: usize = 32;
const RECORD_MAX: usize = 512;

/// A name as rules have it, and what of it was asked for.
pub(crate) type Key = (String, RecordType);

/// An answer, and until when it holds.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) answer: Arc<Answer>,
    pub(crate) until: Instant,
}

/// Answers that still hold, of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<HashMap<Key, Found>>);

impl Cache {
    pub(crate) fn get(&self, key: &Key) -> Option<Found> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = entries.get(key)?;
        (found.until > Instant::now()).then(|| found.clone())
    }

    /// Keeps an answer for as long as it holds. What would end first makes room for it.
    pub(crate) fn put(&self, key: Key, answer: Answer) -> Found {
        let now = Instant::now();
        let found = Found {
            until: now + answer.ttl,
            answer: Arc::new(answer),
        };
        if found.until <= now || !is_small(&found.answer) {
            return found;
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&key) {
            entries.retain(|_, found| found.until > now);
        }
        if entries.len() >= ENTRIES_MAX && !entries.contains_key(&key) {
            let first = entries.iter().min_by_key(|(_, found)| found.until);
            if let Some(first) = first.map(|(key, _)| key.clone()) {
                entries.remove(&first);
            }
        }
        entries.insert(key, found.clone());
        found
    }
}

fn is_small(answer: &Answer) -> bool {
    let small = |record: &Record| {
        let bytes = record.to_bytes().map(|bytes| bytes.len());
        address(record).is_some() || bytes.is_ok_and(|bytes| bytes <= RECORD_MAX)
    };
    answer.records.len() <= RECORDS_MAX && answer.records.iter().all(small)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::rdata::TXT;
    use hickory_proto::rr::{Name, RData};

    use super::*;

    fn key(index: usize) -> Key {
        (format!("a{index}.example"), RecordType::A)
    }

    fn answer(seconds: u64) -> Answer {
        Answer {
            code: ResponseCode::NoError,
            records: Vec::new(),
            ttl: Duration::from_secs(seconds),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_as_long_as_it_holds() {
        let cache = Cache::default();
        cache.put(key(0), answer(10));
        cache.put(key(1), answer(0));
        assert!(cache.get(&key(1)).is_none());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(cache.get(&key(0)).is_some());
        assert!(cache.get(&("a0.example".into(), RecordType::TXT)).is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.get(&key(0)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_would_end_first_makes_room() {
        let cache = Cache::default();
        for index in 0..ENTRIES_MAX {
            cache.put(key(index), answer(if index == 7 { 10 } else { 20 }));
        }
        cache.put(key(1), answer(30));
        assert!(
            cache.get(&key(7)).is_some(),
            "a place that there is already"
        );
        cache.put(key(ENTRIES_MAX), answer(20));
        assert!(cache.get(&key(7)).is_none());
        assert_eq!(cache.0.lock().unwrap().len(), ENTRIES_MAX);
        tokio::time::advance(Duration::from_secs(25)).await;
        cache.put(key(ENTRIES_MAX + 1), answer(20));
        assert_eq!(cache.0.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_is_large_is_not_kept() {
        let text = |length| {
            let text = TXT::from_bytes(vec![&vec![b'x'; length][..]; 2]);
            Record::from_rdata(Name::root(), 10, RData::TXT(text))
        };
        for (record, count, kept) in [
            (text(200), 32, true),
            (text(200), 33, false),
            (text(255), 1, false),
            (text(240), 1, true),
        ] {
            let cache = Cache::default();
            let records = vec![record; count];
            let ttl = Duration::from_secs(10);
            let code = ResponseCode::NoError;
            cache.put(key(0), Answer { code, records, ttl });
            assert_eq!(cache.get(&key(0)).is_some(), kept);
        }
    }
}
