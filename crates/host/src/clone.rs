//! Copying a file's bytes as cheaply as the file system allows.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Makes `to` (empty) hold the first `length` bytes of `from`: by reflink where both are on one file
/// system that can, else by copying the extents that hold data and leaving the holes as holes.
///
/// # Errors
/// The failing system call's.
pub fn clone_contents(from: &File, to: &File, length: u64) -> io::Result<()> {
    if reflink(from, to)? {
        return Ok(());
    }
    to.set_len(length)?;
    copy_data(from, to, 0, length)
}

/// Makes `to` (empty) share all extents of `from`; false where the file system cannot.
///
/// # Errors
/// The failing system call's.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        // Not this file system, not across these two, or not this kind of file.
        Err(
            Errno::OPNOTSUPP
            | Errno::XDEV
            | Errno::INVAL
            | Errno::NOTTY
            | Errno::NOSYS
            | Errno::PERM,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies what holds data between the offsets `start` and `end` of `from` to the same place in `to`;
/// where `from` has holes, `to` stays as it is.
///
/// # Errors
/// The failing system call's.
pub fn copy_data(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut at = start;
    while at < end {
        let Some(data) = next_data(from, at)?.filter(|&data| data < end) else {
            break;
        };
        let hole = seek(from, SeekFrom::Hole(data))?.min(end);
        copy_extent(from, to, data, hole)?;
        at = hole;
    }
    Ok(())
}

/// The next byte at or after `at` that may be data; none when only holes follow.
///
/// # Errors
/// The failing system call's.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The next byte at or after `at` that is in a hole; the end of the file is one.
///
/// # Errors
/// The failing system call's.
pub fn next_hole(file: &File, at: u64) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::Hole(at))?)
}

/// Copies the bytes between the offsets `start` and `end` of `from` to the same place in `to`, holes as zeros.
///
/// # Errors
/// The failing system call's.
pub fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    copy_extent(from, to, start, end)
}

/// Makes `length` bytes of `file` from `at` on zeros, as a hole where the file system can.
///
/// # Errors
/// The failing system call's.
pub fn punch_hole(file: &File, at: u64, length: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    const ZEROS: [u8; 4096] = [0; 4096];
    match fallocate(
        file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        at,
        length,
    ) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut done = 0;
    while done < length {
        let want = usize::try_from(length - done)
            .unwrap_or(ZEROS.len())
            .min(ZEROS.len());
        file.write_all_at(&ZEROS[..want], at + done)?;
        done += want as u64;
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
    fn a_part_is_copied_and_holes_are_punched() {
        let dir = tempfile::tempdir().unwrap();
        let new = |name| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(dir.path().join(name))
                .unwrap()
        };
        let (from, to) = (new("from"), new("to"));
        from.set_len(1 << 20).unwrap();
        from.write_all_at(&[7; 65536], 65536).unwrap();
        to.write_all_at(&[1; 1 << 20], 0).unwrap();
        copy_data(&from, &to, 0, 65536).unwrap();
        copy_data(&from, &to, 100_000, 1 << 20).unwrap();
        let before = to.metadata().unwrap().blocks();
        punch_hole(&to, 8192, 40960).unwrap();
        punch_hole(&to, 51_200, 100).unwrap();
        assert!(to.metadata().unwrap().blocks() < before, "no hole");
        let mut expected = vec![1; 1 << 20];
        expected[100_000..131_072].fill(7);
        expected[8192..49152].fill(0);
        expected[51_200..51_300].fill(0);
        assert!(std::fs::read(dir.path().join("to")).unwrap() == expected);
    }

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
