//! `cp`: files between the host and a sandbox, both ways.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use cowslip_e2e::{Instance, Kernel, Setup, Tar, read_tar};

#[test]
fn copies_both_ways() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("run -d --name one box").ok();
    let at = |name: &str| host.scratch().join(name);

    fs::write(at("file"), b"content\n").unwrap();
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o751)).unwrap();
    let _ = host.say("cp file one:/root/file").ok();
    assert_eq!(
        host.sh("one", "cat /root/file; stat -c %a /root/file").ok(),
        "content\n751"
    );
    let _ = host.say("cp one:/root/file back").ok();
    assert_eq!(fs::read(at("back")).unwrap(), b"content\n");
    assert_eq!(fs::metadata(at("back")).unwrap().mode() & 0o777, 0o751);

    fs::create_dir_all(at("tree/a/b")).unwrap();
    fs::write(at("tree/a/b/leaf"), b"leaf").unwrap();
    symlink("../leaf-to-be", at("tree/a/link")).unwrap();
    symlink("/etc/passwd", at("tree/absolute")).unwrap();
    let _ = host.say("cp tree one:/root/tree").ok();
    let script = "cd /root/tree; cat a/b/leaf; echo; readlink a/link; readlink absolute";
    assert_eq!(
        host.sh("one", script).ok(),
        "leaf\n../leaf-to-be\n/etc/passwd"
    );
    // What leads out of the copy is left out, and said, unless it is asked for.
    let done = host.say("cp one:/root/tree tree-back").run();
    assert!(
        done.stderr.contains("\"absolute\"") && done.stderr.contains("--keep-links"),
        "{done}"
    );
    assert!(at("tree-back/absolute").symlink_metadata().is_err());
    let _ = host.say("cp --keep-links one:/root/tree tree-kept").ok();
    assert_eq!(fs::read(at("tree-back/a/b/leaf")).unwrap(), b"leaf");
    assert_eq!(
        fs::read_link(at("tree-kept/absolute")).unwrap().to_str(),
        Some("/etc/passwd")
    );

    // Large and mostly holes: the content arrives, and a copy does not fill either disk.
    let sparse = fs::File::create(at("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 40 << 20).unwrap();
    drop(sparse);
    let _ = host.say("cp sparse one:/root/sparse").ok();
    let script =
        "wc -c </root/sparse; tail -c 3 /root/sparse; echo; md5sum </root/sparse | cut -c1-32";
    let sum = std::process::Command::new("md5sum")
        .arg(at("sparse"))
        .output()
        .unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    let want = format!("{}\nend\n{}", (40 << 20) + 3, &sum[..32]);
    assert_eq!(host.sh("one", script).ok(), want);

    // "-" is a tar on the standard streams, as docker has it.
    let tar = Tar::default()
        .directory("from-tar", 0o755)
        .file("from-tar/x", 0o600, b"tarred")
        .bytes();
    let _ = host.say("cp - one:/root").stdin(tar).ok();
    assert_eq!(host.sh("one", "cat /root/from-tar/x").ok(), "tarred");
    let done = host.say("cp one:/root/from-tar -").run();
    assert_eq!(done.code, 0, "{done}");
    let names = read_tar(&done.stdout);
    assert!(names.iter().any(|name| name.ends_with('x')), "{names:?}");

    host.say("cp one:/root/no-such here")
        .run()
        .refused(&["/root/no-such"]);
    host.say("cp no-such one:/root").run().refused(&["no-such"]);
    host.say("cp file nobody:/root")
        .run()
        .refused(&["\"nobody\""]);
}

/// What a guest says is hostile: a tree whose links lead out of the target stays inside it.
#[test]
fn a_guests_links_lead_nowhere() {
    // covers R59
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let _ = host.say("run -d --name one box").ok();
    let outside = host.scratch().join("outside");
    fs::create_dir(&outside).unwrap();
    let script = format!(
        "mkdir -p /root/t/sub; ln -s {0} /root/t/link; ln -s ../../outside /root/t/sub/up; echo x >/root/t/f",
        outside.display()
    );
    let _ = host.sh("one", &script).ok();
    let _ = host.say("cp one:/root/t here").ok();
    // The same once more, now that the links are there to be written through.
    let _ = host
        .sh(
            "one",
            "rm /root/t/link; mkdir /root/t/link; echo evil >/root/t/link/planted",
        )
        .ok();
    let done = host.say("cp one:/root/t/. here").run();
    assert!(done.code == 0 || done.code == 125, "{done}");
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "written through a link: {done}"
    );
}
