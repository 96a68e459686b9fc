//! The corpus of hostile images: each with the error that it must give, which docs/images.md lists.

use std::error::Error as _;

use cowslip_image::{Archive, BlobDigest, Image, ImportError, Limits};
use serde_json::{Value, json};

use crate::image_builder::{Files, INDEX, LAYER, LAYOUT, MANIFEST, config, descriptor};
use crate::support::{Archive as Tar, Bench, archive, gzip};

/// An archive, what it is imported as, and what the error must say.
type Case = (&'static str, Form, Vec<u8>, &'static str);

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Oci,
    Docker,
}

fn limits() -> Limits {
    Limits {
        max_bytes: 1 << 20,
        max_entries: 50,
        max_depth: 20,
        max_links: 5,
        max_xattrs: 4,
        max_layers: 10,
        ..Limits::default()
    }
}

/// What lies below each hostile layer.
fn base() -> Vec<u8> {
    archive()
        .symlink("out", "/etc")
        .file("file", b"")
        .file("etc/passwd", b"root")
        .finish()
}

fn on_base(layer: Tar) -> Vec<u8> {
    stored_on_base(&layer.finish())
}

fn stored_on_base(layer: &[u8]) -> Vec<u8> {
    Files::plain(&[&base(), layer]).tar()
}

fn compressed(layer: &[u8]) -> Vec<u8> {
    let mut files = Files::default();
    let stored = files.blob(&format!("{LAYER}+gzip"), &gzip(layer));
    let manifest = files.image(&config(&[layer]), &[stored]);
    files.layout(&[manifest]);
    files.tar()
}

fn repeated(count: usize, add: impl Fn(Tar, usize) -> Tar) -> Tar {
    (0..count).fold(archive(), add)
}

/// Hostile layers.
#[rustfmt::skip]
fn layers() -> Vec<Case> {
    let pax = |key: &str, value: &[u8]| archive().pax(&[(key, value)]).file("f", b"");
    let record = vec![b'x'; 1_000_000];
    let mut cut = archive().file("f", &[1; 2000]).finish();
    cut.truncate(1024);
    let mut broken = archive().file("f", b"").finish();
    broken[3] ^= 1;
    let joined = [archive().file("a", b"").finish(), archive().file("b", b"").finish()].concat();
    let oci = |name, archive, error| (name, Form::Oci, archive, error);
    vec![
        oci("a name with ..", on_base(archive().file("a/../../evil", b"")), "its path contains \"..\""),
        oci("an absolute name with ..", on_base(archive().file("/../evil", b"")), "its path contains \"..\""),
        oci("a file through a link of a lower layer", on_base(archive().file("out/passwd", b"")), "goes through a symbolic link"),
        oci("a file through a link of its own layer", on_base(archive().symlink("l", "..").file("l/evil", b"")), "goes through a symbolic link"),
        oci("a file below a file of a lower layer", on_base(archive().file("file/x", b"")), "something that is not a directory"),
        oci("a whiteout through a link", on_base(archive().file("out/.wh.passwd", b"")), "goes through a symbolic link"),
        oci("an opaque directory through a link", on_base(archive().file("out/.wh..wh..opq", b"")), "goes through a symbolic link"),
        oci("a hard link out of the image", on_base(archive().hard_link("x", "../../etc/passwd")), "its path contains \"..\""),
        oci("a hard link through a link", on_base(archive().hard_link("x", "out/passwd")), "hard link to an entry that does not come before it"),
        oci("a hard link to a directory", on_base(archive().hard_link("x", "etc")), "hard link to a directory"),
        oci("a whiteout of nothing", on_base(archive().file(".wh.", b"")), "malformed whiteout"),
        oci("a whiteout of .", on_base(archive().file("etc/.wh..", b"")), "malformed whiteout"),
        oci("a whiteout of ..", on_base(archive().file("etc/.wh...", b"")), "malformed whiteout"),
        oci("a file in a whiteout", on_base(archive().file(".wh.etc/x", b"")), "malformed whiteout"),
        oci("a directory as a whiteout", on_base(archive().directory(".wh.etc/")), "malformed whiteout"),
        oci("a newline in a name", on_base(archive().file("a\nrm -r /", b"")), "control character"),
        oci("an escape sequence in a name", on_base(archive().file("a\u{1b}[2J", b"")), "control character"),
        oci("a NUL in a name", on_base(pax("path", b"a\0b")), "control character"),
        oci("a name of 256 bytes", on_base(pax("path", &[b'n'; 256])), "longer than 255 bytes"),
        oci("a path of 5,000 bytes", on_base(pax("path", &b"dir/".repeat(1250))), "limit of 4095 bytes of path"),
        oci("a path of 21 names", on_base(archive().file(&"d/".repeat(21), b"")), "limit of 20 directories deep"),
        oci("a root that is a link", on_base(archive().symlink("./", "/etc")), "the root must be a directory"),
        oci("a file lost+found", on_base(archive().file("lost+found", b"")), "ext4 needs \"lost+found\""),
        oci("a link to nothing", on_base(archive().symlink("l", "")), "symbolic link target is empty"),
        oci("a device with a major number of 4096", on_base(archive().raw(b'3', "d", "", b"", |h| h.set_device_major(4096).unwrap())), "device number is out of range"),
        oci("a file with 6 names", on_base(repeated(5, |a, n| a.hard_link(&format!("n{n}"), "file"))), "limit of 5 names of one file"),
        oci("51 entries in two layers", on_base(repeated(47, |a, n| a.file(&format!("f{n}"), b""))), "limit of 50 entries"),
        oci("51 whiteouts", on_base(repeated(51, |a, n| a.file(&format!(".wh.f{n}"), b""))), "limit of 50 entries"),
        oci("5 extended attributes", on_base(archive().pax(&["a", "b", "c", "d", "e"].map(|n| (["SCHILY.xattr.user.a", "SCHILY.xattr.user.b", "SCHILY.xattr.user.c", "SCHILY.xattr.user.d", "SCHILY.xattr.user.e"][usize::from(n.as_bytes()[0] - b'a')], &b"1"[..]))).file("f", b"")), "limit of 4 extended attributes"),
        oci("an extended attribute of 200,000 bytes", on_base(pax("SCHILY.xattr.user.a", &[b'x'; 200_000])), "bytes of extended attributes"),
        oci("2 MiB of zeros, compressed", compressed(&archive().file("z", &vec![0; 2 << 20]).finish()), "limit of 1048576 bytes of content"),
        oci("a sparse file of 1 TiB", on_base(archive().pax(&[("GNU.sparse.major", b"0"), ("GNU.sparse.minor", b"1"), ("GNU.sparse.realsize", b"1099511627776"), ("GNU.sparse.map", b"0,0")]).file("s", b"")), "limit of 1048576 bytes of content"),
        oci("2 MiB in whiteouts", compressed(&archive().file(".wh.z", &vec![0; 2 << 20]).finish()), "limit of 1048576 bytes of content"),
        oci("32 MiB of zeros after the end, compressed", compressed(&[archive().file("a", b"").finish(), vec![0; 32 << 20]].concat()), "bytes of zeros after the archive's end"),
        oci("40 MiB of PAX records, compressed", compressed(&repeated(40, |a, n| a.pax(&[("comment", &record)]).file(&format!("f{n}"), b"")).finish()), "bytes of headers for this many entries"),
        oci("17 extension headers in a row", on_base(repeated(17, |a, _| a.pax(&[("comment", b"x")])).file("f", b"")), "more than 16 extension headers follow one another"),
        oci("a PAX header that claims 1 TiB", on_base(archive().raw(b'x', "x", "", b"", |h| h.set_size(1 << 40))), "extension header is longer than 1 MiB"),
        oci("a sparse map that leaves its file", on_base(archive().pax(&[("GNU.sparse.major", b"0"), ("GNU.sparse.minor", b"1"), ("GNU.sparse.realsize", b"10"), ("GNU.sparse.map", b"8,4")]).file("s", b"1234")), "map goes beyond its size"),
        oci("a layer that is cut inside a file", stored_on_base(&cut), "the tar is truncated"),
        oci("a header with a wrong checksum", stored_on_base(&broken), "its first block is no tar header"),
        oci("two archives joined in one layer", stored_on_base(&joined), "followed by other data after its end marker"),
        oci("a layer that is a script", stored_on_base(&b"#!/bin/sh\n".repeat(100)), "its first block is no tar header"),
        oci("a layer that is a gzip of a gzip", compressed(&gzip(&base())), "not a tar archive"),
    ]
}

/// A layout of one small image; `change` gets its files, config, layers and manifest.
fn layout(change: impl FnOnce(&mut Files, &mut Value, &mut Vec<Value>)) -> Vec<u8> {
    let mut files = Files::default();
    let layer = base();
    let mut layers = vec![files.blob(LAYER, &layer)];
    let mut config = config(&[&layer]);
    change(&mut files, &mut config, &mut layers);
    let manifest = files.image(&config, &layers);
    files.layout(&[manifest]);
    files.tar()
}

/// A layout whose index has these entries.
fn indexed(make: impl FnOnce(&mut Files) -> Vec<Value>) -> Vec<u8> {
    let mut files = Files::default();
    let entries = make(&mut files);
    files.layout(&entries);
    files.tar()
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

fn nested(files: &mut Files, depth: usize) -> Value {
    let manifests = match depth {
        0 => vec![],
        _ => vec![nested(files, depth - 1)],
    };
    files.json(
        INDEX,
        &json!({ "schemaVersion": 2, "manifests": manifests }),
    )
}

fn many_indexes(files: &mut Files) -> Vec<Value> {
    let index = |n| json!({ "schemaVersion": 2, "manifests": [], "annotations": { "n": n } });
    (0..70)
        .map(|n| files.json(INDEX, &index(n.to_string())))
        .collect()
}

/// Hostile documents.
#[rustfmt::skip]
fn documents() -> Vec<Case> {
    let layer = base();
    let other = archive().file("other", b"").finish();
    let empty = json!({ "schemaVersion": 2 });
    let manifest = |document: Value| indexed(move |files| vec![files.json(MANIFEST, &document)]);
    let plain = |name: &str, bytes: &[u8]| archive().file(name, bytes).finish();
    let stored = descriptor(LAYER, &layer);
    let set = |key: &'static str, value: Value| layout(|_, config, _| config["config"][key] = value);
    let oci = |name, archive, error| (name, Form::Oci, archive, error);
    vec![
        oci("a layer with other content", layout(|files, _, _| files.0[0].1[0] ^= 1), "the layer has digest sha256:"),
        oci("a layer with other content, compressed", indexed(|files| {
            let gzipped = gzip(&layer);
            let stored = files.blob(LAYER, &gzipped);
            files.0[0].1[gzipped.len() / 2] ^= 1;
            vec![files.image(&config(&[&layer]), &[stored])]
        }), "the layer has digest sha256:"),
        oci("a layer that is shorter than it says", layout(|files, _, _| files.0[0].1.truncate(512)), "has 512 bytes instead of"),
        oci("a layer that is longer than it says", layout(|files, _, _| files.0[0].1.extend([0; 512])), "bytes instead of"),
        oci("a layer that decompresses to another", layout(|files, _, layers| layers[0] = files.blob(LAYER, &other)), "the content of the layer has digest sha256:"),
        oci("a layer that is missing", layout(|files, _, _| files.0.clear()), "is missing; fetch or make the image again"),
        oci("a layer to be got from elsewhere", layout(|_, _, layers| layers[0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")), "is not got from elsewhere"),
        oci("a layer of an unknown type", layout(|_, _, layers| layers[0]["mediaType"] = json!("application/vnd.example")), "has the unsupported type \"application/vnd.example\""),
        oci("a layer named by a path", layout(|_, _, layers| layers[0]["digest"] = json!("sha256:../../../etc/passwd")), "a digest is \"sha256:\" and 64"),
        oci("a layer of a negative size", layout(|_, _, layers| layers[0]["size"] = json!(-1)), "is damaged: invalid value: integer `-1`"),
        oci("more layers than digests in the config", layout(|_, _, layers| layers.push(stored.clone())), "the image has 2 layers, but its config has digests of 1"),
        oci("11 layers", Files::plain(&[&layer[..]; 11]).tar(), "the image has more than 10 layers"),
        oci("no layers", Files::plain(&[]).tar(), "the source is empty"),
        oci("an image for another platform", layout(|_, config, _| config["architecture"] = json!("s390x")), "the image is not for linux/amd64; it is for linux/s390x"),
        oci("an image for no platform", layout(|_, config, _| config["architecture"] = json!("")), "unusable platform"),
        oci("a config of an artifact", indexed(|files| {
            let artifact = files.json("application/vnd.example.config", &empty);
            vec![files.json(MANIFEST, &json!({ "schemaVersion": 2, "config": artifact, "layers": [] }))]
        }), "it is no image that can be run"),
        oci("a manifest that is an index too", manifest(json!({ "schemaVersion": 2, "config": stored, "layers": [], "manifests": [] })), "it is no manifest of version 2"),
        oci("an index that is a manifest too", indexed(|files| vec![files.json(INDEX, &json!({ "schemaVersion": 2, "manifests": [], "layers": [] }))]), "it is no index of version 2"),
        oci("a manifest of version 1", manifest(json!({ "schemaVersion": 1, "config": stored, "layers": [] })), "it is no manifest of version 2"),
        oci("a manifest that is an image of another type", manifest(json!({ "schemaVersion": 2, "mediaType": INDEX, "config": stored, "layers": [] })), "it is no manifest of version 2"),
        oci("a manifest of Docker's schema 1", indexed(|files| vec![files.json("application/vnd.docker.distribution.manifest.v1+prettyjws", &empty)]), "has the unsupported type"),
        oci("a manifest that is no JSON", indexed(|files| vec![files.blob(MANIFEST, b"{\"schemaVersion\": 2,")]), "is damaged"),
        oci("a manifest of 100,000 brackets", indexed(|files| vec![files.blob(MANIFEST, &[b'['; 100_000])]), "is damaged"),
        oci("a manifest with two configs", indexed(|files| {
            let text = format!(r#"{{"schemaVersion":2,"config":{stored},"config":{stored},"layers":[]}}"#);
            vec![files.blob(MANIFEST, text.as_bytes())]
        }), "duplicate field"),
        oci("a manifest with other content", indexed(|files| {
            let manifest = files.image(&config(&[]), &[]);
            let last = files.0.last_mut().unwrap();
            last.1[1] ^= 1;
            vec![manifest]
        }), "the manifest has digest sha256:"),
        oci("a manifest that claims 5 MiB", indexed(|_| vec![with(descriptor(MANIFEST, b""), "size", json!(5 << 20))]), "is longer than 4194304 bytes"),
        oci("a manifest that is missing", indexed(|_| vec![descriptor(MANIFEST, b"")]), "is missing; fetch or make the image again"),
        oci("an index of 5 MiB", Files(vec![("oci-layout".into(), LAYOUT.into()), ("index.json".into(), vec![b' '; 5 << 20])]).tar(), "the index.json is longer than 4194304 bytes"),
        oci("indexes 6 deep", indexed(|files| vec![nested(files, 6)]), "more than 4 indexes inside one another"),
        oci("70 indexes", indexed(many_indexes), "more than 64 indexes and manifests"),
        oci("no index", plain("oci-layout", LAYOUT), "it has no index.json"),
        oci("a layout without its mark", plain("index.json", b"{}"), "it has no oci-layout"),
        oci("a layout of version 2", plain("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#), "its version is \"2.0.0\""),
        oci("a docker archive as an OCI one", plain("manifest.json", b"[]"), "import it as docker-archive"),
        oci("a member with .. in its name", plain("../index.json", b""), "its path contains \"..\""),
        oci("an absolute member", plain("/etc/passwd", b""), "its path is absolute"),
        oci("a sparse member", archive().raw(b'S', "index.json", "", b"", |h| h.as_old_mut().pad[..].fill(0)).finish(), "has a sparse file"),
        oci("an archive that is cut", { let mut tar = Files::plain(&[&layer]).tar(); tar.truncate(1000); tar }, "the tar is truncated"),
        oci("a variable without =", set("Env", json!(["PATH"])), "unusable env: a variable is not NAME=value: \"PATH\""),
        oci("a variable with NUL", set("Env", json!(["A=b\0c"])), "unusable env: it contains NUL"),
        oci("a command of 5,000 words", set("Cmd", json!(vec!["x"; 5000])), "unusable cmd: there are more than 4096"),
        oci("a relative working directory", set("WorkingDir", json!("../..")), "unusable working directory: it is not absolute"),
        oci("a user with a newline", set("User", json!("root\nroot::0:0")), "unusable user"),
        oci("port 99999", set("ExposedPorts", json!({ "99999/tcp": {} })), "unusable exposed port"),
        oci("a stop signal of two words", set("StopSignal", json!("KILL -1")), "unusable stop signal"),
    ]
}

fn saved(config: &str, layers: &[&str]) -> Vec<u8> {
    json!([{ "Config": config, "RepoTags": ["a:1"], "Layers": layers }])
        .to_string()
        .into_bytes()
}

/// Hostile archives of Docker's.
#[rustfmt::skip]
fn docker_archives() -> Vec<Case> {
    let layer = base();
    let config = config(&[&layer]).to_string();
    let with = |config_name: &str, layer_name: &str, members: Tar| {
        members
            .file("config.json", config.as_bytes())
            .file("manifest.json", &saved(config_name, &[layer_name]))
            .finish()
    };
    let zeros = format!("{}.json", "0".repeat(64));
    let docker = |name, archive, error| (name, Form::Docker, archive, error);
    let two = json!([{ "Config": "config.json" }, { "Config": "config.json", "RepoTags": ["b:2", "a:1"] }]);
    vec![
        docker("a docker archive without its manifest", archive().file("index.json", b"").finish(), "import it as oci-archive"),
        docker("a docker archive of no image", archive().file("manifest.json", b"[]").finish(), "names no image"),
        docker("a docker archive of two images", archive().file("manifest.json", two.to_string().as_bytes()).finish(), "there are several images; name one of \"a:1\", \"b:2\""),
        docker("a layer that is a link out of the archive", with("config.json", "l/layer.tar", archive().symlink("l/layer.tar", "../../../etc/passwd")), "it is a link that leaves the archive"),
        docker("a layer that is an absolute link", with("config.json", "layer.tar", archive().symlink("layer.tar", "/etc/passwd")), "it is a link that leaves the archive"),
        docker("a layer that is a link to itself", with("config.json", "layer.tar", archive().symlink("layer.tar", "layer.tar")), "it is a link of links"),
        docker("a layer with .. in its name", with("config.json", "../layer.tar", archive()), "it leaves the archive"),
        docker("a layer that is a device", with("config.json", "layer.tar", archive().raw(b'3', "layer.tar", "", b"", |h| h.set_device_major(1).unwrap())), "it is not a file"),
        docker("a layer that is not in the archive", with("config.json", "layer.tar", archive()), "the layer layer.tar is missing"),
        docker("a layer with other content than the config says", with("config.json", "layer.tar", archive().file("layer.tar", &archive().file("x", b"").finish())), "the content of the layer has digest sha256:"),
        docker("a config that is not in the archive", with("none.json", "layer.tar", archive()), "the config none.json is missing"),
        docker("a config with another digest than its name", with(&zeros, "layer.tar", archive().file(&zeros, config.as_bytes())), "the config has digest sha256:"),
        docker("a config of 5 MiB", with("big", "layer.tar", archive().file("big", &vec![b' '; 5 << 20])), "is longer than 4194304 bytes"),
    ]
}

/// The whole chain, as a user sees it.
fn chain(error: &ImportError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

fn import(bench: &Bench, form: Form, bytes: &[u8]) -> Result<(), ImportError> {
    let platform = "linux/amd64".parse().unwrap();
    // The archive around the image may be as long as it likes here.
    let mut outer = Bench::new();
    outer.limits.max_bytes = 256 << 20;
    let archive = outer.job(|job| Archive::read(bytes, job))?;
    let image = match form {
        Form::Oci => Image::from_oci_archive(archive, None, &platform)?,
        Form::Docker => Image::from_docker_archive(archive, None, &platform)?,
    };
    bench.image_of(&image).map(drop)
}

fn corpus() -> Vec<Case> {
    [layers(), documents(), docker_archives()].concat()
}

// covers R57, R58, R59, R63
#[test]
fn every_hostile_image_gives_its_error() {
    for (name, form, bytes, expected) in corpus() {
        let mut bench = Bench::new();
        bench.limits = limits();
        let Err(error) = import(&bench, form, &bytes) else {
            panic!("{name}: imported");
        };
        let text = chain(&error);
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!text.chars().any(char::is_control), "{name}: {text:?}");
        assert!(text.len() < 1000, "{name}: {text}");
    }
}

#[test]
fn the_corpus_and_its_table_are_the_same() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/images.md");
    let text = std::fs::read_to_string(path).unwrap();
    let table = text.split("## Hostile images").nth(1).unwrap();
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .collect();
    let expected: Vec<String> = corpus()
        .iter()
        .map(|(name, _, _, error)| format!("| {name} | {error} |"))
        .collect();
    assert_eq!(
        rows,
        expected,
        "the table should be:\n{}",
        expected.join("\n")
    );
}

#[test]
fn a_layout_is_read_through_no_link_and_waits_for_no_fifo() {
    let platform = "linux/amd64".parse().unwrap();
    let layer = base();
    let files = Files::plain(&[&layer]);
    let blob = format!("blobs/sha256/{}", BlobDigest::of(&layer).hex());
    let bench = Bench::new();
    let at = bench.path("layout");
    files.write(&at);
    let image = Image::from_layout(&at, None, &platform).unwrap();
    bench.checked(&image).unwrap();
    std::fs::rename(at.join(&blob), at.join("moved")).unwrap();
    std::os::unix::fs::symlink("../../moved", at.join(&blob)).unwrap();
    let error = chain(&Bench::new().image_of(&image).unwrap_err());
    assert!(
        error.contains("it is a symbolic link, and none is followed"),
        "{error}"
    );
    std::fs::remove_file(at.join(&blob)).unwrap();
    let status = std::process::Command::new("mkfifo")
        .arg(at.join(&blob))
        .status();
    assert!(status.unwrap().success());
    let error = chain(&Bench::new().image_of(&image).unwrap_err());
    assert!(error.contains("it is not a regular file"), "{error}");
    std::fs::remove_file(at.join("index.json")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at.join("index.json")).unwrap();
    let error = Image::from_layout(&at, None, &platform).unwrap_err();
    assert!(
        matches!(error, cowslip_image::ImageError::Read { .. }),
        "{error}"
    );
}

#[test]
fn a_member_and_a_config_name_are_shown_escaped() {
    let name = "evil\u{1b}[2J";
    let tar = archive().file("manifest.json", &saved(name, &[])).finish();
    let error = chain(&import(&Bench::new(), Form::Docker, &tar).unwrap_err());
    assert!(error.contains("evil\\u{1b}[2J"), "{error}");
}
