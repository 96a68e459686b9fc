//! Writing a template and its layers out as one image, without a device and without a monitor.
//!
//! What the layers changed is known before anything is written ([`merge`]), so that every byte is
//! written once: of the template only what shows through is copied where the file system cannot share
//! it, and of the layers only what no higher layer covers. Zeros become holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cowslip_host::clone;

use crate::changes::{Changes, Content, Piece, merge};

/// Zeros are looked for in blocks of this size: the guest's file system writes no smaller ones.
const BLOCK: usize = 4096;
/// What is read at once.
const BUFFER: usize = 1 << 20;

/// What a flatten did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlattenStats {
    /// Bytes that differ from the template's by the layers' word.
    pub changed: u64,
    /// Bytes of the layers that were written; the others were zeros.
    pub written: u64,
    /// Whether the rest shares its extents with the template.
    pub reflinked: bool,
}

/// Writes to `out` (empty) the disk of `disk_bytes` that `layers` (files and changes, base first) make
/// of `template`.
///
/// # Errors
/// The failing system call's; `out` is worth nothing then.
pub(crate) fn write(
    template: &File,
    disk_bytes: u64,
    files: &[&File],
    changes: &[Changes],
    out: &File,
) -> io::Result<FlattenStats> {
    let pieces = merge(changes);
    let reflinked = clone::reflink(template, out)?;
    out.set_len(disk_bytes)?;
    if !reflinked {
        let length = template.metadata()?.len().min(disk_bytes);
        let mut at = 0;
        for piece in &pieces {
            clone::copy_data(template, out, at, piece.change.at.min(length))?;
            at = piece.change.at + piece.change.length;
        }
        clone::copy_data(template, out, at, length)?;
    }
    let mut writer = Writer {
        out,
        // Without shared extents there is nothing yet where a layer writes.
        punch: reflinked,
        buffer: vec![0; BUFFER],
        stats: FlattenStats {
            reflinked,
            ..FlattenStats::default()
        },
    };
    for piece in &pieces {
        writer.piece(files, piece)?;
    }
    Ok(writer.stats)
}

struct Writer<'a> {
    out: &'a File,
    punch: bool,
    buffer: Vec<u8>,
    stats: FlattenStats,
}

impl Writer<'_> {
    fn piece(&mut self, files: &[&File], piece: &Piece) -> io::Result<()> {
        let change = piece.change;
        self.stats.changed += change.length;
        let (Content::Data(from), Some(file)) = (change.content, files.get(piece.layer)) else {
            return self.zeros(change.at, change.length);
        };
        let mut done = 0;
        while done < change.length {
            let at = change.at + done;
            // Up to a whole multiple, so that blocks of the disk are blocks of the buffer.
            let to_boundary = BUFFER as u64 - at % BUFFER as u64;
            let want = usize::try_from(to_boundary.min(change.length - done)).unwrap_or(BUFFER);
            let mut buffer = std::mem::take(&mut self.buffer);
            let outcome = read_or_zeros(file, &mut buffer[..want], from + done)
                .and_then(|()| self.sparse(&buffer[..want], at));
            self.buffer = buffer;
            outcome?;
            done += want as u64;
        }
        Ok(())
    }

    /// Writes `bytes` at `at`, and blocks of zeros as holes.
    fn sparse(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let blank = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        let mut start = 0;
        while start < bytes.len() {
            let first = block_at(bytes, start, at);
            let zeros = blank(&bytes[start..first]);
            let mut end = first;
            while end < bytes.len() {
                let next = block_at(bytes, end, at);
                if blank(&bytes[end..next]) != zeros {
                    break;
                }
                end = next;
            }
            if zeros {
                self.zeros(at + start as u64, (end - start) as u64)?;
            } else {
                self.out
                    .write_all_at(&bytes[start..end], at + start as u64)?;
                self.stats.written += (end - start) as u64;
            }
            start = end;
        }
        Ok(())
    }

    fn zeros(&self, at: u64, length: u64) -> io::Result<()> {
        if self.punch {
            clone::punch_hole(self.out, at, length)
        } else {
            Ok(())
        }
    }
}

/// Where the block of the disk ends that the byte at `start` is in.
fn block_at(bytes: &[u8], start: usize, at: u64) -> usize {
    let into = usize::try_from((at + start as u64) % BLOCK as u64).unwrap_or(0);
    (start + BLOCK - into).min(bytes.len())
}

/// What lies past the end of a layer's file reads as zeros: a monitor cuts it at what it wrote.
pub(crate) fn read_or_zeros(file: &File, buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    let mut rest = buffer;
    while !rest.is_empty() {
        match file.read_at(rest, at) {
            Ok(0) => {
                rest.fill(0);
                return Ok(());
            }
            Ok(read) => {
                at += read as u64;
                rest = &mut rest[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
