//! Templates that are not what was imported.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use super::{Bench, TEMPLATE_SIZE};
use crate::{Backend, StoreError};

async fn make(bench: &Bench, bits: u64) -> Result<(), StoreError> {
    let layer = bench.layer(bits, None, TEMPLATE_SIZE);
    bench.volumes.make_layer(&bench.site, &layer, None).await
}

/// Its size is the same, its content is not.
#[tokio::test]
async fn a_template_that_was_written_is_refused_and_one_that_was_copied_is_not() {
    // covers R27
    for backend in [Backend::Qcow2, Backend::Copy] {
        let bench = Bench::new(backend);
        let path = bench.site.layout.template_image(bench.template);
        make(&bench, 1).await.unwrap();

        // The state directory was moved to another disk.
        let copy = path.with_extension("copy");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        make(&bench, 2).await.unwrap();

        let file = File::options().write(true).open(&path).unwrap();
        // The clock of the file system may not have gone on since.
        let write = |byte: u8, seconds: u64| {
            file.write_all_at(&[byte], 5000).unwrap();
            let later = SystemTime::now() + Duration::from_secs(seconds);
            file.set_modified(later).unwrap();
        };
        let mut byte = [0];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut byte, 5000)
            .unwrap();
        write(byte[0] ^ 1, 1);
        let error = make(&bench, 3).await.unwrap_err();
        assert!(matches!(error, StoreError::Template { .. }), "{error}");
        assert!(error.to_string().contains("was changed"), "{error}");
        write(byte[0], 2);
        make(&bench, 4).await.unwrap();
    }
}
