//! Real file systems for tests: made by `mke2fs`, changed by `debugfs`, checked by `e2fsck`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of each disk, in bytes.
pub(crate) const SIZE: u64 = 24 << 20;

/// One file system at three times; each differs from the one before it in several places.
pub(crate) struct Ages {
    pub(crate) paths: [PathBuf; 3],
    pub(crate) dir: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program} (package e2fsprogs) is needed: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

impl Ages {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let root = at("root");
        std::fs::create_dir(&root).unwrap();
        for (name, length) in [("small", 100), ("large", 3 << 20), ("gone", 1 << 20)] {
            std::fs::write(root.join(name), vec![b'a'; length]).unwrap();
        }
        let paths = ["first", "second", "third"].map(at);
        let first = text(&paths[0]);
        run(
            "mke2fs",
            &[
                "-q",
                "-F",
                "-t",
                "ext4",
                "-b",
                "4096",
                "-d",
                &text(&root),
                &first,
                "24M",
            ],
        );
        let second = at("added");
        std::fs::write(&second, vec![b'b'; 1 << 20]).unwrap();
        std::fs::copy(&paths[0], &paths[1]).unwrap();
        for command in [
            format!("write {} added", text(&second)),
            "rm gone".to_owned(),
            "mkdir dir".to_owned(),
        ] {
            run("debugfs", &["-w", "-R", &command, &text(&paths[1])]);
        }
        let third = at("later");
        std::fs::write(&third, vec![b'c'; 2 << 20]).unwrap();
        std::fs::copy(&paths[1], &paths[2]).unwrap();
        for command in [
            format!("write {} dir/later", text(&third)),
            "rm small".to_owned(),
        ] {
            run("debugfs", &["-w", "-R", &command, &text(&paths[2])]);
        }
        Self { paths, dir }
    }

    /// Blocks of 4 KiB in which one age differs from the one before it, with their content.
    pub(crate) fn changed(&self, age: usize) -> Vec<(u64, Vec<u8>)> {
        let [before, after] = [age - 1, age].map(|age| std::fs::read(&self.paths[age]).unwrap());
        let blocks = before.chunks(4096).zip(after.chunks(4096));
        let changed: Vec<_> = (0..)
            .zip(blocks)
            .filter(|(_, (one, other))| one != other)
            .map(|(block, (_, other))| (block, other.to_vec()))
            .collect();
        assert!(changed.len() > 10, "{} blocks changed", changed.len());
        changed
    }
}

/// The image is a clean file system with what the third age has.
pub(crate) fn assert_third(image: &Path) {
    let path = image.to_str().unwrap();
    run("e2fsck", &["-fn", path]);
    let listed = run("debugfs", &["-R", "ls -p /", path]);
    for name in ["large", "added", "dir"] {
        assert!(listed.contains(&format!("/{name}/")), "{listed}");
    }
    assert!(
        !listed.contains("/small/") && !listed.contains("/gone/"),
        "{listed}"
    );
    let later = run("debugfs", &["-R", "cat dir/later", path]);
    assert!(later.len() == 2 << 20 && later.bytes().all(|byte| byte == b'c'));
}
