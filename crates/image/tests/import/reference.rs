//! Other programs as the reference: an image that umoci unpacks and skopeo converts has to be, file by
//! file, what is imported here. Needs root, since umoci makes owners and devices for real.

use std::path::{Path, PathBuf};

use cowslip_image::{Archive, Image, Platform};
use cowslip_test_parts::{Listing, list, missing, run};
use serde_json::json;

use crate::image_builder::{Files, LAYER, config};
use crate::support::{Archive as Tar, Bench, archive, gzip, tool};

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

/// All names of a directory of the host but its own.
pub(crate) fn list_host(root: &Path) -> Listing {
    let mut listing = list(root);
    listing.remove("");
    listing
}

/// The same without the values of attributes, of which debugfs tells the sizes.
pub(crate) fn list_as_debugfs(root: &Path) -> Listing {
    let mut listing = list_host(root);
    for facts in listing.values_mut() {
        facts.retain(|fact| !fact.starts_with("value "));
    }
    listing
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
    let expected = list_as_debugfs(root);
    assert_eq!(entries, expected.len() as u64);
    let found = list_image(bench, expected.keys().cloned());
    for (name, facts) in &expected {
        assert_eq!(&found[name], facts, "{name}");
    }
}

// covers R58, R60
#[test]
fn an_image_is_what_umoci_unpacks() {
    if missing("umoci", true) {
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

// covers R58
#[test]
fn a_layer_that_umoci_makes_is_what_was_changed() {
    if missing("umoci", true) {
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
    if missing("skopeo", false) {
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
