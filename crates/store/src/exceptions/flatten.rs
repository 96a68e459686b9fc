//! Writing a template and the stores over it out as one file, without a device.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cowslip_host::clone::clone_contents;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Exceptions;

/// Bytes that are copied at once.
const BATCH: u64 = 1 << 20;

/// What a flatten did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flattened {
    /// Bytes that the stores changed and that were written.
    pub written: u64,
    /// Bytes that they changed to zeros, which are holes now.
    pub zeroed: u64,
}

/// Chunks that lie side by side on the disk and in one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    store: usize,
    old: u64,
    new: u64,
    chunks: u64,
}

/// Makes `out` (empty) the disk of `disk_bytes`: the template, and over it the changes of `stores`,
/// the lowest first. Extents of the template are shared where the file system can.
///
/// # Errors
/// The failing system call's; what `out` holds is of no use then.
pub fn flatten(
    template: &File,
    disk_bytes: u64,
    stores: &[(&File, &Exceptions)],
    out: &File,
) -> io::Result<Flattened> {
    let length = template.metadata()?.len();
    clone_contents(template, out, length)?;
    out.set_len(disk_bytes)?;
    let mut done = Flattened::default();
    for run in runs(stores) {
        let (file, exceptions) = stores[run.store];
        copy(
            file,
            exceptions.chunk_bytes(),
            run,
            disk_bytes,
            out,
            &mut done,
        )?;
    }
    Ok(done)
}

/// What is to be copied: for each chunk of the disk the highest store that has it. All stores of a
/// disk have chunks of one size.
fn runs(stores: &[(&File, &Exceptions)]) -> Vec<Run> {
    let mut newest: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    for (store, (_, exceptions)) in stores.iter().enumerate() {
        for (old, new) in exceptions.iter() {
            newest.insert(old, (store, new));
        }
    }
    let mut runs: Vec<Run> = Vec::new();
    for (old, (store, new)) in newest {
        match runs.last_mut() {
            Some(run)
                if run.store == store
                    && run.old + run.chunks == old
                    && run.new + run.chunks == new =>
            {
                run.chunks += 1;
            }
            _ => runs.push(Run {
                store,
                old,
                new,
                chunks: 1,
            }),
        }
    }
    runs
}

fn copy(
    from: &File,
    chunk: u64,
    run: Run,
    disk_bytes: u64,
    out: &File,
    done: &mut Flattened,
) -> io::Result<()> {
    let batch = (BATCH / chunk).max(1);
    let mut at = 0;
    while at < run.chunks {
        let count = batch.min(run.chunks - at);
        let mut bytes = vec![0; usize::try_from(count * chunk).map_err(io::Error::other)?];
        from.read_exact_at(&mut bytes, (run.new + at) * chunk)?;
        let step = usize::try_from(chunk).map_err(io::Error::other)?;
        for (index, piece) in (0_u64..).zip(bytes.chunks(step)) {
            let start = (run.old + at + index) * chunk;
            // The last chunk may reach beyond the disk.
            let length = disk_bytes.saturating_sub(start).min(chunk);
            let piece = &piece[..usize::try_from(length).map_err(io::Error::other)?];
            if piece.iter().all(|&byte| byte == 0) {
                punch(out, start, length)?;
                done.zeroed += length;
            } else {
                out.write_all_at(piece, start)?;
                done.written += length;
            }
        }
        at += count;
    }
    Ok(())
}

/// Makes a hole; zeros where the file system has no holes.
fn punch(out: &File, start: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(out, flags, start, length) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => out.write_all_at(
            &vec![0; usize::try_from(length).map_err(io::Error::other)?],
            start,
        ),
        Err(error) => Err(error.into()),
    }
}
