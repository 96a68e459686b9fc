//! Users and groups, read from the guest's own `/etc/passwd` and `/etc/group`.
//!
//! Read by hand: the C library's way loads plug-ins from the guest's disk into the agent. The
//! files belong to the guest and may be anything: only regular files are read, and only so much.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Most that is read of either file.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Most supplementary groups of one user (the kernel's bound is 65,536).
const MAX_GROUPS: usize = 1024;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// From `/etc/passwd`.
    pub(crate) home: Option<String>,
}

/// What was asked for does not exist in the guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UserError {
    #[error("no user \"{0}\" in the sandbox's /etc/passwd")]
    User(String),
    #[error("no group \"{0}\" in the sandbox's /etc/group")]
    Group(String),
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `""` (root), `user`, or `user:group`, each a name or a number. A number needs no
/// entry. As docker has it, a group that is named explicitly is the only one.
pub(crate) fn resolve(spec: &str, root: &Path) -> Result<Identity, UserError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let users = read(&root.join("etc/passwd"))
        .lines()
        .filter_map(passwd)
        .collect::<Vec<_>>();
    let entry = users
        .iter()
        .find(|u| u.name == user)
        .or_else(|| number(user).and_then(|uid| users.iter().find(|u| u.uid == uid)));
    let uid = match entry {
        Some(entry) => entry.uid,
        None => number(user).ok_or_else(|| UserError::User(user.to_owned()))?,
    };
    let home = entry.map(|e| e.home.clone());
    let groups = read(&root.join("etc/group"));
    let mut groups = groups.lines().filter_map(self::group);
    if let Some(group) = group {
        let known = groups.find(|g| g.name == group).map(|g| g.gid);
        let gid = known.or_else(|| number(group));
        let gid = gid.ok_or_else(|| UserError::Group(group.to_owned()))?;
        return Ok(Identity {
            uid,
            gid,
            groups: vec![gid],
            home,
        });
    }
    let gid = entry.map_or(0, |e| e.gid);
    let mut all = vec![gid];
    if let Some(entry) = entry {
        let member = groups
            .filter(|g| g.members.contains(&entry.name))
            .map(|g| g.gid);
        for gid in member.take(MAX_GROUPS) {
            if !all.contains(&gid) {
                all.push(gid);
            }
        }
    }
    Ok(Identity {
        uid,
        gid,
        groups: all,
        home,
    })
}

/// A uid or gid; the highest number means "leave as it is" to the kernel and is none.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&n| digits && n != u32::MAX)
}

fn passwd(line: &str) -> Option<Passwd> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    let home = fields.nth(1)?.to_owned();
    Some(Passwd {
        name,
        uid,
        gid,
        home,
    })
}

fn group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let gid = number(fields.nth(1)?)?;
    let members = fields
        .next()
        .unwrap_or_default()
        .split(',')
        .map(str::to_owned)
        .collect();
    Some(Group { name, gid, members })
}

/// The file's text; empty when there is no such regular file.
fn read(path: &Path) -> String {
    // Not blocking: it may be a named pipe that nobody writes to.
    let options = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let Ok(file) = options else {
        return String::new();
    };
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    if file.take(MAX_BYTES).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:\n1000:x:7:7::/odd:\nbad\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:web,root\nkeys:x:41:web\n";

    fn with(spec: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(root.path().join("etc/group"), group).unwrap();
        resolve(spec, root.path())
    }

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let id = with(spec, PASSWD, GROUP).unwrap();
        (id.uid, id.gid, id.groups)
    }

    // covers R56
    #[test]
    fn a_user_gets_the_ids_that_the_sandbox_says() {
        assert_eq!(ids(""), (0, 0, vec![0, 40]));
        assert_eq!(ids("web"), (33, 34, vec![34, 40, 41]));
        assert_eq!(ids("33"), (33, 34, vec![34, 40, 41]));
        assert_eq!(ids("web:logs"), (33, 40, vec![40]));
        assert_eq!(ids("5:6"), (5, 6, vec![6]));
        assert_eq!(ids("5"), (5, 0, vec![0]));
        // A name that looks like a number is a name first.
        assert_eq!(ids("1000"), (7, 7, vec![7]));
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        let no_user = |s: &str| Err(UserError::User(s.into()));
        assert_eq!(with("nobody", PASSWD, GROUP), no_user("nobody"));
        assert_eq!(with("4294967295", PASSWD, GROUP), no_user("4294967295"));
        assert_eq!(with("-1", PASSWD, GROUP), no_user("-1"));
        assert_eq!(with("+5", PASSWD, GROUP), no_user("+5"));
        assert_eq!(
            with("web:x", PASSWD, GROUP),
            Err(UserError::Group("x".into()))
        );
        assert_eq!(
            with("web:", PASSWD, GROUP),
            Err(UserError::Group("".into()))
        );
    }

    #[test]
    fn numbers_work_without_any_file() {
        let id = resolve("1:2", Path::new("/nonexistent")).unwrap();
        assert_eq!((id.uid, id.gid), (1, 2));
    }
}
