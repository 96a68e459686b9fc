//! The merge of layers, on any bytes. Run it with `cargo fuzz run layers`.
//!
//! The input is cut at `CUT!` into layers, which become an image whose digests are right, so that what is
//! reached is the reader of archives and the merge. Each header gets the checksum that it should have.

#![no_main]

use std::collections::BTreeMap;
use std::io::{self, Read};

use cowslip_image::{
    BlobDigest, Blobs, Cancel, Descriptor, Image, Job, Limits, NoProgress, Owners, Sizing,
    check_image,
};
use libfuzzer_sys::fuzz_target;

struct Memory(BTreeMap<BlobDigest, Vec<u8>>);

impl Memory {
    fn add(&mut self, bytes: Vec<u8>) -> (BlobDigest, usize) {
        let (digest, size) = (BlobDigest::of(&bytes), bytes.len());
        self.0.insert(digest.clone(), bytes);
        (digest, size)
    }
}

impl Blobs for Memory {
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn Read + '_>>> {
        Ok(self
            .0
            .get(digest)
            .map(|bytes| Box::new(&bytes[..]) as Box<dyn Read>))
    }
}

/// Gives every block that is not zero a right checksum: it then counts as a header, or is content.
fn mended(layer: &[u8]) -> Vec<u8> {
    let mut bytes = layer.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    for block in bytes
        .chunks_exact_mut(512)
        .filter(|block| block.iter().any(|byte| *byte != 0))
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fuzz_target!(|input: &[u8]| {
    let mut memory = Memory(BTreeMap::new());
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    let mut rest = input;
    while !rest.is_empty() && layers.len() < 8 {
        let end = rest.windows(4).position(|mark| mark == b"CUT!");
        let (layer, next) = rest.split_at(end.unwrap_or(rest.len()));
        rest = next.get(4..).unwrap_or_default();
        let (digest, size) = memory.add(mended(layer));
        diff_ids.push(format!("\"{digest}\""));
        layers.push(format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}"#
        ));
    }
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let (digest, size) = memory.add(config.into_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{size}}},"layers":[{}]}}"#,
        layers.join(",")
    );
    let (digest, size) = memory.add(manifest.into_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let root = Descriptor::new(media_type, digest, size as u64);
    let platform = "linux/amd64".parse().expect("a platform");
    let image = Image::from_blobs(Box::new(memory), root, &platform).expect("an image");
    let work = tempfile::tempdir().expect("a directory");
    let limits = Limits {
        max_bytes: 1 << 20,
        max_entries: 1000,
        ..Limits::default()
    };
    let result = check_image(
        &image,
        &Job {
            work_dir: work.path(),
            output: &work.path().join("image"),
            label: "fuzz",
            limits,
            sizing: Sizing::default(),
            owners: Owners::Keep,
            progress: &NoProgress,
            cancel: &Cancel::default(),
        },
    );
    match result {
        Ok(entries) => assert!(entries <= limits.max_entries),
        Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
    }
    assert_eq!(std::fs::read_dir(work.path()).expect("listed").count(), 0);
});
