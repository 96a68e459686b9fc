//! One file for what Firecracker writes as two, so that an image comes and goes as a whole.
//!
//! ```text
//!   memory (as large as the guest's) ─ device state ─ its length, u64 ─ magic
//! ```
//!
//! The memory is first, so that Firecracker maps the file as it is and children share its pages. The
//! state is small and is taken out for a restore.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MAGIC: [u8; 8] = *b"cowslpFC";
const TRAILER: u64 = 16;
/// The largest device state that is believed, in bytes; a real one has some 10 KiB.
const STATE_MAX: u64 = 64 << 20;

/// Puts the device state in the file `state` behind the memory. Gives the image's length.
pub(super) fn seal(image: &mut File, mut state: &File) -> io::Result<u64> {
    image.seek(SeekFrom::End(0))?;
    let length = io::copy(&mut state, image)?;
    image.write_all(&length.to_le_bytes())?;
    image.write_all(&MAGIC)?;
    image.stream_position()
}

/// Writes the device state of `image` to the new file `state`, and gives that.
pub(super) fn extract(image: &Path, state: &Path) -> io::Result<File> {
    let bad = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut file = File::open(image)?;
    let whole = file.metadata()?.len();
    let at = whole
        .checked_sub(TRAILER)
        .ok_or_else(|| bad("it is no image: it is too short"))?;
    let mut trailer = [0; 16];
    file.read_exact_at(&mut trailer, at)?;
    let [l0, l1, l2, l3, l4, l5, l6, l7, magic @ ..] = trailer;
    if magic != MAGIC {
        return Err(bad("it is no whole image of a Firecracker"));
    }
    let length = u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
    let from = at
        .checked_sub(length)
        .filter(|_| length <= STATE_MAX)
        .ok_or_else(|| bad("its device state cannot be as long as it says"))?;
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(state)?;
    file.seek(SeekFrom::Start(from))?;
    io::copy(&mut file.take(length), &mut to)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_extracted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("image"), vec![7; 8192]).unwrap();
        std::fs::write(at("state"), b"device state").unwrap();
        let mut file = OpenOptions::new().write(true).open(at("image")).unwrap();
        let state = File::open(at("state")).unwrap();
        let length = seal(&mut file, &state).unwrap();
        assert_eq!(length, std::fs::metadata(at("image")).unwrap().len());
        extract(&at("image"), &at("again")).unwrap();
        assert_eq!(std::fs::read(at("again")).unwrap(), b"device state");
        assert_eq!(std::fs::read(at("image")).unwrap()[..8192], vec![7; 8192]);
        // Not over one that is there.
        assert!(extract(&at("image"), &at("again")).is_err());
    }

    #[test]
    fn what_is_no_whole_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (image, state) = (dir.path().join("image"), dir.path().join("state"));
        let long = [&[0; 32][..], &1000_u64.to_le_bytes(), &MAGIC].concat();
        for bad in [&b""[..], b"short", &[0; 100], &long] {
            std::fs::write(&image, bad).unwrap();
            assert!(extract(&image, &state).is_err());
            assert!(!state.exists());
        }
    }
}
