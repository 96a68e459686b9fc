//! The headers of an archive, one after the other: each entry with the extensions before it.

use super::entry::{self, Entry};
use super::number;
use super::pax::Pax;
use super::stream::{BLOCK, Stream, WHOLE};
use crate::error::ImportError;
use crate::job::Cancel;

/// An extension header is no longer than this, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;
/// No more of them stand before one entry: the formats in use need four.
const MAX_EXTENSIONS: u32 = 16;
/// What headers, extensions and padding may take beside [`OVERHEAD_EACH`], in bytes.
const OVERHEAD: u64 = 32 << 20;
/// What they may take for each entry, in bytes.
const OVERHEAD_EACH: u64 = 8 << 10;

/// Reads headers off a stream. Who calls [`Self::next`] reads what an entry has stored in between.
pub(super) struct Headers<'r> {
    pub(super) stream: Stream<'r>,
    global: Pax,
    /// Whether the archive must have an end marker.
    end_marker: bool,
    entries: u64,
    /// Bytes that entries have stored, as far as they were announced.
    stored: u64,
}

impl<'r> Headers<'r> {
    pub(super) fn new(stream: Stream<'r>, end_marker: bool) -> Self {
        Self {
            stream,
            global: Pax::default(),
            end_marker,
            entries: 0,
            stored: 0,
        }
    }

    /// The next entry and its header; `None` at the end of the archive.
    pub(super) fn next(
        &mut self,
        cancel: &Cancel,
    ) -> Result<Option<(::tar::Header, Entry)>, ImportError> {
        let mut pax = self.global.clone();
        let (mut extensions, mut pending) = (0, false);
        while let Some(header) = self.header(cancel)? {
            let kind = header.entry_type().as_byte();
            match kind {
                b'x' => {
                    let records = self.extension(&header)?;
                    pax.merge(&records)
                        .map_err(|why| self.stream.corrupt(why))?;
                }
                b'g' => {
                    let records = self.extension(&header)?;
                    self.global
                        .merge(&records)
                        .map_err(|why| self.stream.corrupt(why))?;
                    pax = self.global.clone();
                }
                b'L' => pax.path = Some(until_nul(self.extension(&header)?)),
                b'K' => pax.link_path = Some(until_nul(self.extension(&header)?)),
                _ => {
                    let entry = Entry::new(&header, pax).map_err(|why| self.stream.corrupt(why))?;
                    self.entries += 1;
                    self.stored = self.stored.saturating_add(entry.stored);
                    return Ok(Some((header, entry)));
                }
            }
            pending |= kind != b'g';
            extensions += 1;
            if extensions > MAX_EXTENSIONS {
                return Err(self
                    .stream
                    .corrupt("more than 16 extension headers follow one another"));
            }
        }
        match pending {
            false => Ok(None),
            true => Err(self
                .stream
                .corrupt("an extension header has no entry after it")),
        }
    }

    fn header(&mut self, cancel: &Cancel) -> Result<Option<::tar::Header>, ImportError> {
        cancel.check()?;
        self.check_overhead()?;
        let first = self.stream.offset() == 0;
        let mut block = [0; BLOCK];
        if !self.stream.read_header_block(&mut block, self.end_marker)? || block == [0; BLOCK] {
            return Ok(None);
        }
        let header = ::tar::Header::from_byte_slice(&block).clone();
        let sum: u64 = (0..BLOCK)
            .map(|at| match at {
                148..156 => u64::from(b' '),
                _ => u64::from(block[at]),
            })
            .sum();
        if number::parse(&header.as_old().cksum) != Some(sum.into()) {
            return Err(match first {
                true => ImportError::NotATar("its first block is no tar header"),
                false => self.stream.corrupt("a header's checksum is wrong"),
            });
        }
        Ok(Some(header))
    }

    /// An archive of little else than headers is a bomb that no bound on content stops.
    fn check_overhead(&self) -> Result<(), ImportError> {
        let most = OVERHEAD + self.entries.saturating_mul(OVERHEAD_EACH);
        if self.stream.offset().saturating_sub(self.stored) > most {
            let what = "bytes of headers for this many entries";
            return Err(ImportError::limit(WHOLE, most, what));
        }
        Ok(())
    }

    /// The bytes of an extension header.
    fn extension(&mut self, header: &::tar::Header) -> Result<Vec<u8>, ImportError> {
        let size = entry::size(header).map_err(|why| self.stream.corrupt(why))?;
        if size > MAX_EXTENSION {
            return Err(self
                .stream
                .corrupt("an extension header is longer than 1 MiB"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.stream.read_exact(&mut bytes)?;
        self.stream.skip_padding(size)?;
        Ok(bytes)
    }
}

/// Long names of the GNU kind end in NUL.
fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}
