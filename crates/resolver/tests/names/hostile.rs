//! Guests that send what they like.

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::sandbox::{Sandbox, question, servers};
use crate::site::{Site, a};

async fn sandbox(site: &Site) -> Sandbox {
    Sandbox::new(&["*.example"], &[], servers(&[site])).await
}

#[tokio::test]
async fn what_is_no_question_is_told_so_or_ignored() {
    let site = Site::with(vec![a("a.example.", 300, "8.0.0.1")]).await;
    let sandbox = sandbox(&site).await;
    let whole = question("a.example.", RecordType::A);
    let bytes = whole.to_vec().unwrap();
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = whole.clone();
        change(&mut message);
        message.to_vec().unwrap()
    };
    let cut = bytes[..bytes.len() - 1].to_vec();
    for (packet, code) in [
        (cut, ResponseCode::FormErr),
        (bytes[..12].to_vec(), ResponseCode::FormErr),
        (with(&|m| m.queries.clear()), ResponseCode::FormErr),
        (
            with(&|m| m.queries.push(m.queries[0].clone())),
            ResponseCode::FormErr,
        ),
        (
            with(&|m| m.metadata.op_code = OpCode::Notify),
            ResponseCode::NotImp,
        ),
        (
            with(&|m| m.metadata.op_code = OpCode::Status),
            ResponseCode::NotImp,
        ),
        (
            with(&|m| {
                let mut edns = Edns::new();
                edns.set_version(1);
                m.edns = Some(edns);
            }),
            ResponseCode::BADVERS,
        ),
    ] {
        let answer = Message::from_vec(&sandbox.exchange(&packet).await).unwrap();
        // 16 has two names.
        assert_eq!(u16::from(answer.response_code), u16::from(code));
        assert_eq!(answer.id, whole.id);
        assert!(answer.answers.is_empty());
    }
    // To these nothing is said; what is said next is the answer to what is asked next.
    let guest = sandbox.guest().await;
    for junk in [
        vec![],
        vec![0; 11],
        with(&|m| m.metadata.message_type = hickory_proto::op::MessageType::Response),
    ] {
        guest.send(&junk).await.unwrap();
    }
    guest.send(&bytes).await.unwrap();
    let mut buffer = vec![0; 2000];
    let length = guest.recv(&mut buffer).await.unwrap();
    assert_eq!(
        Message::from_vec(&buffer[..length]).unwrap().answers.len(),
        1
    );
    assert_eq!(sandbox.counts().asked, 1);
}

#[tokio::test]
async fn a_flood_is_bounded_and_what_needs_nobody_is_still_answered() {
    let site = Site::silent().await;
    let sandbox = sandbox(&site).await;
    let guest = sandbox.guest().await;
    for index in 0..100 {
        let question = question(&format!("a{index}.example."), RecordType::A);
        guest.send(&question.to_vec().unwrap()).await.unwrap();
    }
    // Sockets are read in order: when this is answered, the flood was read.
    assert_eq!(sandbox.resolve("other.").await.0, ResponseCode::NXDomain);
    let counts = sandbox.counts();
    assert_eq!((counts.asked, counts.dropped), (101, 68));
    sandbox.cancel.cancel();
    sandbox.served.await.unwrap();
    assert!(site.asked().len() <= 32);
}

#[tokio::test]
async fn connections_are_bounded_and_idle_ones_end() {
    let site = Site::with(vec![a("a.example.", 300, "8.0.0.1")]).await;
    let sandbox = sandbox(&site).await;
    let mut idle = Vec::new();
    for index in 0..16_u8 {
        let mut stream = TcpStream::connect(sandbox.tcp).await.unwrap();
        // Some of a question, for ever.
        stream
            .write_all(&[0, 20, 0][..usize::from(index % 4)])
            .await
            .unwrap();
        idle.push(stream);
    }
    let asked = [question("a.example.", RecordType::A)];
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    assert_eq!(sandbox.say_by_tcp(&asked).await[0].answers.len(), 1);
    let waited = begun.elapsed().as_secs();
    assert!((9..=11).contains(&waited), "{waited}");
    for mut stream in idle {
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn a_connection_with_no_question_in_it_ends() {
    let site = Site::silent().await;
    let sandbox = sandbox(&site).await;
    // What would be answered, if anybody read on.
    let mut question = question("other.", RecordType::A).to_vec().unwrap();
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    let fine = [&length[..], &question].concat();
    question.resize(0x2000, 0);
    let long = [&[0x20, 0][..], &question].concat();
    for junk in [&long[..], &[0, 0], &[0, 3, 1, 2, 3]] {
        let mut stream = TcpStream::connect(sandbox.tcp).await.unwrap();
        stream.write_all(&[junk, &fine].concat()).await.unwrap();
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn serving_ends_when_it_is_cancelled_whatever_is_under_way() {
    let site = Site::silent().await;
    let sandbox = sandbox(&site).await;
    let guest = sandbox.guest().await;
    let asked = question("a.example.", RecordType::A).to_vec().unwrap();
    guest.send(&asked).await.unwrap();
    let _idle = TcpStream::connect(sandbox.tcp).await.unwrap();
    assert_eq!(sandbox.resolve("other.").await.0, ResponseCode::NXDomain);
    sandbox.cancel.cancel();
    sandbox.served.await.unwrap();
}
