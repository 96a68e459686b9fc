//! What is answered, and what is opened for it.

use std::net::Ipv4Addr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name, RecordType};

use crate::sandbox::{Mood, Sandbox, addresses, question, servers, with_edns};
use crate::site::{By, Site, a, answer, cname, name, txt};

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_allowed_name_is_open_when_its_address_is_known() {
    let site = Site::with(vec![
        a("www.example.org.", 300, "8.0.0.1"),
        a("www.example.org.", 200, "8.0.0.2"),
    ])
    .await;
    let allow = ["1.2.3.4", "*.example.org:443", "www.example.org:80"];
    let sandbox = Sandbox::new(&allow, &[], servers(&[&site])).await;
    let answer = sandbox.ask("wWw.eXample.ORG.", RecordType::A).await;
    assert_eq!(answer.response_code, ResponseCode::NoError);
    assert_eq!(addresses(&answer), ["8.0.0.1", "8.0.0.2"]);
    for record in &answer.answers {
        assert!(record.name.eq_case(&name("wWw.eXample.ORG.")), "{record}");
        assert!((195..=200).contains(&record.ttl), "{record}");
    }
    let opened: Vec<_> = sandbox.gate.take();
    let which: Vec<_> = opened.iter().map(|o| (o.rule, o.address)).collect();
    let (one, two) = (ip("8.0.0.1"), ip("8.0.0.2"));
    assert_eq!(which, [(1, one), (1, two), (2, one), (2, two)]);
    for opening in opened {
        let shown = u64::from(answer.answers[0].ttl);
        assert!(opening.ttl.as_secs() >= shown + 60, "{opening:?}");
    }
    assert_eq!((sandbox.counts().asked, sandbox.counts().refused), (1, 0));
}

#[tokio::test]
async fn what_is_not_allowed_does_not_exist_and_nobody_is_asked() {
    let site = Site::with(vec![a("example.org.", 300, "8.0.0.1")]).await;
    let allow = ["*.example.org", "8.0.0.0/8"];
    let sandbox = Sandbox::new(&allow, &["*.evil.example.org"], servers(&[&site])).await;
    let labels = |labels: &[&[u8]]| Name::from_labels(labels.to_vec()).unwrap();
    for refused in [
        name("example.org."),
        name("a.example.com."),
        name("x.evil.example.org."),
        name("org."),
        name("."),
        labels(&[b"a.example", b"org"]),
        labels(&[b"a", b"x\0", b"example", b"org"]),
    ] {
        for of in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            let mut question = question(".", of);
            question.queries[0].name = refused.clone();
            let answer = sandbox.say(&question).await;
            assert_eq!(answer.response_code, ResponseCode::NXDomain, "{refused}");
            assert!(answer.answers.is_empty() && answer.authorities.is_empty());
        }
    }
    let answer = sandbox
        .say(&with_edns(question("org.", RecordType::A), 1232))
        .await;
    let edns = answer.edns.unwrap();
    let Some(EdnsOption::Unknown(15, error)) = edns.option(EdnsCode::from(15)) else {
        panic!("{edns:?}");
    };
    assert_eq!(error[..2], [0, 15]);
    assert!(error[2..].starts_with(b"the sandbox's network rules"));
    assert_eq!((site.asked(), sandbox.gate.take()), (vec![], vec![]));
    assert_eq!((sandbox.counts().asked, sandbox.counts().refused), (22, 22));
}

#[tokio::test]
async fn without_an_allow_list_only_denied_names_are_refused() {
    let site = Site::with(vec![a("a.example.", 300, "8.0.0.1")]).await;
    let sandbox = Sandbox::new(&[], &["evil.example:80"], servers(&[&site])).await;
    assert_eq!(
        sandbox.resolve("a.example.").await,
        (ResponseCode::NoError, vec!["8.0.0.1".into()])
    );
    assert_eq!(sandbox.gate.take(), []);
    assert_eq!(
        sandbox.resolve("evil.example.").await.0,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn an_answer_is_the_chain_and_nothing_else() {
    let site = Site::new(|question, _| {
        let mut answer = answer(
            question,
            &[
                a("other.example.", 300, "8.0.0.9"),
                cname("cdn.example.", 100, "Edge.example."),
                a("edge.example.", 300, "8.0.0.1"),
                cname("www.example.org.", 300, "cdn.example."),
                txt("edge.example.", 300, "x"),
                a("www.example.org.evil.", 300, "8.0.0.9"),
            ],
        );
        answer.authorities.push(a("ns.example.", 300, "8.0.0.8"));
        answer.additionals.push(a("edge.example.", 300, "8.0.0.7"));
        answer
    })
    .await;
    let sandbox = Sandbox::new(&["www.example.org"], &[], servers(&[&site])).await;
    let answer = sandbox.ask("www.example.org.", RecordType::A).await;
    assert_eq!(
        addresses(&answer),
        ["cdn.example.", "Edge.example.", "8.0.0.1"]
    );
    assert!(
        answer
            .answers
            .iter()
            .all(|record| (95..=100).contains(&record.ttl))
    );
    assert!(answer.authorities.is_empty() && answer.additionals.is_empty());
    assert_eq!(sandbox.gate.opened(), [(0, ip("8.0.0.1"))]);
    // What it leads to is not allowed by itself.
    assert_eq!(
        sandbox.resolve("edge.example.").await.0,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn a_name_that_leads_to_a_denied_one_is_denied() {
    let site = Site::with(vec![
        cname("a.example.", 300, "x.evil.example."),
        a("x.evil.example.", 300, "8.0.0.1"),
    ])
    .await;
    let sandbox = Sandbox::new(&["a.example"], &["*.EVIL.example"], servers(&[&site])).await;
    assert_eq!(
        sandbox.resolve("a.example.").await,
        (ResponseCode::NXDomain, vec![])
    );
    assert_eq!(sandbox.gate.take(), []);
    assert_eq!(sandbox.counts().refused, 1);
}

#[tokio::test]
async fn a_loop_of_names_ends() {
    let site = Site::with(vec![
        cname("a.example.", 300, "b.example."),
        cname("b.example.", 300, "a.example."),
    ])
    .await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let (code, records) = sandbox.resolve("a.example.").await;
    assert_eq!((code, records.len()), (ResponseCode::NoError, 2));
}

#[tokio::test]
async fn only_types_without_a_way_around_the_rules_are_passed_on() {
    let site = Site::with(vec![txt("a.example.", 300, "hello")]).await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let answer = sandbox.ask("a.example.", RecordType::TXT).await;
    assert_eq!(addresses(&answer), ["hello"]);
    assert_eq!(site.asked().len(), 1);
    for of in [
        RecordType::AAAA,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::Unknown(42),
    ] {
        let answer = sandbox.ask("a.example.", of).await;
        assert_eq!(answer.response_code, ResponseCode::NoError, "{of}");
        assert!(answer.answers.is_empty(), "{of}");
    }
    for of in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR] {
        let answer = sandbox.ask("a.example.", of).await;
        assert_eq!(answer.response_code, ResponseCode::Refused, "{of}");
    }
    let mut chaos = question("a.example.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(
        sandbox.say(&chaos).await.response_code,
        ResponseCode::Refused
    );
    for reverse in ["2.2.0.10.in-addr.arpa.", "1.0.168.192.in-addr.arpa."] {
        let answer = sandbox.ask(reverse, RecordType::PTR).await;
        assert_eq!(answer.response_code, ResponseCode::NoError, "{reverse}");
        assert!(answer.answers.is_empty(), "{reverse}");
    }
    assert_eq!((site.asked().len(), sandbox.gate.take()), (1, vec![]));
}

#[tokio::test]
async fn what_is_too_long_for_a_packet_goes_by_tcp() {
    let records: Vec<_> = (0..60)
        .map(|index| a("a.example.", 300, &format!("8.0.0.{index}")))
        .collect();
    let site = Site::with(records).await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let asked = question("a.example.", RecordType::A);
    let short = sandbox.say(&asked).await;
    assert!(short.truncation && short.answers.is_empty());
    for (room, whole) in [(0, false), (600, false), (1232, true), (u16::MAX, true)] {
        let answer = sandbox.say(&with_edns(asked.clone(), room)).await;
        assert_eq!(
            (answer.answers.len() == 60, answer.truncation),
            (whole, !whole)
        );
    }
    let long: Vec<_> = (0..6)
        .map(|index| format!("{index}{}", "x".repeat(220)))
        .collect();
    let site = Site::with(
        long.iter()
            .map(|text| txt("a.example.", 300, text))
            .collect(),
    )
    .await;
    let talker = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let words = with_edns(question("a.example.", RecordType::TXT), 4096);
    assert!(talker.say(&words).await.truncation);
    assert_eq!(talker.say_by_tcp(&[words]).await[0].answers.len(), 6);
    let others = question("b.example.", RecordType::A);
    let answers = sandbox.say_by_tcp(&[asked.clone(), others, asked]).await;
    let counts: Vec<_> = answers.iter().map(|answer| answer.answers.len()).collect();
    assert_eq!(counts, [60, 0, 60]);
}

#[tokio::test]
async fn no_more_addresses_than_any_program_tries() {
    let records: Vec<_> = (0..200)
        .map(|index| a("a.example.", 300, &format!("8.0.0.{index}")))
        .collect();
    let site = Site::new(move |question, by| {
        let mut answer = answer(question, &records);
        if by == By::Udp {
            answer.answers.clear();
            answer.metadata.truncation = true;
        }
        answer
    })
    .await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let asked = [question("a.example.", RecordType::A)];
    assert_eq!(sandbox.say_by_tcp(&asked).await[0].answers.len(), 64);
    assert_eq!(sandbox.gate.take().len(), 64);
}

#[tokio::test]
async fn no_address_is_known_that_could_not_be_opened() {
    let site = Site::with(vec![a("a.example.", 300, "8.0.0.1")]).await;
    let sandbox = Sandbox::new(&["a.example"], &[], servers(&[&site])).await;
    let expect = |code, addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        (code, addresses)
    };
    *sandbox.gate.mood.lock().unwrap() = Mood::Fails;
    assert_eq!(
        sandbox.resolve("a.example.").await,
        expect(ResponseCode::ServFail, &[])
    );
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    *sandbox.gate.mood.lock().unwrap() = Mood::Hangs;
    assert_eq!(
        sandbox.resolve("a.example.").await,
        expect(ResponseCode::ServFail, &[])
    );
    assert!(begun.elapsed().as_secs() <= 6, "{:?}", begun.elapsed());
    assert_eq!(sandbox.counts().unopened, 2);
    *sandbox.gate.mood.lock().unwrap() = Mood::Opens;
    assert_eq!(
        sandbox.resolve("a.example.").await,
        expect(ResponseCode::NoError, &["8.0.0.1"])
    );
}
