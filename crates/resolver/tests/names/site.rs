//! A name server that says what a test wants.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Udp,
    Tcp,
}

/// A name server; it ends when it is dropped.
pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<(By, Message)>>>,
    _tasks: JoinSet<()>,
}

type Script = dyn Fn(&Message, By) -> Vec<Vec<u8>> + Send + Sync;

impl Site {
    /// One that sends the packets of a script to each question.
    pub(crate) async fn of_packets(
        script: impl Fn(&Message, By) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = sockets().await;
        let address = udp.local_addr().unwrap();
        let (asked, script): (Arc<Mutex<_>>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let mut tasks = JoinSet::new();
        tasks.spawn(by_udp(udp, Arc::clone(&asked), Arc::clone(&script)));
        tasks.spawn(by_tcp(tcp, Arc::clone(&asked), script));
        let _tasks = tasks;
        Self {
            address,
            asked,
            _tasks,
        }
    }

    /// One that answers each question with one message.
    pub(crate) async fn new(
        script: impl Fn(&Message, By) -> Message + Send + Sync + 'static,
    ) -> Self {
        Self::of_packets(move |question, by| vec![script(question, by).to_vec().unwrap()]).await
    }

    /// One that has these records, and answers with all of them whatever is asked.
    pub(crate) async fn with(records: Vec<Record>) -> Self {
        Self::new(move |question, _| answer(question, &records)).await
    }

    pub(crate) async fn silent() -> Self {
        Self::of_packets(|_, _| Vec::new()).await
    }

    /// What was asked so far, and how.
    pub(crate) fn asked(&self) -> Vec<(By, Message)> {
        self.asked.lock().unwrap().clone()
    }
}

/// Both of one port.
async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

async fn by_udp(socket: UdpSocket, asked: Arc<Mutex<Vec<(By, Message)>>>, script: Arc<Script>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let question = Message::from_vec(&buffer[..length]).unwrap();
        asked.lock().unwrap().push((By::Udp, question.clone()));
        for packet in script(&question, By::Udp) {
            socket.send_to(&packet, from).await.unwrap();
        }
    }
}

async fn by_tcp(listener: TcpListener, asked: Arc<Mutex<Vec<(By, Message)>>>, script: Arc<Script>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut bytes).await.unwrap();
        let question = Message::from_vec(&bytes).unwrap();
        asked.lock().unwrap().push((By::Tcp, question.clone()));
        for packet in script(&question, By::Tcp) {
            let length = u16::try_from(packet.len()).unwrap();
            stream.write_u16(length).await.unwrap();
            stream.write_all(&packet).await.unwrap();
        }
    }
}

/// An answer with records.
pub(crate) fn answer(question: &Message, records: &[Record]) -> Message {
    let mut answer = code(question, ResponseCode::NoError);
    answer.answers = records.to_vec();
    answer
}

/// An answer with nothing but a code.
pub(crate) fn code(question: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::error_msg(question.id, question.op_code, code);
    answer.queries.clone_from(&question.queries);
    answer.metadata.recursion_available = true;
    answer
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

pub(crate) fn a(owner: &str, ttl: u32, address: &str) -> Record {
    let address = A(address.parse().unwrap());
    Record::from_rdata(name(owner), ttl, RData::A(address))
}

pub(crate) fn cname(owner: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}

pub(crate) fn txt(owner: &str, ttl: u32, text: &str) -> Record {
    let text = TXT::new(vec![text.to_owned()]);
    Record::from_rdata(name(owner), ttl, RData::TXT(text))
}

pub(crate) fn soa(owner: &str, ttl: u32, minimum: u32) -> Record {
    let soa = SOA::new(
        name("ns.example."),
        name("post.example."),
        1,
        2,
        3,
        4,
        minimum,
    );
    Record::from_rdata(name(owner), ttl, RData::SOA(soa))
}
