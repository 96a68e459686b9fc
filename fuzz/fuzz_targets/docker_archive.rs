//! The reader of archives around images, on any bytes, as both kinds. Run it with
//! `cargo fuzz run docker_archive`.

#![no_main]

use cowslip_image::{Archive, Cancel, Image, Job, Limits, NoProgress, Owners, Sizing, check_image};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let work = tempfile::tempdir().expect("a directory");
    let cancel = Cancel::default();
    let job = Job {
        work_dir: work.path(),
        output: &work.path().join("image"),
        label: "fuzz",
        limits: Limits {
            max_bytes: 4 << 20,
            max_entries: 1000,
            ..Limits::default()
        },
        sizing: Sizing::default(),
        owners: Owners::Keep,
        progress: &NoProgress,
        cancel: &cancel,
    };
    let platform = "linux/amd64".parse().expect("a platform");
    for read in [Image::from_docker_archive, Image::from_oci_archive] {
        let Ok(archive) = Archive::read(input, &job) else {
            return;
        };
        match read(archive, None, &platform) {
            Ok(image) => drop(check_image(&image, &job)),
            Err(error) => assert!(!error.to_string().chars().any(char::is_control)),
        }
    }
    assert_eq!(std::fs::read_dir(work.path()).expect("listed").count(), 0);
});
