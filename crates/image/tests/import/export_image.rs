//! Exports as an OCI image: other programs know it, and it is imported as what it was.

use std::process::Command;

use cowslip_image::{
    Archive, ExportError, ExportedImage, Image, ImageConfig, Platform, export_oci_archive,
};

use cowslip_test_parts::{missing, run};

use crate::reference::{amd64, layers, umoci_unpack};
use crate::support::{Bench, archive, gnu_untar};

fn config() -> ImageConfig {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    ImageConfig {
        env: words(&["PATH=/bin", "LINES=a\nb"]),
        entrypoint: words(&["/entry", "--flag"]),
        cmd: words(&["serve"]),
        working_dir: Some("/srv".to_owned()),
        user: Some("app:1000".to_owned()),
        exposed_ports: ["80/tcp".to_owned()].into(),
        labels: [("org.example".to_owned(), "\"quoted\" \u{e9}".to_owned())].into(),
        stop_signal: Some("SIGINT".to_owned()),
        ..ImageConfig::new(amd64())
    }
}

fn export(
    bench: &Bench,
    config: &ImageConfig,
    tag: &str,
) -> Result<(Vec<u8>, ExportedImage), ExportError> {
    let mut bytes = Vec::new();
    let image = bench.image();
    let exported =
        bench.exporting(|job| export_oci_archive(&image, config, tag, &mut bytes, job))?;
    assert_eq!(exported.exported.bytes, bytes.len() as u64);
    Ok((bytes, exported))
}

/// An image made of the three layers that the other references have.
fn imported() -> (Bench, cowslip_image::Imported) {
    let bench = Bench::new();
    let layers = layers();
    let bytes: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
    let tar = crate::image_builder::Files::plain(&bytes).tar();
    let archive = bench.job(|job| Archive::read(&tar[..], job)).unwrap();
    let image = Image::from_oci_archive(archive, None, &amd64()).unwrap();
    let imported = bench.image_of(&image).unwrap();
    (bench, imported)
}

#[test]
fn an_exported_image_is_imported_as_what_it_was() {
    let (bench, imported) = imported();
    let (bytes, exported) = export(&bench, &config(), "example:1").unwrap();
    assert_eq!(exported.exported.entries, imported.entries);
    let archive = bench.job(|job| Archive::read(&bytes[..], job)).unwrap();
    let image = Image::from_oci_archive(archive, Some("example:1"), &amd64()).unwrap();
    assert_eq!(*image.config(), config());
    assert_eq!(image.digest().unwrap(), &exported.manifest);
    assert_eq!(image.layers().len(), 1);
    assert_eq!(
        Bench::new().image_of(&image).unwrap().digest,
        imported.digest
    );
    // "The same input gives the same bytes"
    let (again, _) = export(&bench, &config(), "example:1").unwrap();
    assert!(again == bytes);
    // For another platform, with a variant, and nothing else.
    let arm: Platform = "linux/arm/v6".parse().unwrap();
    let (bytes, _) = export(&bench, &ImageConfig::new(arm.clone()), "arm").unwrap();
    let archive = bench.job(|job| Archive::read(&bytes[..], job)).unwrap();
    let image = Image::from_oci_archive(archive, None, &arm).unwrap();
    assert_eq!(*image.config(), ImageConfig::new(arm));
}

// covers R60
#[test]
fn umoci_unpacks_what_was_exported() {
    if missing("umoci", true) {
        return;
    }
    let (bench, imported) = imported();
    let mut config = config();
    config.user = Some("1000:1000".to_owned());
    let (bytes, _) = export(&bench, &config, "latest").unwrap();
    let layout = bench.path("layout");
    gnu_untar(&bytes, &layout);
    let root = umoci_unpack(
        &format!("{}:latest", layout.display()),
        &bench.path("bundle"),
    );
    let unpacked = Bench::new();
    assert_eq!(unpacked.directory(&root).unwrap().digest, imported.digest);
}

#[test]
fn skopeo_knows_the_image_and_what_it_says() {
    if missing("skopeo", false) {
        return;
    }
    let (bench, _) = imported();
    let (bytes, exported) = export(&bench, &config(), "example:1").unwrap();
    let path = bench.path("image.tar");
    std::fs::write(&path, &bytes).unwrap();
    let from = format!("oci-archive:{}:example:1", path.display());
    let inspect = |arguments: &[&str]| -> serde_json::Value {
        let output = Command::new("skopeo")
            .arg("inspect")
            .args(arguments)
            .arg(&from)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let found = inspect(&[]);
    assert_eq!(found["Digest"], exported.manifest.to_string());
    assert_eq!(
        (&found["Architecture"], &found["Os"]),
        (&"amd64".into(), &"linux".into())
    );
    assert_eq!(
        found["Layers"],
        serde_json::json!([exported.layer.to_string()])
    );
    assert_eq!(found["Labels"]["org.example"], "\"quoted\" \u{e9}");
    let config = &inspect(&["--config"])["config"];
    assert_eq!(
        config["Entrypoint"],
        serde_json::json!(["/entry", "--flag"])
    );
    assert_eq!(config["ExposedPorts"], serde_json::json!({ "80/tcp": {} }));
    // Copying checks every digest.
    let to = format!(
        "docker-archive:{}:example:1",
        bench.path("docker.tar").display()
    );
    run("skopeo", &["copy", "--insecure-policy", &from, &to]);
}

#[test]
fn what_cannot_be_a_layer_or_a_tag_is_refused() {
    let bench = Bench::new();
    let names = archive().file("dir/.wh.file", b"").file("file", b"");
    bench.tar(&names.finish()[..]).unwrap();
    let error = export(&bench, &config(), "a").unwrap_err();
    assert!(matches!(error, ExportError::Whiteout { .. }), "{error}");
    assert!(error.to_string().contains("\"dir/.wh.file\""), "{error}");
    // In a tar it is a name like others.
    bench.exported();
    for tag in ["", "-a", "a b", "a\n", "\u{e9}", &"a".repeat(256)] {
        let error = export(&bench, &config(), tag).unwrap_err();
        assert!(matches!(error, ExportError::Tag(_)), "{error}");
    }
    let mut bad = config();
    bad.env.push("no-equals".to_owned());
    let error = export(&bench, &bad, "a").unwrap_err();
    assert!(matches!(error, ExportError::Config(_)), "{error}");
}
