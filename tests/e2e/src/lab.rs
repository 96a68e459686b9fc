//! A host with an internet: two network namespaces, one for the program under test and one for all that it reaches.
//!
//! ```text
//!  guests ── cow….N [host: 93.184.216.1, 10.9.9.1] ── eth0 [site: 93.184.216.34, 10.9.9.9, 169.254.169.254]
//! ```

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::names::Names;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A server of the internet.
pub const SITE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
/// Another one.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 35);
/// What else the site can be reached by: an address that is private, and the one of a cloud's metadata.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
/// The latter.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The host's address in the internet.
pub const HOST: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 1);
/// Its private one.
pub const HOST_PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);

/// The namespaces; they go with it.
pub struct Lab(String);

/// One end of the cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where engines run.
    Host,
    /// The internet.
    Site,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Site => "site",
        }
    }
}

impl Lab {
    /// Makes one; none where this machine cannot have any.
    ///
    /// # Panics
    /// When it fails half-way.
    #[must_use]
    pub fn new() -> Option<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: networks of sandboxes need root");
            return None;
        }
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = Self(format!("cowlab{}-{number}", std::process::id()));
        for end in [End::Host, End::Site] {
            ip(&["netns", "add", &lab.name(end)]);
            lab.ip(end, "link set lo up");
        }
        let site = lab.name(End::Site);
        lab.ip(
            End::Host,
            &format!("link add name eth0 type veth peer name eth0 netns {site}"),
        );
        for (end, addresses) in [
            (End::Host, &[(HOST, 24), (HOST_PRIVATE, 24)][..]),
            (
                End::Site,
                &[(SITE, 24), (OTHER, 24), (PRIVATE, 24), (METADATA, 32)],
            ),
        ] {
            for (address, prefix) in addresses {
                lab.ip(end, &format!("address add {address}/{prefix} dev eth0"));
            }
            lab.ip(end, "link set eth0 up");
        }
        lab.ip(End::Host, &format!("route add default via {SITE}"));
        Some(lab)
    }

    fn name(&self, end: End) -> String {
        format!("{}-{}", self.0, end.name())
    }

    /// The name of a namespace in the file system.
    #[must_use]
    pub fn path(&self, end: End) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name(end))
    }

    fn ip(&self, end: End, words: &str) {
        let name = self.name(end);
        ip(&["-n", &name]
            .into_iter()
            .chain(words.split_whitespace())
            .collect::<Vec<_>>());
    }

    /// Does something in a namespace.
    ///
    /// # Panics
    /// When that panics.
    pub fn inside<T: Send>(&self, end: End, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path(end)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), network).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Serves whoever connects to these ports: with a page that says as whom he is seen.
    ///
    /// # Panics
    /// When a port is taken.
    pub fn serve(&self, end: End, ports: &[u16]) {
        for port in ports {
            let listener = self.inside(end, || TcpListener::bind(("0.0.0.0", *port)).unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || page(stream));
                }
            });
        }
    }

    /// Gives whoever connects to a port so many bytes.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn serve_bytes(&self, end: End, port: u16, length: usize) {
        let listener = self.inside(end, || TcpListener::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 512];
                let _ = stream.read(&mut request);
                let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
                // One that has enough goes.
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&vec![b'x'; length]);
            }
        });
    }

    /// Takes connections on a port, and says nothing to anybody.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn serve_silently(&self, end: End, port: u16) {
        let listener = self.inside(end, || TcpListener::bind(("0.0.0.0", port)).unwrap());
        std::thread::spawn(move || {
            let held: Vec<TcpStream> = listener.incoming().flatten().collect();
            drop(held);
        });
    }

    /// What a server says to a connection from one end; none where there is no answer.
    #[must_use]
    pub fn ask(&self, from: End, to: Ipv4Addr, port: u16) -> Option<String> {
        self.inside(from, || {
            let to = SocketAddr::from((to, port));
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20)).ok()?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text)
        })
    }

    /// A socket for datagrams at one end.
    ///
    /// # Panics
    /// When the port is taken.
    #[must_use]
    pub fn datagrams(&self, end: End, address: Ipv4Addr, port: u16) -> UdpSocket {
        self.inside(end, || UdpSocket::bind((address, port)).unwrap())
    }

    /// A name server of the internet, at [`SITE`].
    ///
    /// # Panics
    /// When the port is taken.
    #[must_use]
    pub fn names(&self) -> Names {
        let names = Names::default();
        names.serve(self.datagrams(End::Site, SITE, 53));
        names
    }

    /// What a command says that runs at one end.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn command(&self, end: End, words: &[&str]) -> String {
        let output = self.inside(end, || Command::new(words[0]).args(&words[1..]).output());
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }
}

fn page(mut stream: TcpStream) {
    let seen = stream.peer_addr().unwrap().ip();
    let body = format!("you are {seen}\n");
    let mut request = [0; 512];
    // One that asks nothing is told anyway.
    let _ = stream.read(&mut request);
    let _ = write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().unwrap();
    assert!(output.status.success(), "ip {words:?}: {output:?}");
}

impl Drop for Lab {
    fn drop(&mut self) {
        for end in [End::Host, End::Site] {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.name(end)])
                .output();
        }
    }
}
