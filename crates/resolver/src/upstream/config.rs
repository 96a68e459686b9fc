//! Which servers there are: resolv.conf(5).

use std::fs::Metadata;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::UpstreamError;

/// What the C library takes of what a file says.
const SERVERS_MAX: usize = 3;
const TIMEOUT_MAX: u64 = 30;
const ATTEMPTS_MAX: u32 = 5;
/// How long a server has where the file does not say: less than the C library's 5 seconds, after which the guest asks
/// again, so that the next server is asked before.
const TIMEOUT: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 2;
/// Bytes of the file.
const FILE_MAX: u64 = 64 << 10;
/// The port of name servers.
const PORT: u16 = 53;

/// Servers, and how they are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers {
    /// In the order in which they are asked.
    pub addresses: Vec<SocketAddr>,
    /// How long each has for an answer.
    pub timeout: Duration,
    /// How often all of them are asked.
    pub attempts: u32,
}

impl Default for Servers {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            timeout: TIMEOUT,
            attempts: ATTEMPTS,
        }
    }
}

impl Servers {
    /// What a file says. What is not understood is left out, as the C library does; without a server, the host itself
    /// is one.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut servers = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if servers.addresses.len() < SERVERS_MAX => {
                    servers.addresses.extend(words.next().and_then(server));
                }
                Some("options") => words.for_each(|word| servers.option(word)),
                _ => {}
            }
        }
        if servers.addresses.is_empty() {
            servers.addresses.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        servers
    }

    fn option(&mut self, word: &str) {
        match word.split_once(':') {
            Some(("timeout", value)) => {
                if let Ok(seconds) = value.parse::<u64>() {
                    self.timeout = Duration::from_secs(seconds.clamp(1, TIMEOUT_MAX));
                }
            }
            Some(("attempts", value)) => {
                if let Ok(attempts) = value.parse::<u32>() {
                    self.attempts = attempts.clamp(1, ATTEMPTS_MAX);
                }
            }
            _ => {}
        }
    }
}

/// An address, and for one of a link the number of the link: `fe80::1%2`.
fn server(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, PORT).into());
    }
    let (address, link) = text.split_once('%')?;
    let (address, link) = (address.parse().ok()?, link.parse().ok()?);
    Some(SocketAddrV6::new(address, PORT, 0, link).into())
}

/// A file that names servers, read again when it is another.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<Servers>)>>,
}

/// What tells a file from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

impl Watched {
    pub(super) const fn new(path: PathBuf) -> Self {
        let read = Mutex::new(None);
        Self { path, read }
    }

    /// The servers. While the file cannot be read (it is being replaced), those of before.
    pub(super) async fn servers(&self) -> Result<Arc<Servers>, UpstreamError> {
        let known = self
            .read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match (
            self.newer(known.as_ref().map(|(stamp, _)| *stamp)).await,
            known,
        ) {
            (Ok(Some((stamp, servers))), _) => {
                let servers = Arc::new(servers);
                let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
                *read = Some((stamp, Arc::clone(&servers)));
                Ok(servers)
            }
            (_, Some((_, servers))) => Ok(servers),
            (result, None) => Err(UpstreamError::Servers {
                path: self.path.clone(),
                source: match result {
                    Err(source) => source,
                    Ok(_) => io::ErrorKind::NotFound.into(),
                },
            }),
        }
    }

    /// What the file says, if it is not the one that is known.
    async fn newer(&self, known: Option<Stamp>) -> io::Result<Option<(Stamp, Servers)>> {
        let stamp = Stamp::from(&tokio::fs::metadata(&self.path).await?);
        if known == Some(stamp) {
            return Ok(None);
        }
        let file = tokio::fs::File::open(&self.path).await?;
        // Of what is read, if it was replaced meanwhile.
        let stamp = Stamp::from(&file.metadata().await?);
        let mut text = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut text).await?;
        let servers = Servers::parse(&String::from_utf8_lossy(&text));
        Ok(Some((stamp, servers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_file_is_read_as_the_c_library_reads_it() {
        let text = "# nameserver 9.9.9.9\n; nameserver 9.9.9.9\nsearch example.org\n\
                    nameserver 127.0.0.53 # the stub\n nameserver\t2001:db8::1\nnameserver fe80::1%2\n\
                    nameserver 1.1.1.1\noptions edns0 timeout:3 trust-ad\noptions attempts:4 rotate\n";
        let servers = Servers {
            addresses: addresses(&["127.0.0.53:53", "[2001:db8::1]:53", "[fe80::1%2]:53"]),
            timeout: Duration::from_secs(3),
            attempts: 4,
        };
        assert_eq!(Servers::parse(text), servers);
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let text = "nameserver\nnameserver x\nnameserver fe80::1%eth0\nnameservers 1.1.1.1\noptions timeout:x attempts\n";
        let servers = Servers {
            addresses: addresses(&["127.0.0.1:53"]),
            ..Servers::default()
        };
        assert_eq!(Servers::parse(text), servers);
        let bounded = Servers::parse("options timeout:0 attempts:0\n");
        assert_eq!((bounded.timeout.as_secs(), bounded.attempts), (1, 1));
        let bounded = Servers::parse("options timeout:999 attempts:999\n");
        assert_eq!((bounded.timeout.as_secs(), bounded.attempts), (30, 5));
    }

    #[tokio::test]
    async fn a_file_that_is_another_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resolv.conf");
        let watched = Watched::new(path.clone());
        let error = watched.servers().await.unwrap_err().to_string();
        assert!(error.contains("resolv.conf"), "{error}");

        std::fs::write(&path, "nameserver 1.1.1.1\n").unwrap();
        let first = watched.servers().await.unwrap();
        assert_eq!(first.addresses, addresses(&["1.1.1.1:53"]));
        assert!(Arc::ptr_eq(&first, &watched.servers().await.unwrap()));

        // As it is replaced on hosts: by a rename.
        let new = directory.path().join("new");
        std::fs::write(&new, "nameserver 2.2.2.2\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        let second = watched.servers().await.unwrap();
        assert_eq!(second.addresses, addresses(&["2.2.2.2:53"]));

        std::fs::remove_file(&path).unwrap();
        assert!(Arc::ptr_eq(&second, &watched.servers().await.unwrap()));
    }
}
