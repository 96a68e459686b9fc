//! Files and directories: contents of any size, with modes, owners and links.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use bytes::Bytes;
use common::Agent;
use cowslip_proto::AgentClient;
use cowslip_proto::client::{CallError, Chunks, WriteOptions};
use cowslip_proto::pb::{FileKind, WatchKind};
use tokio_stream::iter;

async fn all(mut chunks: Chunks) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn put(client: &AgentClient, path: &Path, data: &[u8], options: WriteOptions) -> u64 {
    let content = iter([Ok(Bytes::copy_from_slice(data))]);
    client.write_file(path, options, content).await.unwrap()
}

#[tokio::test]
async fn contents_come_back_as_they_went_in() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let path = agent.dir.path().join("a/b/file");
    let data = (0..5_000_001u32)
        .map(|i| (i % 251) as u8)
        .collect::<Vec<_>>();
    let options = WriteOptions {
        mode: 0o640,
        parents: true,
        ..Default::default()
    };
    assert_eq!(
        put(&client, &path, &data, options.clone()).await,
        data.len() as u64
    );
    assert!(fs::read(&path).unwrap() == data);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    assert!(
        all(client.read_file(&path, 0, 0).await.unwrap())
            .await
            .unwrap()
            == data
    );
    let part = all(client.read_file(&path, 1000, 500).await.unwrap())
        .await
        .unwrap();
    assert!(part == data[1000..1500]);

    // An existing file keeps its mode; empty contents are contents.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    put(&client, &path, b"", options.clone()).await;
    put(
        &client,
        &path,
        b"ab",
        WriteOptions {
            append: true,
            ..options.clone()
        },
    )
    .await;
    put(
        &client,
        &path,
        b"c",
        WriteOptions {
            append: true,
            ..options
        },
    )
    .await;
    assert_eq!(fs::read(&path).unwrap(), b"abc");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn what_cannot_be_read_or_written_says_why_and_nobody_hangs() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let fifo = agent.dir.path().join("fifo");
    std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    let error = client.read_file(&fifo, 0, 0).await.unwrap_err();
    assert!(error.to_string().contains("no regular file"), "{error}");
    let error = client.read_file(agent.dir.path(), 0, 0).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error}");
    let missing = agent.dir.path().join("missing");
    let error = client.read_file(&missing, 0, 0).await.unwrap_err();
    assert!(matches!(error, CallError::NotFound { .. }), "{error}");
    let error = client
        .read_file("relative".as_ref(), 0, 0)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("absolute"), "{error}");
    let options = WriteOptions {
        user: Some("no-such-user".into()),
        ..Default::default()
    };
    let error = client
        .write_file(&missing, options, iter([]))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::NotFound { .. }), "{error}");
    assert!(!missing.exists());

    // A source that fails is an error, never a short file that looks whole.
    let broken = iter([
        Ok(Bytes::from_static(b"half")),
        Err(io::Error::other("gone")),
    ]);
    let error = client
        .write_file(&missing, Default::default(), broken)
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Source { .. }), "{error}");
    assert!(client.hello().await.is_ok());
}

#[tokio::test]
async fn a_tree_is_listed_made_moved_and_removed() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let top = agent.dir.path().join("top");
    client
        .make_dir(&top.join("x/y"), true, 0o711, None)
        .await
        .unwrap();
    client
        .make_dir(&top.join("x/y"), true, 0, None)
        .await
        .unwrap();
    assert!(
        client
            .make_dir(&top.join("x/y"), false, 0, None)
            .await
            .is_err()
    );
    assert_eq!(
        fs::metadata(top.join("x/y")).unwrap().mode() & 0o7777,
        0o711
    );
    symlink("/no/where", top.join("link")).unwrap();
    for i in 0..600 {
        fs::write(top.join(format!("x/f{i}")), "1234").unwrap();
    }
    let files = client.list(&top.join("x"), 10_000).await.unwrap();
    assert_eq!(files.len(), 601);
    assert!(client.list(&top.join("x"), 100).await.is_err());
    let file = files.iter().find(|f| f.name == b"f7").unwrap();
    assert_eq!((file.kind(), file.size), (FileKind::File, 4));
    let link = client.stat(&top.join("link"), false).await.unwrap();
    assert_eq!(
        (link.kind(), link.target.as_slice()),
        (FileKind::Symlink, &b"/no/where"[..])
    );
    assert!(client.stat(&top.join("link"), true).await.is_err());

    client.rename(&top.join("x"), &top.join("z")).await.unwrap();
    assert!(!top.join("x").exists() && top.join("z/f0").exists());
    assert!(client.remove(&top, false).await.is_err());
    client.remove(&top.join("link"), false).await.unwrap();
    client.remove(&top, true).await.unwrap();
    assert!(!top.exists());
    assert!(matches!(
        client.remove(&top, true).await,
        Err(CallError::NotFound { .. })
    ));
    assert!(client.remove("/".as_ref(), true).await.is_err());
}

#[tokio::test]
async fn an_archive_carries_a_tree_as_it_is() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let from = agent.dir.path().join("from");
    fs::create_dir_all(from.join("sub/empty")).unwrap();
    fs::write(from.join("file"), vec![7; 100_000]).unwrap();
    fs::hard_link(from.join("file"), from.join("sub/same")).unwrap();
    symlink("../file", from.join("sub/link")).unwrap();
    let long = "n".repeat(200);
    fs::write(from.join(&long), "long").unwrap();
    fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o1750)).unwrap();
    fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o4755)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(from.join(&long), Some(4711), Some(4712)).unwrap();
    }
    let stamp = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for name in ["file", "sub"] {
        fs::File::open(from.join(name))
            .unwrap()
            .set_modified(stamp)
            .unwrap();
    }

    let name = Path::new("renamed");
    let archive = client.read_tar(&from, Some(name), false).await.unwrap();
    let archive = Bytes::from(all(archive).await.unwrap());
    let again = client.read_tar(&from, Some(name), false).await.unwrap();
    assert!(all(again).await.unwrap() == archive);

    let to = agent.dir.path().join("to");
    fs::create_dir(&to).unwrap();
    // What is there already: a link that must not be followed, a file in the way.
    fs::create_dir_all(to.join("renamed")).unwrap();
    let outside = agent.dir.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    symlink(&outside, to.join("renamed/file")).unwrap();
    let unpacked = client
        .write_tar(&to, None, iter([Ok(archive.clone())]))
        .await
        .unwrap();
    assert_eq!(unpacked, 7);
    let got = to.join("renamed");
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
    assert!(fs::read(got.join("file")).unwrap() == vec![7; 100_000]);
    let meta = |name: &str| fs::symlink_metadata(got.join(name)).unwrap();
    assert_eq!(meta("file").mode() & 0o7777, 0o4755);
    assert_eq!(meta("file").ino(), meta("sub/same").ino());
    assert_eq!(meta("sub").mode() & 0o7777, 0o1750);
    assert_eq!(
        (meta("file").mtime(), meta("sub").mtime()),
        (1_000_000_000, 1_000_000_000)
    );
    assert_eq!(
        fs::read_link(got.join("sub/link")).unwrap(),
        Path::new("../file")
    );
    assert!(got.join("sub/empty").is_dir());
    if root {
        assert_eq!((meta(&long).uid(), meta(&long).gid()), (4711, 4712));
        client
            .write_tar(&to, Some("1:2"), iter([Ok(archive)]))
            .await
            .unwrap();
        assert_eq!((meta("file").uid(), meta("file").gid()), (1, 2));
        assert_eq!(meta("file").mode() & 0o7777, 0o4755);
    }
}

#[tokio::test]
async fn a_single_file_is_an_archive_too() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let path = agent.dir.path().join("one");
    fs::write(&path, "1").unwrap();
    let archive = all(client.read_tar(&path, None, false).await.unwrap())
        .await
        .unwrap();
    let mut archive = tar::Archive::new(archive.as_slice());
    let names = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().path().unwrap().into_owned());
    assert_eq!(names.collect::<Vec<_>>(), [Path::new("one")]);
    let missing = agent.dir.path().join("missing");
    let error = client.read_tar(&missing, None, false).await.unwrap_err();
    assert!(matches!(error, CallError::NotFound { .. }), "{error}");
    let error = client
        .write_tar(&missing, None, iter([]))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn an_archive_that_leads_out_or_breaks_off_is_refused() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let to = agent.dir.path().join("to");
    fs::create_dir(&to).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
    header.set_cksum();
    builder.append(&header, &b"evil"[..]).unwrap();
    let evil = Bytes::from(builder.into_inner().unwrap());
    let error = client
        .write_tar(&to, None, iter([Ok(evil)]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
    assert!(!agent.dir.path().join("escape").exists());

    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(10_000);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "big", &vec![1; 10_000][..])
        .unwrap();
    let cut = Bytes::from(builder.into_inner().unwrap()).slice(..6000);
    let error = client
        .write_tar(&to, None, iter([Ok(cut)]))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error}");
    let garbage = Bytes::from(vec![b'x'; 2048]);
    assert!(
        client
            .write_tar(&to, None, iter([Ok(garbage)]))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn changes_are_reported_as_they_happen() {
    let agent = Agent::start(false);
    let client = agent.connect().await;
    let top = agent.dir.path().join("top");
    fs::create_dir_all(top.join("old")).unwrap();
    let mut watch = client.watch(&top, true).await.unwrap();
    let mut expect = async |kind: WatchKind, path: &str| loop {
        let event = watch.next().await.unwrap().unwrap();
        if event.kind() == kind {
            assert_eq!(String::from_utf8(event.path).unwrap(), path);
            return;
        }
    };
    fs::write(top.join("old/a"), "1").unwrap();
    expect(WatchKind::Created, "old/a").await;
    expect(WatchKind::Modified, "old/a").await;
    fs::rename(top.join("old/a"), top.join("b")).unwrap();
    expect(WatchKind::RenamedFrom, "old/a").await;
    expect(WatchKind::RenamedTo, "b").await;
    fs::create_dir(top.join("new")).unwrap();
    expect(WatchKind::Created, "new").await;
    // The new directory is watched by the time that its creation was told.
    fs::write(top.join("new/c"), "").unwrap();
    expect(WatchKind::Created, "new/c").await;
    fs::remove_file(top.join("b")).unwrap();
    expect(WatchKind::Removed, "b").await;
    fs::remove_dir_all(&top).unwrap();
    while watch.next().await.is_ok() {}
    assert!(client.watch(&top, false).await.is_err());
}
