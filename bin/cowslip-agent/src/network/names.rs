//! Who is asked for names, and the guest's own: /etc/resolv.conf and /etc/hosts.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::machine::etc;

/// Ends the line of ours in /etc/hosts, as a comment.
const MARK: &str = "# cowslip";
/// The address of a guest's own name where it has no network, as Debian has it.
const NO_NETWORK: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
/// Files of this size are not read: lists of names to block are large, but not so large. In bytes.
const MAX_HOSTS: u64 = 16 * 1024 * 1024;

/// Says whom to ask.
pub(crate) fn set_resolvers(directory: &Path, resolvers: &[Ipv4Addr]) -> io::Result<()> {
    if resolvers.is_empty() {
        return Ok(());
    }
    let lines = resolvers.iter().map(|to| format!("nameserver {to}\n"));
    etc::write(
        directory,
        "resolv.conf",
        lines.collect::<String>().as_bytes(),
    )
}

/// Makes the guest know its own name, and `localhost`. Lines of others stay as they are.
pub(crate) fn set_own_name(
    directory: &Path,
    hostname: &str,
    address: Option<Ipv4Addr>,
) -> io::Result<()> {
    let Some(before) = etc::read(directory, "hosts", MAX_HOSTS)? else {
        // A file that nobody can mean to be looked at for every name.
        return Ok(());
    };
    let after = with_own_name(&before, hostname, address.unwrap_or(NO_NETWORK));
    etc::write(directory, "hosts", &after)
}

fn with_own_name(before: &[u8], hostname: &str, address: Ipv4Addr) -> Vec<u8> {
    let ours = |line: &&[u8]| line.trim_ascii_end().ends_with(MARK.as_bytes());
    let text = before.strip_suffix(b"\n").unwrap_or(before);
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    lines.retain(|line| !ours(line));
    if text.is_empty() {
        lines.clear();
    }
    let own = format!("{address}\t{hostname}\t{MARK}");
    if !hostname.is_empty() {
        lines.push(own.as_bytes());
    }
    if !lines.iter().any(|line| names(line, b"localhost")) {
        lines.insert(0, b"127.0.0.1\tlocalhost");
    }
    let mut after = lines.join(&b'\n');
    after.push(b'\n');
    after
}

/// Does a line of hosts(5) give an address to a name?
fn names(line: &[u8], name: &[u8]) -> bool {
    let code = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let mut words = code
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    words.next().is_some() && words.any(|word| word == name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

    fn hosts(before: &str, hostname: &str, address: Ipv4Addr) -> String {
        let after = with_own_name(before.as_bytes(), hostname, address);
        String::from_utf8(after).unwrap()
    }

    #[test]
    fn lines_of_others_stay_and_ours_is_one() {
        let theirs =
            "# theirs\n127.0.0.1 localhost\n::1 ip6-localhost\n\n10.9.9.9 db # a cowslip\n";
        let once = hosts(theirs, "one", GUEST);
        assert_eq!(once, format!("{theirs}10.0.2.15\tone\t# cowslip\n"));
        assert_eq!(hosts(&once, "one", GUEST), once);
        // A fork has another name; what was added after our line is not ours.
        let more = format!("{once}10.9.9.8 cache");
        let fork = hosts(&more, "two", NO_NETWORK);
        assert_eq!(
            fork,
            format!("{theirs}10.9.9.8 cache\n127.0.1.1\ttwo\t# cowslip\n")
        );
    }

    #[test]
    fn localhost_is_known_even_where_nothing_was() {
        let made = "127.0.0.1\tlocalhost\n10.0.2.15\tone\t# cowslip\n";
        assert_eq!(hosts("", "one", GUEST), made);
        assert_eq!(hosts("\n", "one", GUEST).lines().count(), 2);
        for unknown in ["# 127.0.0.1 localhost\n", "localhost\n", "::1 localhost6\n"] {
            let after = hosts(unknown, "one", GUEST);
            assert!(after.starts_with("127.0.0.1\tlocalhost\n"), "{after}");
            assert!(after.contains(unknown), "{after}");
        }
        assert!(!hosts("::1 a localhost#x\n", "one", GUEST).contains("127.0.0.1"));
    }

    #[test]
    fn files_are_made_where_there_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        set_own_name(&etc, "one", None).unwrap();
        set_resolvers(&etc, &[]).unwrap();
        let hosts = fs::read_to_string(etc.join("hosts")).unwrap();
        assert_eq!(hosts, "127.0.0.1\tlocalhost\n127.0.1.1\tone\t# cowslip\n");
        assert!(!etc.join("resolv.conf").exists());
    }

    #[test]
    fn a_link_is_replaced_and_what_it_leads_to_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("stub"));
        fs::create_dir(&etc).unwrap();
        fs::write(&run, "nameserver 127.0.0.53\n").unwrap();
        std::os::unix::fs::symlink(&run, etc.join("resolv.conf")).unwrap();
        std::os::unix::fs::symlink(&run, etc.join("hosts")).unwrap();
        let resolvers = [Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(9, 9, 9, 9)];
        set_resolvers(&etc, &resolvers).unwrap();
        let text = fs::read_to_string(etc.join("resolv.conf")).unwrap();
        assert_eq!(text, "nameserver 10.0.2.3\nnameserver 9.9.9.9\n");
        assert!(!etc.join("resolv.conf").is_symlink());
        set_own_name(&etc, "one", None).unwrap();
        assert!(!etc.join("hosts").is_symlink());
        let left = fs::read_to_string(&run).unwrap();
        assert_eq!(left, "nameserver 127.0.0.53\n");
        // A link to what is wanted is none of ours either: it would change with its target.
        fs::remove_file(etc.join("resolv.conf")).unwrap();
        fs::write(&run, text).unwrap();
        std::os::unix::fs::symlink(&run, etc.join("resolv.conf")).unwrap();
        set_resolvers(&etc, &resolvers).unwrap();
        assert!(!etc.join("resolv.conf").is_symlink());
    }
}
