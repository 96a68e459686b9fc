//! Where two whole disks differ.

use std::fs::File;
use std::io;

use crate::changes::{Change, Changes, Content};
use crate::flatten::read_or_zeros;

/// The block size of the guest's file system: a disk changes in these.
const BLOCK: usize = 4096;
/// What is read of each disk at once.
const BUFFER: usize = 1 << 20;

/// The blocks of `disk` that are not as in `below`, which may be shorter: past its end are zeros.
/// Holes on both sides are not read.
///
/// # Errors
/// The failing system call's.
pub(crate) fn differences(below: &File, disk: &File) -> io::Result<Changes> {
    let size = disk.metadata()?.len();
    let mut changes = Changes::default();
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut at = 0;
    while at < size {
        at = next_data(below, at, size)?.min(next_data(disk, at, size)?);
        // From the beginning of its block: an extent may begin inside of one on other file systems.
        at -= at % BLOCK as u64;
        let want = usize::try_from(size - at).unwrap_or(BUFFER).min(BUFFER);
        read_or_zeros(below, &mut left[..want], at)?;
        read_or_zeros(disk, &mut right[..want], at)?;
        let blocks = left[..want].chunks(BLOCK).zip(right[..want].chunks(BLOCK));
        for (offset, (one, other)) in (at..).step_by(BLOCK).zip(blocks) {
            if one != other {
                let change = Change {
                    at: offset,
                    length: other.len() as u64,
                    content: Content::Data(offset),
                };
                changes.push(size, change);
            }
        }
        at += want as u64;
    }
    Ok(changes)
}

/// The next byte at or after `at` that may be data; `size` when there is none.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<u64> {
    Ok(cowslip_host::clone::next_data(file, at)?.map_or(size, |data| data.min(size)))
}
