//! Name servers that fail, lie, or keep silent.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;

use cowslip_resolver::{Servers, Upstream};

use crate::sandbox::{Sandbox, servers};
use crate::site::{By, Site, a, answer, code};

fn good(question: &Message) -> Message {
    answer(question, &[a("a.example.", 300, "8.0.0.1")])
}

fn fine() -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, vec!["8.0.0.1".into()])
}

async fn good_site() -> Site {
    Site::new(|question, _| good(question)).await
}

async fn sandbox(sites: &[&Site]) -> Sandbox {
    Sandbox::new(&["a.example"], &[], servers(sites)).await
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_cannot_tell() {
    for refusal in [ResponseCode::ServFail, ResponseCode::Refused] {
        let bad = Site::new(move |question, _| code(question, refusal)).await;
        let good = good_site().await;
        assert_eq!(
            sandbox(&[&bad, &good]).await.resolve("a.example.").await,
            fine()
        );
        assert_eq!((bad.asked().len(), good.asked().len()), (1, 1));
        let sandbox = sandbox(&[&bad]).await;
        let expected = (ResponseCode::ServFail, vec![]);
        assert_eq!(sandbox.resolve("a.example.").await, expected);
        assert_eq!(bad.asked().len(), 3);
        assert_eq!(sandbox.counts().failed, 1);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_costs_no_time() {
    let gone = Site::silent().await.address;
    let good = good_site().await;
    let upstream = Upstream::new(Servers {
        addresses: vec![gone, good.address],
        ..Servers::default()
    });
    let begun = std::time::Instant::now();
    let sandbox = Sandbox::new(&["a.example"], &[], upstream).await;
    assert_eq!(sandbox.resolve("a.example.").await, fine());
    assert!(begun.elapsed() < Servers::default().timeout);
}

#[tokio::test(start_paused = true)]
async fn silence_ends() {
    let silent = Site::silent().await;
    let sandbox_of_one = sandbox(&[&silent]).await;
    let begun = tokio::time::Instant::now();
    let expected = (ResponseCode::ServFail, vec![]);
    assert_eq!(sandbox_of_one.resolve("a.example.").await, expected);
    assert_eq!(silent.asked().len(), 2);
    assert!(begun.elapsed().as_secs() <= 10);
    let good = good_site().await;
    assert_eq!(
        sandbox(&[&silent, &good]).await.resolve("a.example.").await,
        fine()
    );
    let many = [&silent; 8];
    let begun = tokio::time::Instant::now();
    assert_eq!(sandbox(&many).await.resolve("a.example.").await, expected);
    assert!(begun.elapsed().as_secs() <= 11);
}

#[tokio::test]
async fn only_the_answer_to_the_question_is_believed() {
    let site = Site::of_packets(|question, _| {
        let lie = |change: &dyn Fn(&mut Message)| {
            let mut lie = answer(question, &[a("a.example.", 300, "8.6.6.6")]);
            change(&mut lie);
            lie.to_vec().unwrap()
        };
        vec![
            lie(&|lie| lie.metadata.id ^= 1),
            lie(&|lie| lie.queries[0].name = "b.example.".parse().unwrap()),
            lie(&|lie| lie.queries[0].query_type = RecordType::TXT),
            lie(&|lie| lie.queries.clear()),
            lie(&|lie| lie.metadata.message_type = hickory_proto::op::MessageType::Query),
            Vec::new(),
            vec![0; 3],
            vec![0xff; 600],
            good(question).to_vec().unwrap(),
            lie(&|_| ()),
        ]
    })
    .await;
    assert_eq!(sandbox(&[&site]).await.resolve("a.example.").await, fine());
    assert_eq!(site.asked().len(), 1);
}

#[tokio::test]
async fn who_guesses_makes_the_question_go_by_tcp() {
    let site = Site::of_packets(|question, by| match by {
        By::Tcp => vec![good(question).to_vec().unwrap()],
        By::Udp => {
            let mut lie = answer(question, &[a("a.example.", 300, "8.6.6.6")]);
            let guess = |_| {
                lie.metadata.id = lie.metadata.id.wrapping_add(1);
                lie.to_vec().unwrap()
            };
            (0..100).map(guess).collect()
        }
    })
    .await;
    assert_eq!(sandbox(&[&site]).await.resolve("a.example.").await, fine());
    let ways: Vec<_> = site.asked().into_iter().map(|(by, _)| by).collect();
    assert_eq!(ways, [By::Udp, By::Tcp]);
}

#[tokio::test]
async fn an_answer_that_is_cut_is_asked_for_by_tcp() {
    for cut_anywhere in [false, true] {
        let site = Site::of_packets(move |question, by| {
            let mut whole = good(question);
            whole.metadata.truncation = by == By::Udp;
            let mut bytes = whole.to_vec().unwrap();
            if by == By::Udp && cut_anywhere {
                bytes.truncate(bytes.len() - 2);
            }
            vec![bytes]
        })
        .await;
        assert_eq!(sandbox(&[&site]).await.resolve("a.example.").await, fine());
        let ways: Vec<_> = site.asked().into_iter().map(|(by, _)| by).collect();
        assert_eq!(ways, [By::Udp, By::Tcp]);
    }
}

#[tokio::test]
async fn a_server_from_before_edns_is_asked_without() {
    let site = Site::new(|question, _| match question.edns {
        Some(_) => code(question, ResponseCode::FormErr),
        None => good(question),
    })
    .await;
    assert_eq!(sandbox(&[&site]).await.resolve("a.example.").await, fine());
    assert_eq!(site.asked().len(), 2);
}

#[tokio::test]
async fn each_question_has_its_own_id() {
    let site = Site::new(|question, _| answer(question, &[a("a.example.", 0, "8.0.0.1")])).await;
    let sandbox = sandbox(&[&site]).await;
    for _ in 0..4 {
        sandbox.resolve("a.example.").await;
    }
    let ids: std::collections::BTreeSet<_> = site.asked().iter().map(|(_, q)| q.id).collect();
    assert!(ids.len() > 1, "{ids:?}");
}

#[tokio::test]
async fn without_a_file_of_servers_nothing_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::of_file(directory.path().join("resolv.conf"));
    let sandbox = Sandbox::new(&["a.example"], &[], upstream).await;
    let expected = (ResponseCode::ServFail, vec![]);
    assert_eq!(sandbox.resolve("a.example.").await, expected);
}
