//! A name server of the internet: as much of DNS as a question for addresses takes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};

/// Names and the addresses that they have now.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<BTreeMap<String, Vec<Ipv4Addr>>>>);

/// What each answer says of how long it holds, in seconds.
const TTL: u32 = 1;
const HEADER: usize = 12;

impl Names {
    /// Gives a name these addresses from now on.
    ///
    /// # Panics
    /// When the server has.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        let mut names = self.0.lock().unwrap();
        names.insert(name.to_owned(), addresses.to_vec());
    }

    /// Answers whoever asks at a socket, for as long as the process lives.
    pub(crate) fn serve(&self, socket: UdpSocket) {
        let names = self.clone();
        std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                if let Some(answer) = names.answer(&packet[..length]) {
                    // Who is gone misses nothing.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
    }

    /// RFC 1035: the question again, and an answer for each address.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (mut name, mut at) = (Vec::new(), HEADER);
        loop {
            let length = usize::from(*question.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            name.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
            at += length;
        }
        let kind = u16::from_be_bytes(*question.get(at..)?.first_chunk()?);
        let end = at + 4;
        let found = self.0.lock().unwrap().get(&name.join(".")).cloned();
        let addresses = match (&found, kind) {
            (Some(addresses), 1) => addresses.clone(),
            _ => Vec::new(),
        };
        let mut answer = question.get(..end)?.to_vec();
        // An answer, recursion is there; a name that is not.
        answer[2..4].copy_from_slice(&[0x81, if found.is_some() { 0x80 } else { 0x83 }]);
        answer[4..12].copy_from_slice(&[0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
        for address in addresses {
            answer.extend([0xc0, 0x0c, 0, 1, 0, 1]);
            answer.extend(TTL.to_be_bytes());
            answer.extend([0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    }
}
