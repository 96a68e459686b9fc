//! How long answers hold.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::sandbox::{Sandbox, servers};
use crate::site::{Site, a, answer, code, soa};

/// One that has another address each time.
async fn moving(ttl: u32) -> Site {
    let next = Mutex::new(0);
    Site::new(move |question, _| {
        let mut next = next.lock().unwrap();
        *next += 1;
        answer(question, &[a("a.example.", ttl, &format!("8.0.0.{next}"))])
    })
    .await
}

#[tokio::test]
async fn an_answer_that_is_known_opens_its_address_again_for_the_time_that_is_left() {
    let site = moving(300).await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    sandbox.ask("a.example.", RecordType::A).await;
    sandbox.gate.take();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(100)).await;
    let answer = sandbox.ask("A.example.", RecordType::A).await;
    assert!((195..=200).contains(&answer.answers[0].ttl), "{answer}");
    let opened = sandbox.gate.take();
    assert_eq!(opened[0].address, Ipv4Addr::new(8, 0, 0, 1));
    assert!((255..=260).contains(&opened[0].ttl.as_secs()), "{opened:?}");
    assert_eq!(site.asked().len(), 1);
    tokio::time::advance(Duration::from_secs(200)).await;
    sandbox.ask("a.example.", RecordType::A).await;
    assert_eq!(sandbox.gate.opened(), [(0, Ipv4Addr::new(8, 0, 0, 2))]);
    assert_eq!(site.asked().len(), 2);
}

#[tokio::test]
async fn a_name_that_moves_all_the_time_stays_open_for_a_minute() {
    let site = moving(0).await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    for index in 1..=3 {
        let answer = sandbox.ask("a.example.", RecordType::A).await;
        assert_eq!(answer.answers[0].ttl, 0);
        let opened = sandbox.gate.take();
        assert_eq!(opened[0].address, Ipv4Addr::new(8, 0, 0, index));
        assert_eq!(opened[0].ttl, Duration::from_secs(60));
    }
}

#[tokio::test]
async fn nothing_holds_for_more_than_an_hour() {
    let site = moving(1_000_000).await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let answer = sandbox.ask("a.example.", RecordType::A).await;
    assert!((3595..=3600).contains(&answer.answers[0].ttl), "{answer}");
    let site = moving(u32::MAX).await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let answer = sandbox.ask("a.example.", RecordType::A).await;
    assert_eq!(answer.answers[0].ttl, 0);
}

#[tokio::test]
async fn that_there_is_nothing_is_known_for_as_long_as_its_zone_says() {
    for (record, again) in [
        (Some(soa("example.", 300, 60)), 1),
        (Some(soa("other.example.", 300, 60)), 2),
        (None, 2),
    ] {
        let site = Site::new(move |question, _| {
            let mut answer = code(question, ResponseCode::NXDomain);
            answer.authorities.extend(record.clone());
            answer
        })
        .await;
        let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
        for _ in 0..2 {
            let expected = (ResponseCode::NXDomain, vec![]);
            assert_eq!(sandbox.resolve("a.example.").await, expected);
        }
        assert_eq!(site.asked().len(), again);
    }
}
