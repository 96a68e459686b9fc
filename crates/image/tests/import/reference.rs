//! Other programs as the reference: an image that umoci unpacks and skopeo converts has to be, file by
//! file, what is imported here. Needs root, since umoci makes owners and devices for real.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cowslip_image::{Archive, Image, Platform};
use serde_json::json;

use crate::image_builder::{Files, LAYER, config};
use crate::support::{Archive as Tar, Bench, archive, gzip, tool};

/// Whether a program can be used; says so where it cannot.
pub(crate) fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    let root = rustix::process::geteuid().is_root();
    match (found, root) {
        (true, true) => return false,
        (false, _) => {
            eprintln!("SKIPPED: {program} is not installed: install the package {program}")
        }
        (true, false) => eprintln!("SKIPPED: {program} makes owners and devices for root only"),
    }
    true
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

/// Three layers with all that there can be in them.
pub(crate) fn layers() -> [Vec<u8>; 3] {
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let dir = |archive: Tar, name: &str, mode| {
        archive.raw(b'5', name, "", b"", |h| {
            h.set_mode(mode);
            h.set_uid(1000);
        })
    };
    let base = dir(archive(), "./", 0o755);
    let base = dir(base, "bin/", 0o755);
    let base = dir(base, "tmp/", 0o1777);
    let base = dir(base, "deep/", 0o750);
    let base = dir(base, "deep/er/", 0o711);
    let base = dir(base, "caf\u{e9}/", 0o755);
    let base = dir(base, "opaque/", 0o755)
        .raw(b'0', "bin/su", "", b"setuid", |h| {
            h.set_mode(0o4755);
            h.set_gid(70_000);
        })
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("bin/ping", b"ping")
        .pax(&[
            ("SCHILY.xattr.user.note", b"value"),
            ("mtime", b"1234567890.123456789"),
        ])
        .file("noted", &[b'n'; 10_000])
        .pax(&[("path", "caf\u{e9}/\u{1f980} \"quoted\"".as_bytes())])
        .file("x", b"crab")
        .symlink("sh", "/bin/dash")
        .symlink("far", &"x/".repeat(45))
        .hard_link("bin/sudo", "bin/su")
        .raw(b'6', "pipe", "", b"", |_| {})
        .raw(b'3', "null", "", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(3).unwrap();
        })
        .raw(b'4', "disk", "", b"", |h| {
            h.set_device_major(259).unwrap();
            h.set_device_minor(7).unwrap();
        })
        .file("gone", b"gone")
        .file("back", b"first")
        .file("deep/er/file", b"deep")
        .file("opaque/old", b"old")
        .file("becomes-directory", b"file")
        .file("zeros", &[0; 100_000])
        .file("name1", b"two names")
        .hard_link("name2", "name1")
        .file(
            "big",
            &(0..3_000_000u32)
                .map(|n| (n / 7).to_le_bytes()[0])
                .collect::<Vec<_>>(),
        );
    let second = dir(archive(), "deep/", 0o700);
    let second = dir(second, "opaque/", 0o711)
        .file("gone2", b"")
        .file(".wh.gone", b"")
        .file(".wh.back", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .file(".wh.becomes-directory", b"")
        .file(".wh.name1", b"")
        .hard_link("name3", "name2");
    let third = dir(archive(), "becomes-directory/", 0o755)
        .file("becomes-directory/file", b"in it")
        .file("back", b"second")
        .file("deep/er/.wh.file", b"")
        .raw(b'0', "noted", "", b"replaced", |h| h.set_mode(0o600))
        .hard_link("bin/doas", "bin/su")
        .file(".wh.gone2", b"");
    // Each directory is named where its names change: what a program leaves as its time is its own.
    let second = dir(second, "./", 0o755);
    let third = dir(third, "./", 0o755);
    let third = dir(third, "bin/", 0o755);
    let third = dir(third, "deep/er/", 0o711);
    [base.finish(), second.finish(), third.finish()]
}

/// An image layout in the directory, tagged `latest`.
fn layout(directory: &Path) {
    let layers = layers();
    let mut files = Files::default();
    let stored: Vec<_> = layers
        .iter()
        .map(|layer| files.blob(&format!("{LAYER}+gzip"), &gzip(layer)))
        .collect();
    let bytes: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
    let mut manifest = files.image(&config(&bytes), &stored);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    files.layout(&[manifest]);
    files.write(directory);
}

pub(crate) fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// What one name is, in words that both sides can be put in.
pub(crate) type Listing = BTreeMap<String, Vec<String>>;

/// All names of a directory of the host.
pub(crate) fn list_host(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let kind = meta.file_type();
            if kind.is_dir() {
                todo.push(path.clone());
            }
            let word = match () {
                () if kind.is_dir() => "directory",
                () if kind.is_symlink() => "symlink",
                () if kind.is_fifo() => "FIFO",
                () if kind.is_char_device() => "character",
                () if kind.is_block_device() => "block",
                () => "regular",
            };
            let mut facts = vec![
                format!("type {word}"),
                format!("mode {:04o}", meta.mode() & 0o7777),
                format!("owner {}:{}", meta.uid(), meta.gid()),
                format!("links {}", meta.nlink()),
                format!(
                    "mtime {:#010x}:{:08x}",
                    meta.mtime(),
                    meta.mtime_nsec() << 2
                ),
            ];
            match word {
                "regular" => {
                    let bytes = std::fs::read(&path).unwrap();
                    facts.push(format!("size {}", bytes.len()));
                    facts.push(format!("content {}", cowslip_image::BlobDigest::of(&bytes)));
                }
                "symlink" => {
                    let target = std::fs::read_link(&path).unwrap();
                    facts.push(format!("target {}", target.display()));
                }
                "character" | "block" => {
                    let device = meta.rdev();
                    let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
                    facts.push(format!("device {}:{}", numbers.0, numbers.1));
                }
                _ => {}
            }
            facts.extend(host_attributes(&path));
            let name = path.strip_prefix(root).unwrap();
            listing.insert(name.to_str().unwrap().to_owned(), facts);
        }
    }
    listing
}

fn host_attributes(path: &Path) -> Vec<String> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let mut found: Vec<String> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = std::ffi::OsStr::from_bytes(name);
            let mut value = vec![0; 4096];
            let size = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            format!("attribute {} ({size})", name.display())
        })
        .collect();
    found.sort();
    found
}

/// The same names in an image, as debugfs has them.
pub(crate) fn list_image(bench: &Bench, names: impl Iterator<Item = String>) -> Listing {
    names
        .map(|name| {
            let quoted = name.replace('"', "\"\"");
            let stat = bench.debugfs(&format!("stat \"/{quoted}\""));
            let after = |key: &str, end: &[char]| {
                let start = stat.find(key).unwrap_or_else(|| panic!("{name}: {stat}")) + key.len();
                let rest = stat[start..].trim_start();
                rest[..rest.find(end).unwrap_or(rest.len())].to_owned()
            };
            let word = |key| after(key, &[' ', '\n']);
            let kind = word("Type: ");
            let mut facts = vec![
                format!("type {kind}"),
                format!(
                    "mode {:04o}",
                    u32::from_str_radix(&word("Mode: "), 8).unwrap()
                ),
                format!("owner {}:{}", word("User: "), word("Group: ")),
                format!("links {}", word("Links: ")),
                format!("mtime {}", word(" mtime: ")),
            ];
            let device = |separator: char| {
                let numbers = after("Device major/minor number: ", &[' ', '\n']);
                let (major, minor) = numbers.split_once(separator).unwrap();
                let [major, minor] = [major, minor].map(|number| number.parse::<u32>().unwrap());
                format!("device {major}:{minor}")
            };
            match kind.as_str() {
                "regular" => {
                    let image = bench.image();
                    let request = format!("cat \"/{quoted}\"");
                    let bytes = tool("debugfs", &["-R", &request, image.to_str().unwrap()]).stdout;
                    facts.push(format!("size {}", word("Size: ")));
                    facts.push(format!("content {}", cowslip_image::BlobDigest::of(&bytes)));
                }
                "symlink" => match stat.contains("Fast link dest") {
                    true => facts.push(format!("target {}", after("dest: \"", &['"']))),
                    false => {
                        let image = bench.image();
                        let request = format!("cat \"/{quoted}\"");
                        let bytes =
                            tool("debugfs", &["-R", &request, image.to_str().unwrap()]).stdout;
                        facts.push(format!("target {}", String::from_utf8(bytes).unwrap()));
                    }
                },
                "character" | "block" => facts.push(device(':')),
                _ => {}
            }
            let attributes = stat.split("Extended attributes:\n").nth(1).unwrap_or("");
            let mut found: Vec<String> = attributes
                .lines()
                .take_while(|line| line.starts_with("  "))
                .map(|line| format!("attribute {}", line.trim().split(" =").next().unwrap()))
                .collect();
            found.sort();
            facts.extend(found);
            (name, facts)
        })
        .collect()
}

/// Unpacks the image `from` with umoci, and gives its root directory.
pub(crate) fn umoci_unpack(from: &str, bundle: &Path) -> PathBuf {
    let to = bundle.to_str().unwrap();
    run("umoci", &["unpack", "--image", from, to]);
    bundle.join("rootfs")
}

/// The image of `bench` has what is in a directory, and nothing else.
fn assert_same(bench: &Bench, entries: u64, root: &Path) {
    let expected = list_host(root);
    assert_eq!(entries, expected.len() as u64);
    let found = list_image(bench, expected.keys().cloned());
    for (name, facts) in &expected {
        assert_eq!(&found[name], facts, "{name}");
    }
}

// covers R58, R60
#[test]
fn an_image_is_what_umoci_unpacks() {
    if missing("umoci") {
        return;
    }
    let bench = Bench::new();
    let (at, bundle) = (bench.path("layout"), bench.path("bundle"));
    layout(&at);
    let image = Image::from_layout(&at, Some("latest"), &amd64()).unwrap();
    let imported = bench.image_of(&image).unwrap();
    let root = umoci_unpack(&format!("{}:latest", at.display()), &bundle);
    assert_same(&bench, imported.entries, &root);
    // The whole of it once more, the root directory too.
    let unpacked = Bench::new();
    assert_eq!(unpacked.directory(&root).unwrap().digest, imported.digest);
}

/// An image of one layer is, byte for byte, the directory that umoci unpacks it to.
fn assert_unpacked_is_imported(layer: &[u8]) {
    if missing("umoci") {
        return;
    }
    let bench = Bench::new();
    let at = bench.path("layout");
    Files::plain(&[layer]).write(&at);
    let image = Image::from_layout(&at, None, &amd64()).unwrap();
    let imported = bench.image_of(&image).unwrap();
    // It names an image by its tag only.
    let index = std::fs::read_to_string(at.join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&index).unwrap();
    index["manifests"][0]["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    std::fs::write(at.join("index.json"), index.to_string()).unwrap();
    let root = umoci_unpack(&format!("{}:latest", at.display()), &bench.path("bundle"));
    let unpacked = Bench::new();
    assert_eq!(unpacked.directory(&root).unwrap().digest, imported.digest);
}

#[test]
fn fifty_thousand_files_are_what_umoci_unpacks() {
    // covers R61
    let mut tar = archive().directory("./");
    for index in 0..50_000 {
        if index % 1000 == 0 {
            tar = tar.directory(&format!("d{}/", index / 1000));
        }
        let content = format!("{index}").repeat(index % 200);
        tar = tar.file(&format!("d{}/f{index}", index / 1000), content.as_bytes());
    }
    // A directory's time is that of its entry only where nothing was put into it since.
    for index in 0..50 {
        tar = tar.directory(&format!("d{index}/"));
    }
    assert_unpacked_is_imported(&tar.directory("./").finish());
}

#[test]
fn a_sparse_file_of_four_gibibytes_is_what_umoci_unpacks() {
    let bench = Bench::new();
    let source = bench.path("source");
    std::fs::create_dir(&source).unwrap();
    let file = std::fs::File::create(source.join("sparse")).unwrap();
    file.set_len(4 << 30).unwrap();
    for at in [0, 1 << 30, (4 << 30) - 5] {
        std::os::unix::fs::FileExt::write_all_at(&file, b"some", at).unwrap();
    }
    let tar = bench.path("sparse.tar");
    let (tar, source) = (tar.to_str().unwrap(), source.to_str().unwrap());
    run(
        "tar",
        &["--sparse", "--format=posix", "-cf", tar, "-C", source, "."],
    );
    let layer = std::fs::read(tar).unwrap();
    assert!(layer.len() < 1 << 20, "{} bytes", layer.len());
    assert_unpacked_is_imported(&layer);
}

// covers R58
#[test]
fn a_layer_that_umoci_makes_is_what_was_changed() {
    if missing("umoci") {
        return;
    }
    let bench = Bench::new();
    let (at, bundle) = (bench.path("layout"), bench.path("bundle"));
    layout(&at);
    let [from, to] = ["latest", "changed"].map(|tag| format!("{}:{tag}", at.display()));
    let root = umoci_unpack(&from, &bundle);
    std::fs::remove_file(root.join("bin/su")).unwrap();
    std::fs::remove_dir_all(root.join("deep")).unwrap();
    std::fs::create_dir(root.join("deep")).unwrap();
    std::fs::write(root.join("deep/again"), "again").unwrap();
    std::fs::remove_file(root.join("sh")).unwrap();
    std::fs::write(root.join("sh"), "a file now").unwrap();
    std::fs::hard_link(root.join("noted"), root.join("noted2")).unwrap();
    run(
        "umoci",
        &["repack", "--image", &to, bundle.to_str().unwrap()],
    );
    let again = umoci_unpack(&to, &bench.path("again"));

    let image = Image::from_layout(&at, Some("changed"), &amd64()).unwrap();
    assert_eq!(image.layers().len(), 4);
    let imported = bench.image_of(&image).unwrap();
    assert!(!again.join("bin/su").exists() && again.join("bin/sudo").exists());
    assert_same(&bench, imported.entries, &again);
}

#[test]
fn what_skopeo_makes_of_an_image_is_the_same_image() {
    if missing("skopeo") {
        return;
    }
    let bench = Bench::new();
    let at = bench.path("layout");
    layout(&at);
    let image = Image::from_layout(&at, None, &amd64()).unwrap();
    let expected = bench.image_of(&image).unwrap().digest;
    let from = format!("oci:{}:latest", at.display());
    let convert = |form: &str, file: &str| -> PathBuf {
        let path = bench.path(file);
        let to = format!("{form}:{}:example:1", path.display());
        run("skopeo", &["copy", "--insecure-policy", &from, &to]);
        path
    };
    let open = |path: &Path| bench.job(|job| Archive::open(path, job)).unwrap();
    let docker = convert("docker-archive", "docker.tar");
    let image = Image::from_docker_archive(open(&docker), Some("example:1"), &amd64()).unwrap();
    assert_eq!(Bench::new().image_of(&image).unwrap().digest, expected);
    let oci = convert("oci-archive", "oci.tar");
    let image = Image::from_oci_archive(open(&oci), None, &amd64()).unwrap();
    assert_eq!(Bench::new().image_of(&image).unwrap().digest, expected);
}
