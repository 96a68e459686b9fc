//! Several stores over one another written as one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::format::{Geometry, MAGIC, PAIR, VALID, VERSION};
use super::{Damage, Exceptions};

/// Bytes copied at once: the data between two chunks of pairs, with chunks of 4 KiB.
const BATCH: u64 = 1 << 20;

/// Where the content of a chunk of the disk is: in which store, and in which of its chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    old: u64,
    store: usize,
    new: u64,
}

/// Writes to `out`, an empty file, the store that says what `stores` (base first) say together. Chunks
/// are in the order of the disk; zeros are holes. The caller gives it its length.
///
/// # Errors
/// When reading or writing fails, or the stores have chunks of different sizes.
pub fn merge(stores: &[(&File, &Exceptions)], out: &File) -> io::Result<()> {
    let sectors = stores
        .last()
        .map_or(super::CHUNK_SECTORS, |(_, top)| top.chunk_sectors());
    if stores.iter().any(|(_, one)| one.chunk_sectors() != sectors) {
        let why = "stores of one disk have chunks of different sizes";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let geometry = Geometry::new(sectors)
        .ok_or_else(|| io::Error::other(Damage::ChunkSize(sectors).to_string()))?;
    let places = highest(stores);
    write_header(sectors, out)?;
    for (area, places) in (0..).zip(places.chunks(size(geometry.per_area)?)) {
        let pairs = geometry
            .pairs_chunk(area)
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        copy(stores, geometry, places, pairs + 1, out)?;
        let bytes: Vec<u8> = (pairs + 1..)
            .zip(places)
            .flat_map(|(new, place)| [place.old.to_le_bytes(), new.to_le_bytes()])
            .flatten()
            .collect();
        out.write_all_at(&bytes, pairs * geometry.chunk)?;
    }
    Ok(())
}

fn size(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

/// For each chunk that any store has the highest that has it, in the order of the disk.
fn highest(stores: &[(&File, &Exceptions)]) -> Vec<Place> {
    let mut all: Vec<Place> = Vec::new();
    for (store, (_, exceptions)) in stores.iter().enumerate().rev() {
        all.extend(
            exceptions
                .iter()
                .map(|(old, new)| Place { old, store, new }),
        );
    }
    // Stable: the highest store comes first among those of one chunk.
    all.sort_by_key(|place| place.old);
    all.dedup_by_key(|place| place.old);
    all
}

fn write_header(sectors: u32, out: &File) -> io::Result<()> {
    let mut header = Vec::with_capacity(PAIR);
    header.extend(MAGIC);
    for field in [VALID, VERSION, sectors] {
        header.extend(field.to_le_bytes());
    }
    out.write_all_at(&header, 0)
}

/// Copies the chunks of `places` to `first` and what follows it; neighbours go together.
fn copy(
    stores: &[(&File, &Exceptions)],
    geometry: Geometry,
    places: &[Place],
    first: u64,
    out: &File,
) -> io::Result<()> {
    let chunk = geometry.chunk;
    let most = size((BATCH / chunk).max(1))?;
    let mut buffer = vec![0; most * size(chunk)?];
    let mut done = 0;
    while let Some(start) = places.get(done) {
        let rest = &places[done..];
        let count = rest
            .iter()
            .zip(start.new..)
            .take(most)
            .take_while(|(place, new)| place.store == start.store && place.new == *new)
            .count();
        let bytes = &mut buffer[..count * size(chunk)?];
        stores[start.store]
            .0
            .read_exact_at(bytes, start.new * chunk)?;
        for (new, content) in (first + done as u64..).zip(bytes.chunks(size(chunk)?)) {
            if content.iter().any(|&byte| byte != 0) {
                out.write_all_at(content, new * chunk)?;
            }
        }
        done += count;
    }
    Ok(())
}
