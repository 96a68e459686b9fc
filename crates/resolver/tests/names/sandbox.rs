//! A sandbox's resolver, its guest, and the gate of its addresses.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cowslip_model::NetworkSpec;
use cowslip_model::api::NameCounts;
use cowslip_resolver::{Gate, GateError, Opening, Policy, Resolver, Servers, Upstream};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::site::{Site, name};

/// A sandbox's resolver with its guest.
pub(crate) struct Sandbox {
    pub(crate) udp: SocketAddr,
    pub(crate) tcp: SocketAddr,
    pub(crate) gate: Arc<Recorder>,
    pub(crate) cancel: CancellationToken,
    pub(crate) served: JoinHandle<()>,
    resolver: Resolver,
}

/// What a gate does beside noting what it is to open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Opens,
    Fails,
    Hangs,
}

#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) mood: Mutex<Mood>,
    opened: Mutex<Vec<Opening>>,
}

#[async_trait]
impl Gate for Recorder {
    async fn open(&self, openings: &[Opening]) -> Result<(), GateError> {
        self.opened.lock().unwrap().extend_from_slice(openings);
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Opens => Ok(()),
            Mood::Fails => Err("no such set".into()),
            Mood::Hangs => std::future::pending().await,
        }
    }
}

impl Recorder {
    /// What was opened since it was last asked, without times.
    pub(crate) fn opened(&self) -> Vec<(usize, Ipv4Addr)> {
        let opened = self.take().into_iter();
        opened
            .map(|opening| (opening.rule, opening.address))
            .collect()
    }

    pub(crate) fn take(&self) -> Vec<Opening> {
        std::mem::take(&mut self.opened.lock().unwrap())
    }
}

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let words = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let spec = NetworkSpec {
        allow: words(allow),
        deny: words(deny),
        ..NetworkSpec::default()
    };
    Policy::new(&spec, &["44.0.0.0/8".parse().unwrap()])
}

/// Each server has this long, and is asked twice.
pub(crate) fn servers(sites: &[&Site]) -> Upstream {
    Upstream::new(Servers {
        addresses: sites.iter().map(|site| site.address).collect(),
        timeout: Duration::from_secs(2),
        attempts: 2,
    })
}

/// A question with an id of its own.
pub(crate) fn question(text: &str, of: RecordType) -> Message {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.queries.push(Query::query(name(text), of));
    question
}

/// How much a guest takes by UDP.
pub(crate) fn with_edns(mut question: Message, room: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(room);
    question.edns = Some(edns);
    question
}

pub(crate) fn addresses(answer: &Message) -> Vec<String> {
    let address = |record: &Record| record.data.to_string();
    answer.answers.iter().map(address).collect()
}

impl Sandbox {
    pub(crate) async fn new(allow: &[&str], deny: &[&str], upstream: Upstream) -> Self {
        let gate = Arc::new(Recorder::default());
        let resolver = Resolver::new(policy(allow, deny), upstream, gate.clone());
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (of_udp, of_tcp) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let cancel = CancellationToken::new();
        let (server, cancelled) = (resolver.clone(), cancel.clone());
        let served = tokio::spawn(async move { server.serve((udp, tcp), cancelled).await });
        Self {
            udp: of_udp,
            tcp: of_tcp,
            gate,
            cancel,
            served,
            resolver,
        }
    }

    pub(crate) fn counts(&self) -> NameCounts {
        self.resolver.counts()
    }

    /// A guest's socket.
    pub(crate) async fn guest(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.udp).await.unwrap();
        socket
    }

    pub(crate) async fn ask(&self, text: &str, of: RecordType) -> Message {
        self.say(&question(text, of)).await
    }

    /// The addresses of a name: its code, and what is in the answer.
    pub(crate) async fn resolve(&self, text: &str) -> (ResponseCode, Vec<String>) {
        let answer = self.ask(text, RecordType::A).await;
        (answer.response_code, addresses(&answer))
    }

    pub(crate) async fn say(&self, question: &Message) -> Message {
        let bytes = self.exchange(&question.to_vec().unwrap()).await;
        checked(question, &bytes)
    }

    /// What is answered to a packet.
    pub(crate) async fn exchange(&self, packet: &[u8]) -> Vec<u8> {
        let socket = self.guest().await;
        socket.send(packet).await.unwrap();
        let mut buffer = vec![0; 65_536];
        let length = socket.recv(&mut buffer).await.unwrap();
        buffer.truncate(length);
        buffer
    }

    /// Questions on one connection.
    pub(crate) async fn say_by_tcp(&self, questions: &[Message]) -> Vec<Message> {
        let mut stream = TcpStream::connect(self.tcp).await.unwrap();
        for question in questions {
            let bytes = question.to_vec().unwrap();
            let length = u16::try_from(bytes.len()).unwrap();
            stream.write_u16(length).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
        let mut answers = Vec::new();
        for question in questions {
            let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut bytes).await.unwrap();
            answers.push(checked(question, &bytes));
        }
        answers
    }
}

/// What every answer is.
fn checked(question: &Message, bytes: &[u8]) -> Message {
    let answer = Message::from_vec(bytes).unwrap();
    assert_eq!(answer.id, question.id);
    assert_eq!(answer.message_type, MessageType::Response);
    assert_eq!(answer.op_code, OpCode::Query);
    assert!(answer.recursion_available && !answer.authoritative);
    assert_eq!(answer.queries.len(), 1);
    assert!(answer.queries[0].name.eq_case(&question.queries[0].name));
    assert_eq!(answer.queries, question.queries);
    assert_eq!(answer.edns.is_some(), question.edns.is_some());
    answer
}
