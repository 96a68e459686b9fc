//! `names`: a question from a sandbox's namespace to the engine's resolver, and the same one to the name server that it
//! asks, which answers at once.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use cowslip_e2e::{End, Lab, SITE};
use cowslip_network::RESOLVER;

use crate::table::{Samples, Table, number};
use crate::{Failure, guest};

const ROUNDS: usize = 300;
const RANGE: &str = "10.203.0.0/23";
/// The address of every name.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 35);
/// The length of a message's header; how a name begins that was said before, at the first place after it.
const HEADER: usize = 12;
const SAID_BEFORE: [u8; 2] = [0xc0, 12];
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    let rounds = crate::rounds(ROUNDS)?;
    let server = lab.datagrams(End::Site, SITE, 53);
    std::thread::spawn(move || answer(&server));
    let engine = guest::engine(RANGE, "");
    let _ = engine
        .call(["run", "-d", "--name", "one", "--ttl", "30m"])
        .arg("--allow")
        .arg("*.example.org")
        .arg("box")
        .arg("sleep")
        .arg("10000")
        .ok();
    let namespace = guest::namespace(&engine, RANGE, "one")?;
    let within = guest::inside(&namespace, || socket(RESOLVER))?;
    let outside = socket(SITE)?;
    ask(&within, 0, "known")?;
    let [mut direct, mut known, mut new] = [(); 3].map(|()| Samples::default());
    for round in 0..rounds {
        let id = u16::try_from(round)?;
        let name = format!("n{round}");
        direct.time(ask(&outside, id, &name)?);
        new.time(ask(&within, id, &name)?);
        known.time(ask(&within, id, "known")?);
    }
    let table = Table::new(
        "a question for a name [ms]",
        &["median", "least", "most", "p95", "to direct"],
    );
    for (name, samples) in [
        ("the name server itself", &direct),
        ("the resolver, it asks the server", &new),
        ("the resolver, it knows", &known),
    ] {
        let more = [
            number(samples.quantile(0.95)),
            number(samples.ratio(&direct).median()),
        ];
        table.spread(name, samples, &more);
    }
    println!("{rounds} rounds, in turn; with each answer its address is opened in the rules");
    Ok(())
}

fn socket(to: Ipv4Addr) -> Result<UdpSocket, Failure> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddrV4::new(to, 53))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks for the addresses of a name of example.org; gives how long the answer took.
fn ask(socket: &UdpSocket, id: u16, name: &str) -> Result<Duration, Failure> {
    let mut question = id.to_be_bytes().to_vec();
    // Recursion is wanted; one question, and nothing else.
    question.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [name, "example", "org"] {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let begun = Instant::now();
    socket.send(&question)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    let took = begun.elapsed();
    let found = buffer.get(..length).unwrap_or_default();
    if found.ends_with(&ADDRESS.octets()) || found.windows(4).any(|four| four == ADDRESS.octets()) {
        return Ok(took);
    }
    Err(format!("\"{name}\" was answered with {found:?}").into())
}

/// Answers every question with the address, for as long as it is asked.
fn answer(server: &UdpSocket) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = server.recv_from(&mut buffer) {
        let Some(answer) = buffer.get(..length).and_then(answer_to) else {
            continue;
        };
        // Who does not get it asks again, or fails.
        let _ = server.send_to(&answer, from);
    }
}

fn answer_to(question: &[u8]) -> Option<Vec<u8>> {
    let body = question.get(HEADER..)?;
    let end = body.iter().position(|byte| *byte == 0)? + 5;
    let mut answer = question.get(..2)?.to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(body.get(..end)?);
    answer.extend(SAID_BEFORE);
    // An address, of the internet, for five minutes, four bytes.
    answer.extend([0, 1, 0, 1, 0, 0, 1, 44, 0, 4]);
    answer.extend(ADDRESS.octets());
    Some(answer)
}
