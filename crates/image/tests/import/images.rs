//! Container images: every form gives the same root file system, and the image that was meant.

use std::io::{self, Read};
use std::sync::Mutex;

use cowslip_image::{Archive, BlobDigest, BlobDirectory, Blobs, Image, ImageError, Platform};
use serde_json::{Value, json};

use crate::image_builder::{Files, INDEX, LAYER, MANIFEST, config, parsed};
use crate::support::{Bench, archive, gzip, xz};

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn lower() -> Vec<u8> {
    archive()
        .directory("bin/")
        .raw(b'0', "bin/su", "", b"setuid", |h| h.set_mode(0o4755))
        .file("etc/hosts", b"old")
        .hard_link("etc/hosts2", "etc/hosts")
        .file("gone", b"gone")
        .directory("opaque/")
        .file("opaque/old", b"")
        .symlink("sh", "/bin/dash")
        .finish()
}

fn upper() -> Vec<u8> {
    archive()
        .file("etc/hosts", b"new")
        .file(".wh.gone", b"")
        .file("opaque/new", b"new")
        .file("opaque/.wh..wh..opq", b"")
        .hard_link("/bin/sudo", "/bin/su")
        .finish()
}

/// What the two layers make, as one archive.
fn flat() -> Vec<u8> {
    archive()
        .directory("bin/")
        .raw(b'0', "bin/su", "", b"setuid", |h| h.set_mode(0o4755))
        .hard_link("bin/sudo", "bin/su")
        .file("etc/hosts", b"new")
        .file("etc/hosts2", b"old")
        .directory("opaque/")
        .file("opaque/new", b"new")
        .symlink("sh", "/bin/dash")
        .finish()
}

fn open(bench: &Bench, tar: &[u8]) -> Archive {
    bench.job(|job| Archive::read(tar, job)).unwrap()
}

fn old_docker_archive(layers: [&[u8]; 2]) -> Vec<u8> {
    let config = config(&layers).to_string();
    let name = format!("{}.json", BlobDigest::of(config.as_bytes()).hex());
    let manifest = json!([{
        "Config": name,
        "RepoTags": ["example:1"],
        "Layers": ["aaaa/layer.tar", "bbbb/layer.tar"],
    }]);
    archive()
        .file("shared/layer.tar", layers[0])
        .directory("aaaa/")
        .symlink("aaaa/layer.tar", "../shared/layer.tar")
        .file("bbbb/layer.tar", layers[1])
        .file("bbbb/VERSION", b"1.0")
        .file(&name, config.as_bytes())
        .file("repositories", b"{}")
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish()
}

// covers R58, R60, "the same input gives the same bytes"
#[test]
fn every_form_of_an_image_gives_the_same_file_system() {
    let (lower, upper) = (lower(), upper());
    let layers = [&lower[..], &upper[..]];
    let platform = amd64();
    let expected = Bench::new().tar(&flat()[..]).unwrap();
    let mut files = Files::default();
    let stored = [
        files.blob(&format!("{LAYER}+gzip"), &gzip(&lower)),
        files.blob(
            &format!("{LAYER}+zstd"),
            &zstd::encode_all(&upper[..], 3).unwrap(),
        ),
    ];
    let manifest = files.image(&config(&layers), &stored);
    files.layout(std::slice::from_ref(&manifest));

    let bench = Bench::new();
    let layout = bench.path("layout");
    files.write(&layout);
    let image = Image::from_layout(&layout, None, &platform).unwrap();
    assert_eq!(image.digest().unwrap().to_string(), manifest["digest"]);
    assert_eq!(image.config().cmd, ["sh"]);
    let imported = bench.image_of(&image).unwrap();
    assert_eq!(imported.digest, expected.digest);
    assert_eq!(bench.read("/bin/sudo"), b"setuid");

    // A cache of downloads is read in the same way.
    let bench = Bench::new();
    let cache = BlobDirectory::open(&layout.join("blobs")).unwrap();
    let image = Image::from_blobs(Box::new(cache), parsed(&manifest), &platform).unwrap();
    assert_eq!(bench.image_of(&image).unwrap().digest, expected.digest);

    let tar = files.tar();
    for tar in [tar.clone(), gzip(&tar), xz(&tar)] {
        let bench = Bench::new();
        let image = Image::from_oci_archive(open(&bench, &tar), None, &platform).unwrap();
        assert_eq!(bench.image_of(&image).unwrap().digest, expected.digest);
        // The same as a file.
        let path = bench.path("archive.tar");
        std::fs::write(&path, &tar).unwrap();
        let archive = bench.job(|job| Archive::open(&path, job)).unwrap();
        let image = Image::from_oci_archive(archive, None, &platform).unwrap();
        assert_eq!(bench.checked(&image).unwrap(), imported_entries());
    }

    for tag in [None, Some("example:1"), Some("1")] {
        let bench = Bench::new();
        let archive = open(&bench, &old_docker_archive(layers));
        let image = Image::from_docker_archive(archive, tag, &platform).unwrap();
        assert_eq!(image.config().env, ["PATH=/bin"]);
        assert_eq!(bench.image_of(&image).unwrap().digest, expected.digest);
    }

    // The newer form of docker save is both.
    let mut hybrid = Files::plain(&layers);
    let name = |bytes: &[u8]| format!("blobs/sha256/{}", BlobDigest::of(bytes).hex());
    let saved = json!([{
        "Config": name(config(&layers).to_string().as_bytes()),
        "RepoTags": null,
        "Layers": [name(&lower), name(&upper)],
    }]);
    hybrid.file("manifest.json", saved.to_string().as_bytes());
    let bench = Bench::new();
    let image = Image::from_docker_archive(open(&bench, &hybrid.tar()), None, &platform).unwrap();
    assert_eq!(image.layers()[0].digest, Some(BlobDigest::of(&lower)));
    assert_eq!(bench.image_of(&image).unwrap().digest, expected.digest);
    let bench = Bench::new();
    let image = Image::from_oci_archive(open(&bench, &hybrid.tar()), None, &platform).unwrap();
    assert_eq!(bench.image_of(&image).unwrap().digest, expected.digest);
}

/// Entries of both layers, with the directories that they imply.
fn imported_entries() -> u64 {
    let (lower, upper) = (9, 8);
    lower + upper
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

fn tagged(descriptor: Value, tag: &str) -> Value {
    let annotations = json!({ "org.opencontainers.image.ref.name": tag });
    with(descriptor, "annotations", annotations)
}

fn for_platform(files: &mut Files, architecture: &str, variant: Option<&str>) -> Value {
    let layer = archive().file("for", architecture.as_bytes()).finish();
    let mut config = config(&[&layer]);
    config["architecture"] = json!(architecture);
    config["variant"] = json!(variant);
    let stored = files.blob(LAYER, &layer);
    let manifest = files.image(&config, &[stored]);
    let platform = json!({ "os": "linux", "architecture": architecture, "variant": variant });
    with(manifest, "platform", platform)
}

fn chosen(files: &Files, tag: Option<&str>, platform: &str) -> Result<String, ImageError> {
    let archive = open(&Bench::new(), &files.tar());
    let image = Image::from_oci_archive(archive, tag, &platform.parse().unwrap())?;
    Ok(image.config().platform.to_string())
}

#[test]
fn the_image_for_the_platform_is_chosen() {
    let mut files = Files::default();
    let mut entries: Vec<_> = [
        ("amd64", None),
        ("arm64", Some("v8")),
        ("arm", Some("v7")),
        ("arm", Some("v6")),
    ]
    .map(|(architecture, variant)| for_platform(&mut files, architecture, variant))
    .into();
    let attestation = with(
        files.blob(MANIFEST, b"a statement, and no manifest"),
        "platform",
        json!({ "os": "unknown", "architecture": "unknown" }),
    );
    entries.insert(0, attestation);
    // Of a kind that is yet to come.
    entries.insert(0, files.blob("application/vnd.example.new+json", b"?"));
    let inner = files.json(INDEX, &json!({ "schemaVersion": 2, "manifests": entries }));
    let outer = files.json(INDEX, &json!({ "schemaVersion": 2, "manifests": [inner] }));
    files.layout(&[tagged(outer, "latest")]);
    for platform in ["linux/amd64", "linux/arm64", "linux/arm", "linux/arm/v6"] {
        assert_eq!(chosen(&files, Some("latest"), platform).unwrap(), platform);
        assert_eq!(chosen(&files, None, platform).unwrap(), platform);
    }
    // The architecture without its variant runs on each.
    assert_eq!(
        chosen(&files, None, "linux/amd64/v3").unwrap(),
        "linux/amd64"
    );
    let error = chosen(&files, None, "linux/riscv64")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the image is not for linux/riscv64; it is for \"linux/amd64\", \"linux/arm\", \
         \"linux/arm/v6\", \"linux/arm64\""
    );
}

#[test]
fn entries_that_do_not_say_are_looked_into() {
    let mut files = Files::default();
    let silent = ["arm64", "amd64"].map(|architecture| {
        let mut entry = for_platform(&mut files, architecture, None);
        entry.as_object_mut().unwrap().remove("platform");
        entry
    });
    files.layout(&silent);
    assert_eq!(chosen(&files, None, "linux/amd64").unwrap(), "linux/amd64");
    let error = chosen(&files, None, "linux/arm").unwrap_err().to_string();
    assert!(
        error.contains("it is for \"linux/amd64\", \"linux/arm64\""),
        "{error}"
    );
    // The index says one thing, the config another.
    let mut files = Files::default();
    let liar = for_platform(&mut files, "arm64", None);
    let liar = with(
        liar,
        "platform",
        json!({ "os": "linux", "architecture": "amd64" }),
    );
    files.layout(&[liar]);
    let error = chosen(&files, None, "linux/amd64").unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{error}");
}

#[test]
fn the_image_of_the_tag_is_chosen() {
    let mut files = Files::default();
    let one = for_platform(&mut files, "amd64", None);
    let two = for_platform(&mut files, "arm64", None);
    files.layout(&[tagged(one, "one"), tagged(two, "two")]);
    assert_eq!(
        chosen(&files, Some("two"), "linux/arm64").unwrap(),
        "linux/arm64"
    );
    let error = chosen(&files, Some("two"), "linux/amd64").unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{error}");
    let error = chosen(&files, Some("three"), "linux/amd64")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "there is no image \"three\"; there is \"one\", \"two\""
    );
    let error = chosen(&files, None, "linux/amd64").unwrap_err().to_string();
    assert_eq!(
        error,
        "there are several images; name one of \"one\", \"two\""
    );
}

/// Blobs in memory, and in which order they were asked for.
struct Remote {
    files: Files,
    asked: &'static Mutex<Vec<String>>,
}

impl Blobs for Remote {
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn Read + '_>>> {
        self.asked.lock().unwrap().push(digest.to_string());
        let name = format!("blobs/sha256/{}", digest.hex());
        let found = self.files.0.iter().find(|(other, _)| *other == name);
        Ok(found.map(|(_, bytes)| Box::new(&bytes[..]) as Box<dyn Read>))
    }
}

#[test]
fn documents_are_asked_for_first_and_layers_by_the_import_only() {
    static ASKED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let layer = lower();
    let mut files = Files::default();
    let stored = files.blob(LAYER, &layer);
    let manifest = files.image(&config(&[&layer]), std::slice::from_ref(&stored));
    let remote = Remote {
        files,
        asked: &ASKED,
    };
    let image = Image::from_blobs(Box::new(remote), parsed(&manifest), &amd64()).unwrap();
    let asked = || ASKED.lock().unwrap().clone();
    assert_eq!(asked().len(), 2);
    let layers: Vec<_> = image
        .layers()
        .iter()
        .map(|layer| layer.name.clone())
        .collect();
    assert_eq!(layers, [stored["digest"].as_str().unwrap()]);
    Bench::new().image_of(&image).unwrap();
    assert_eq!(asked()[2..], layers);
}

#[test]
fn an_image_goes_from_thread_to_thread() {
    fn sent<T: Send + Sync>() {}
    sent::<Image>();
    sent::<Archive>();
    sent::<BlobDirectory>();
}

#[test]
fn sha512_is_a_digest_too() {
    let layer = lower();
    let long = |bytes: &[u8]| {
        use sha2::Digest as _;
        let hash = sha2::Sha512::digest(bytes);
        hash.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let mut files = Files::default();
    files.file(&format!("blobs/sha512/{}", long(&layer)), &layer);
    let digest = format!("sha512:{}", long(&layer));
    let stored = json!({ "mediaType": LAYER, "digest": digest, "size": layer.len() });
    let mut config = config(&[&layer]);
    config["rootfs"]["diff_ids"] = json!([digest]);
    let manifest = files.image(&config, &[stored]);
    files.layout(&[manifest]);
    let bench = Bench::new();
    files.write(&bench.path("layout"));
    let image = Image::from_layout(&bench.path("layout"), None, &amd64()).unwrap();
    let expected = Bench::new().tar(&layer[..]).unwrap().digest;
    assert_eq!(bench.image_of(&image).unwrap().digest, expected);
}

#[test]
fn a_layer_without_an_end_marker_is_whole() {
    let mut layer = lower();
    layer.truncate(layer.len() - 1024);
    let image = Files::plain(&[&layer]);
    let bench = Bench::new();
    let image = Image::from_oci_archive(open(&bench, &image.tar()), None, &amd64()).unwrap();
    bench.image_of(&image).unwrap();
}

#[test]
fn the_records_of_aufs_are_left_out_and_named() {
    let layer = archive()
        .file("kept", b"")
        .directory(".wh..wh.plnk/")
        .file(".wh..wh.plnk/1.2", b"data")
        .hard_link(".wh.none", ".wh..wh.aufs")
        .finish();
    let bench = Bench::new();
    let tar = Files::plain(&[&layer]).tar();
    let image = Image::from_oci_archive(open(&bench, &tar), None, &amd64()).unwrap();
    let imported = bench.image_of(&image).unwrap();
    assert_eq!((imported.entries, imported.skipped.len()), (1, 2));
    assert!(imported.skipped[1].why.contains("AUFS"));
}

#[test]
fn a_cancelled_import_of_an_image_leaves_nothing() {
    let bench = Bench::new();
    let tar = Files::plain(&[&lower()]).tar();
    let image = Image::from_oci_archive(open(&bench, &tar), None, &amd64()).unwrap();
    bench.cancel.cancel();
    let error = bench.image_of(&image).unwrap_err();
    assert!(
        matches!(error, cowslip_image::ImportError::Cancelled),
        "{error}"
    );
    let error = bench.job(|job| Archive::read(&tar[..], job)).unwrap_err();
    assert!(
        matches!(error, cowslip_image::ImportError::Cancelled),
        "{error}"
    );
}
