//! Copying a file's bytes as cheaply as the file system allows.

use std::fs::File;
use std::io;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Makes `to` (empty) hold the first `length` bytes of `from`: by reflink where both are on one file
/// system that can, else by copying the extents that hold data and leaving the holes as holes.
///
/// # Errors
/// The failing system call's.
pub fn clone_contents(from: &File, to: &File, length: u64) -> io::Result<()> {
    match ioctl_ficlone(to, from) {
        Ok(()) => return Ok(()),
        // Not this file system, not across these two, or not this kind of file.
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM,
        ) => {}
        Err(error) => return Err(error.into()),
    }
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?.min(length);
        copy_extent(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_extent(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let want = usize::try_from((end - read_at).min(1 << 30)).unwrap_or(1 << 30);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_buffer(from, to, read_at, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// For pairs of file systems between which the kernel cannot copy.
fn copy_by_buffer(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let want = usize::try_from((end - at).min(buffer.len() as u64)).unwrap_or(buffer.len());
        let read = from.read_at(&mut buffer[..want], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn holes_stay_holes_and_bytes_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let from = File::create_new(dir.path().join("from")).unwrap();
        let length = 64 << 20;
        from.set_len(length).unwrap();
        from.write_all_at(b"head", 0).unwrap();
        from.write_all_at(&[7; 10_000], 33 << 20).unwrap();
        let from = File::open(dir.path().join("from")).unwrap();
        let to = File::create_new(dir.path().join("to")).unwrap();
        clone_contents(&from, &to, length).unwrap();
        assert_eq!(to.metadata().unwrap().len(), length);
        assert!(
            to.metadata().unwrap().blocks() * 512 < 1 << 20,
            "the holes were filled"
        );
        assert!(
            std::fs::read(dir.path().join("from")).unwrap()
                == std::fs::read(dir.path().join("to")).unwrap()
        );
    }
}
