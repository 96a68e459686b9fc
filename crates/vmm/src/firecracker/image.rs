//! One file for what Firecracker writes as two, so that an image comes and goes as a whole.
//!
//! ```text
//!   whole         memory (as large as the guest's) ─ device state ─ its length, u64 ─ magic
//!   changes only  memory with holes ─ device state ─ ranges ─ their number, u64 ─ length of the state, u64 ─ magic
//! ```
//!
//! The memory is first, so that Firecracker maps the file as it is and children share its pages. The
//! state is small and is taken out for a restore.
//!
//! A file of changes is written by Firecracker with a hole wherever the guest wrote nothing. Which places those
//! are is written down at once: what the guest made zeros is a change too (R42), and a copy of the file need
//! not keep holes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cowslip_host::clone;
use rustix::fs::{CWD, Mode, OFlags, openat};

const WHOLE: [u8; 8] = *b"cowslpFC";
const CHANGES: [u8; 8] = *b"cowslpFD";
/// The largest device state that is believed, in bytes; a real one has some 10 KiB.
const STATE_MAX: u64 = 64 << 20;
/// Bytes of a range in the file: where it begins, and its length.
const RANGE: usize = 16;
const PAGE: u64 = 4096;

/// What an image holds of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// All of it.
    Whole,
    /// What the guest wrote since another image.
    Changes,
}

/// Whether a hole is told apart from what was written, page by page, by the file system of `directory`. Some
/// tell data where there is none. Each is asked once: a guest stands still meanwhile.
pub(super) fn tells_holes(directory: &Path) -> bool {
    static KNOWN: Mutex<BTreeMap<u64, bool>> = Mutex::new(BTreeMap::new());
    let Ok(found) = directory.metadata() else {
        return false;
    };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known
        .entry(found.dev())
        .or_insert_with(|| try_holes(directory))
}

fn try_holes(directory: &Path) -> bool {
    let probe = || -> io::Result<bool> {
        // Without a name: it goes with its descriptor.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR)?);
        file.set_len(8 * PAGE)?;
        file.write_all_at(&[0; 4096], 3 * PAGE)?;
        file.sync_data()?;
        let written = 3 * PAGE..4 * PAGE;
        Ok(matches!(data(&file, 8 * PAGE)?.as_slice(), [one] if *one == written))
    };
    probe().unwrap_or(false)
}

/// What of the first `length` bytes is no hole.
fn data(file: &File, length: u64) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(begin) = clone::next_data(file, at)?.filter(|&begin| begin < length) {
        let end = clone::next_hole(file, begin)?.min(length);
        found.push(begin..end);
        at = end;
    }
    Ok(found)
}

/// Puts the device state in the file `state` behind the memory. Gives the bytes that the image holds.
pub(super) fn seal(image: &mut File, mut state: &File, content: Content) -> io::Result<u64> {
    let memory = image.metadata()?.len();
    let changes = match content {
        Content::Whole => None,
        Content::Changes => Some(data(image, memory)?),
    };
    image.seek(SeekFrom::End(0))?;
    let length = io::copy(&mut state, image)?;
    let mut held = memory;
    if let Some(ranges) = &changes {
        let text: Vec<u8> = ranges
            .iter()
            .flat_map(|range| [range.start, range.end - range.start])
            .flat_map(u64::to_le_bytes)
            .collect();
        image.write_all(&text)?;
        image.write_all(&(ranges.len() as u64).to_le_bytes())?;
        held = ranges.iter().map(|range| range.end - range.start).sum();
    }
    image.write_all(&length.to_le_bytes())?;
    image.write_all(if changes.is_some() { &CHANGES } else { &WHOLE })?;
    Ok(held + image.stream_position()? - memory)
}

/// An image, and where its parts are.
struct Image {
    file: File,
    memory: u64,
    state: Range<u64>,
    /// None: all of the memory.
    changes: Option<Vec<Range<u64>>>,
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Image {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut end = file.metadata()?.len();
        let mut before = |length: u64| {
            end = end
                .checked_sub(length)
                .ok_or_else(|| bad("it is no image: it is too short"))?;
            Ok::<_, io::Error>(end)
        };
        let number = |at| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok::<_, io::Error>(u64::from_le_bytes(bytes))
        };
        let magic = number(before(8)?)?.to_le_bytes();
        let length = number(before(8)?)?;
        if length > STATE_MAX {
            return Err(bad("its device state cannot be as long as it says"));
        }
        let ranges = match magic {
            WHOLE => None,
            CHANGES => {
                let count = number(before(8)?)?;
                let bytes = count.checked_mul(RANGE as u64);
                let at =
                    before(bytes.ok_or_else(|| bad("it cannot have as many ranges as it says"))?)?;
                Some((at, count))
            }
            _ => return Err(bad("it is no whole image of a Firecracker")),
        };
        let state_end = end;
        let memory = state_end
            .checked_sub(length)
            .ok_or_else(|| bad("its device state cannot be as long as it says"))?;
        let changes = ranges
            .map(|(at, count)| read_ranges(&file, at, count, memory))
            .transpose()?;
        Ok(Self {
            memory,
            state: memory..state_end,
            changes,
            file,
        })
    }

    /// The device state, to be read.
    fn state(&mut self) -> io::Result<impl Read + '_> {
        self.file.seek(SeekFrom::Start(self.state.start))?;
        Ok((&self.file).take(self.state.end - self.state.start))
    }
}

fn read_ranges(file: &File, at: u64, count: u64, memory: u64) -> io::Result<Vec<Range<u64>>> {
    // Each is apart from the next by a page at least.
    if count > memory / (2 * PAGE) + 1 {
        return Err(bad("it cannot have as many ranges as it says"));
    }
    let count = usize::try_from(count).map_err(io::Error::other)?;
    let mut bytes = vec![0; count * RANGE];
    file.read_exact_at(&mut bytes, at)?;
    let mut ranges = Vec::with_capacity(count);
    let mut last = 0;
    for range in bytes.chunks_exact(RANGE) {
        let (begin, length) = range.split_at(8);
        let number = |bytes: &[u8]| {
            bytes
                .try_into()
                .map(u64::from_le_bytes)
                .map_err(io::Error::other)
        };
        let (begin, length) = (number(begin)?, number(length)?);
        let end = begin.checked_add(length).filter(|&end| end <= memory);
        let end = end.filter(|_| begin >= last && length > 0);
        last = end.ok_or_else(|| bad("its ranges are not in order"))?;
        ranges.push(begin..last);
    }
    Ok(ranges)
}

/// Writes the device state of `image` to the new file `state`, and gives that.
pub(super) fn extract(image: &Path, state: &Path) -> io::Result<File> {
    let mut image = Image::open(image)?;
    if image.changes.is_some() {
        return Err(bad("it holds only what changed since another image"));
    }
    let mut to = create(state)?;
    io::copy(&mut image.state()?, &mut to)?;
    Ok(to)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Makes the new file `whole` of the changes in `image` over those in each of `stands_on`, the newest first,
/// over the memory of the last, which is whole.
pub(super) fn complete(image: &Path, stands_on: &[PathBuf], whole: &Path) -> io::Result<()> {
    let mut image = Image::open(image)?;
    let mut below = stands_on
        .iter()
        .map(|path| Image::open(path))
        .collect::<io::Result<Vec<Image>>>()?;
    let base = below.pop().filter(|base| base.changes.is_none());
    let base = base.ok_or_else(|| bad("what it stands on is not whole"))?;
    if below
        .iter()
        .chain([&base])
        .any(|other| other.memory != image.memory)
    {
        return Err(bad("what it stands on is of a machine with other memory"));
    }
    let mut file = create(whole)?;
    let mut fill = || {
        clone::clone_contents(&base.file, &file, base.memory)?;
        // A shared copy has the device state too.
        file.set_len(base.memory)?;
        for changed in below.iter().rev().chain([&image]) {
            let ranges = changed.changes.as_ref();
            for range in ranges.ok_or_else(|| bad("it is whole, or what it stands on is"))? {
                clone::copy_range(&changed.file, &file, range.start, range.end)?;
            }
        }
        let length = image.state.end - image.state.start;
        file.seek(SeekFrom::End(0))?;
        io::copy(&mut image.state()?, &mut file)?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(&WHOLE)
    };
    fill().inspect_err(|_| {
        // Part of an image is of no use to anyone.
        let _ = std::fs::remove_file(whole);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(path: &Path, memory: &File, state: &[u8], content: Content) -> u64 {
        let state_path = path.with_extension("state");
        std::fs::write(&state_path, state).unwrap();
        let mut file = memory.try_clone().unwrap();
        let held = seal(&mut file, &File::open(&state_path).unwrap(), content).unwrap();
        std::fs::remove_file(state_path).unwrap();
        held
    }

    #[test]
    fn what_was_sealed_is_extracted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let file = create(&at("image")).unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        let length = sealed(&at("image"), &file, b"device state", Content::Whole);
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
        let long = [&[0; 32][..], &1000_u64.to_le_bytes(), &WHOLE].concat();
        let number = |n: u64| n.to_le_bytes();
        let ranges = |begin: u64, length: u64| {
            [
                &[0; 8192][..],
                &number(begin),
                &number(length),
                &number(1),
                &number(0),
                &CHANGES,
            ]
            .concat()
        };
        let many = [&[0; 64][..], &number(u64::MAX), &number(0), &CHANGES].concat();
        for bad in [
            &b""[..],
            b"short",
            &[0; 100],
            &long,
            &many,
            &ranges(4096, 8192),
            &ranges(u64::MAX, 1),
            &ranges(0, 0),
        ] {
            std::fs::write(&image, bad).unwrap();
            assert!(extract(&image, &state).is_err());
            assert!(complete(&image, std::slice::from_ref(&image), &state).is_err());
            assert!(!state.exists());
        }
    }

    /// covers R42
    #[test]
    fn changes_lie_over_what_they_stand_on() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            tells_holes(dir.path()),
            "this file system tells no holes: the test needs one that does"
        );
        assert!(!tells_holes(&dir.path().join("none")));
        let at = |name: &str| dir.path().join(name);
        let page = |byte: u8| vec![byte; 4096];
        let image = |name: &str, pages: &[Option<u8>], content| {
            let file = create(&at(name)).unwrap();
            file.set_len(pages.len() as u64 * PAGE).unwrap();
            for (number, byte) in (0..).zip(pages) {
                if let Some(byte) = byte {
                    file.write_all_at(&page(*byte), number * PAGE).unwrap();
                }
            }
            sealed(&at(name), &file, name.as_bytes(), content)
        };
        image(
            "base",
            &[Some(1), Some(1), Some(1), None, Some(1)],
            Content::Whole,
        );
        // The second page became zeros.
        let held = image(
            "first",
            &[None, Some(0), None, Some(2), None],
            Content::Changes,
        );
        assert!(held < 3 * PAGE, "{held} bytes for two pages");
        image(
            "second",
            &[Some(3), None, None, Some(3), None],
            Content::Changes,
        );
        // A copy that made holes of all zeros, as an archiver does.
        let (from, to) = (
            File::open(at("first")).unwrap(),
            create(&at("thin")).unwrap(),
        );
        let length = from.metadata().unwrap().len();
        to.set_len(length).unwrap();
        clone::copy_range(&from, &to, 3 * PAGE, length).unwrap();

        for first in ["first", "thin"] {
            complete(&at("second"), &[at(first), at("base")], &at("whole")).unwrap();
            let whole = std::fs::read(at("whole")).unwrap();
            assert_eq!(
                whole[..5 * 4096],
                [page(3), page(0), page(1), page(3), page(1)].concat()
            );
            extract(&at("whole"), &at("state")).unwrap();
            assert_eq!(std::fs::read(at("state")).unwrap(), b"second");
            for file in ["whole", "state"] {
                std::fs::remove_file(at(file)).unwrap();
            }
        }
        complete(&at("first"), &[at("base")], &at("whole")).unwrap();
        assert_eq!(std::fs::read(at("whole")).unwrap()[..4096], page(1));

        image("small", &[Some(1)], Content::Whole);
        let wrong: [(&str, &[&str]); 5] = [
            ("second", &[]),
            ("second", &["first"]),
            ("base", &["base"]),
            ("second", &["base", "base"]),
            ("first", &["small"]),
        ];
        for (changed, below) in wrong {
            let below: Vec<PathBuf> = below.iter().map(|name| at(name)).collect();
            assert!(
                complete(&at(changed), &below, &at("none")).is_err(),
                "{changed} on {below:?}"
            );
            assert!(!at("none").exists());
        }
        assert!(
            extract(&at("first"), &at("state")).is_err(),
            "it is not whole"
        );
    }
}
