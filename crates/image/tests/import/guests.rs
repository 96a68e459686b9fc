//! Images that others wrote: a kernel's ext4 as guests have it, and `mke2fs` with other features.

use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use cowslip_image::{Limits, seal_image};
use cowslip_test_parts::{Listing, special_files};
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, XattrFlags, fallocate, lsetxattr, mknodat};

use crate::export::acl;
use crate::reference::list_host;
use crate::support::{Bench, assert_clean, gnu_untar, tool};

/// Options of `mke2fs`: what guests, other distributions and other versions make.
const FORMATS: [&[&str]; 7] = [
    &["-b", "4096", "-O", "metadata_csum,64bit"],
    &["-b", "1024", "-O", "^metadata_csum,^64bit"],
    &["-b", "2048", "-O", "metadata_csum,64bit", "-I", "512"],
    &["-b", "1024", "-O", "metadata_csum,^64bit", "-I", "128"],
    &[
        "-b",
        "1024",
        "-O",
        "meta_bg,^resize_inode,^flex_bg",
        "-g",
        "256",
    ],
    &[
        "-b",
        "1024",
        "-O",
        "sparse_super2,metadata_csum_seed,^has_journal",
        "-g",
        "1024",
    ],
    &["-b", "4096", "-O", "bigalloc,uninit_bg,^metadata_csum"],
];

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn made(bench: &Bench, options: &[&str]) -> PathBuf {
    let path = bench.path("made");
    let mut arguments = vec!["-q", "-F", "-t", "ext4", "-N", "30000"];
    arguments.extend(options);
    arguments.extend([path.to_str().unwrap(), "96M"]);
    let output = tool("mke2fs", &arguments);
    assert!(output.status.success(), "{options:?}: {output:?}");
    path
}

/// Files as guests have them: long directories, files in thousands of pieces, reserved room.
fn fill(root: &Path, names: usize, wide_times: bool) {
    let at = |name: &str| root.join(name);
    std::fs::create_dir_all(at("many/inner")).unwrap();
    for index in 0..names {
        let name = format!("many/{index:05}-{}", "n".repeat(index % 60));
        mknodat(CWD, at(&name), FileType::RegularFile, Mode::from(0o600), 0).unwrap();
    }
    // Deleted names leave holes among the others.
    for index in (0..names).step_by(7) {
        let name = format!("many/{index:05}-{}", "n".repeat(index % 60));
        std::fs::remove_file(at(&name)).unwrap();
    }
    let pieces = std::fs::File::create(at("pieces")).unwrap();
    for piece in 0..3000u64 {
        let bytes = piece.to_le_bytes().repeat(100);
        pieces.write_all_at(&bytes, piece * 8192).unwrap();
    }
    let reserved = std::fs::File::create(at("reserved")).unwrap();
    fallocate(&reserved, FallocateFlags::empty(), 0, 300_000).unwrap();
    reserved.write_all_at(b"in the middle", 150_000).unwrap();
    fallocate(&reserved, FallocateFlags::KEEP_SIZE, 300_000, 500_000).unwrap();
    let punched = std::fs::File::create(at("punched")).unwrap();
    punched.write_all_at(&[5; 400_000], 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&punched, punch, 10_000, 200_000).unwrap();
    std::fs::write(at("plain"), "plain").unwrap();
    std::fs::write(at("empty"), "").unwrap();
    std::fs::set_permissions(at("plain"), PermissionsExt::from_mode(0o6711)).unwrap();
    rustix::fs::chown(at("plain"), Some(rustix::fs::Uid::from_raw(70_000)), None).unwrap();
    std::fs::hard_link(at("plain"), at("many/inner/again")).unwrap();
    symlink("/etc", at("fast")).unwrap();
    symlink("x/".repeat(200), at("slow")).unwrap();
    symlink("y".repeat(59), at("fast59")).unwrap();
    symlink("y".repeat(60), at("slow60")).unwrap();
    special_files(root);
    for (name, value) in [
        ("user.small", &b"1"[..]),
        ("user.large", &[7; 500]),
        ("trusted.t", b""),
        ("security.test", b"s"),
    ] {
        lsetxattr(at("plain"), name, value, XattrFlags::empty()).unwrap();
    }
    let value = acl();
    lsetxattr(
        at("empty"),
        "system.posix_acl_access",
        &value,
        XattrFlags::empty(),
    )
    .unwrap();
    lsetxattr(
        at("many"),
        "system.posix_acl_default",
        &value,
        XattrFlags::empty(),
    )
    .unwrap();
    if wide_times {
        for (name, time) in [
            ("fast", "1901-12-14 00:00:00.5 UTC"),
            ("empty", "2400-01-01 UTC"),
        ] {
            let status = Command::new("touch")
                .args(["-h", "-d", time])
                .arg(at(name))
                .status();
            assert!(status.unwrap().success());
        }
    }
}

/// All names but lost+found, which an export leaves out.
fn listed(root: &Path) -> Listing {
    let mut listing = list_host(root);
    listing.remove("lost+found");
    listing
}

/// The image holds what was listed, as GNU tar unpacks its export.
fn assert_holds(bench: &Bench, image: &Path, expected: &Listing) -> Vec<u8> {
    let (bytes, exported) = bench.export_of(image).unwrap();
    assert_eq!(exported.entries, expected.len() as u64);
    let unpacked = bench.path("unpacked");
    gnu_untar(&bytes, &unpacked);
    let found = listed(&unpacked);
    assert_eq!(found.len(), expected.len());
    for (name, facts) in expected {
        assert_eq!(&found[name], facts, "{name}");
    }
    bytes
}

/// Mounts an image; `None` where nothing can be.
fn mount(image: &Path, at: &Path) -> Option<Mounted> {
    std::fs::create_dir_all(at).unwrap();
    let run = Command::new("mount")
        .args(["-o", "loop"])
        .arg(image)
        .arg(at)
        .output();
    match run {
        Ok(output) if output.status.success() => Some(Mounted(at.to_owned())),
        other => {
            eprintln!(
                "SKIPPED: no image can be mounted here: run as root, with loop devices: {other:?}"
            );
            None
        }
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        let unmounted = status.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "it stays mounted");
    }
}

/// Set for a test that has a process of its own.
const ALONE: &str = "COWSLIP_TEST_ALONE";

/// Whether a test was run in a process of its own by this; else it is in one. Where other tests start programs, those
/// have all open files until they are the program, and a file system cannot be unmounted.
fn was_run_alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "yes")
        .output()
        .unwrap();
    let [said, errors] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    eprint!("{errors}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
    true
}

// covers R60: what a guest's kernel wrote
#[test]
fn what_the_kernel_writes_is_exported_as_it_was() {
    if was_run_alone("guests::what_the_kernel_writes_is_exported_as_it_was") {
        return;
    }
    for (index, format) in FORMATS.into_iter().enumerate() {
        let bench = Bench::new();
        let image = made(&bench, format);
        let at = bench.path("mounted");
        let Some(mounted) = mount(&image, &at) else {
            return;
        };
        // Of 1 KiB the index has two levels.
        let names = if index == 1 { 20_000 } else { 2_000 };
        fill(&at, names, !format.contains(&"128"));
        let expected = listed(&at);
        assert!(expected["null"].contains(&"device 1:3".to_owned()));
        // In the root, whose time is in no list.
        mknodat(
            CWD,
            at.join("socket"),
            FileType::Socket,
            Mode::from(0o600),
            0,
        )
        .unwrap();
        drop(mounted);
        assert_clean(&image);
        let (bytes, exported) = bench.export_of(&image).unwrap();
        assert_eq!(
            exported.skipped.len(),
            1,
            "{format:?}: {:?}",
            exported.skipped
        );
        assert_eq!(exported.skipped[0].entry, "socket");
        assert_holds(&bench, &image, &expected);
        // Holes stay holes: the pieces take 3000 blocks at most.
        assert!(bytes.len() < 45_000_000, "{format:?}: {}", bytes.len());
        // And it is the same after the check that makes a template of a disk.
        seal_image(&image, root()).unwrap();
        assert!(bench.export_of(&image).unwrap().0 == bytes, "{format:?}");
    }
}

// The same without a mount: what mke2fs copies, with an index made by e2fsck.
#[test]
fn what_mke2fs_writes_is_exported_as_it_was() {
    if !root() {
        eprintln!("SKIPPED: owners and devices are for root only");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    fill(source.path(), 2_000, false);
    let expected = listed(source.path());
    for format in FORMATS {
        let bench = Bench::new();
        let options = [format, &["-d", source.path().to_str().unwrap()]].concat();
        let image = made(&bench, &options);
        tool("e2fsck", &["-fyD", image.to_str().unwrap()]);
        assert_clean(&image);
        let stat = tool("debugfs", &["-R", "stat /many", image.to_str().unwrap()]);
        assert!(
            String::from_utf8_lossy(&stat.stdout).contains("Flags: 0x81000"),
            "no index"
        );
        let (bytes, exported) = bench.export_of(&image).unwrap();
        assert_eq!(exported.entries, expected.len() as u64, "{format:?}");
        let unpacked = bench.path("unpacked");
        gnu_untar(&bytes, &unpacked);
        let found = listed(&unpacked);
        for (name, facts) in &expected {
            // mke2fs takes neither fractions of seconds nor, in all its versions, attributes.
            let same = |facts: &[String]| -> Vec<String> {
                let kept = |fact: &&String| {
                    !["mtime ", "attribute system", "value system"]
                        .iter()
                        .any(|kind| fact.starts_with(kind))
                };
                facts.iter().filter(kept).cloned().collect()
            };
            assert_eq!(same(&found[name]), same(facts), "{format:?}: {name}");
        }
    }
}

// More than a header's eleven digits of octal: 8 GiB.
#[test]
fn files_larger_than_a_header_can_say() {
    let mut bench = Bench::new();
    let image = made(&bench, &["-b", "4096"]);
    let large = bench.path("large");
    let file = std::fs::File::create(&large).unwrap();
    file.write_all_at(b"end", 9 << 30).unwrap();
    let request = format!("write {} large", large.display());
    tool("debugfs", &["-w", "-R", &request, image.to_str().unwrap()]);
    let (bytes, _) = bench.export_of(&image).unwrap();
    assert!(bytes.len() < 100_000, "{}", bytes.len());
    let unpacked = bench.path("unpacked");
    gnu_untar(&bytes, &unpacked);
    let found = unpacked.join("large").metadata().unwrap();
    assert_eq!(found.len(), (9 << 30) + 3);
    bench.limits = Limits {
        max_bytes: 9 << 30,
        ..Limits::default()
    };
    let error = bench.export_of(&image).unwrap_err();
    assert!(
        error.to_string().contains("\"large\" crosses the limit"),
        "{error}"
    );
}
