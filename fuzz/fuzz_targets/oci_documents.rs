//! The reader of image indexes, manifests and configs, on any bytes. Run it with
//! `cargo fuzz run oci_documents`.
//!
//! The input up to the first NUL is the root document, an index or a manifest. What follows is the blob that
//! every other digest gets, right or wrong; `@` in the root document stands for its own.

#![no_main]

use std::io::{self, Read};

use cowslip_image::{BlobDigest, Blobs, Descriptor, Image};
use libfuzzer_sys::fuzz_target;

struct Answers {
    root: (BlobDigest, Vec<u8>),
    other: (BlobDigest, Vec<u8>),
}

impl Blobs for Answers {
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn Read + '_>>> {
        let known = [&self.root, &self.other];
        let found = known.into_iter().find(|(known, _)| known == digest);
        Ok(Some(Box::new(&found.unwrap_or(&self.other).1[..])))
    }
}

fuzz_target!(|input: &[u8]| {
    let end = input
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(input.len());
    let (root, other) = input.split_at(end);
    let other = other.get(1..).unwrap_or_default();
    let digest = BlobDigest::of(other);
    let text = String::from_utf8_lossy(root).replace('@', &digest.to_string());
    let root = text.into_bytes();
    let platform = "linux/amd64".parse().expect("a platform");
    for media_type in [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
    ] {
        let answers = Answers {
            root: (BlobDigest::of(&root), root.clone()),
            other: (digest.clone(), other.to_vec()),
        };
        let descriptor = Descriptor::new(media_type, answers.root.0.clone(), root.len() as u64);
        match Image::from_blobs(Box::new(answers), descriptor, &platform) {
            Ok(image) => assert_eq!(image.config().platform, platform),
            Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
        }
    }
});
