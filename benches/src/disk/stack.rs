//! Stacks of devices as anybody could make them: what one choice changes is seen against the others.

use std::path::Path;

use crate::Failure;
use crate::commands::{Attached, Mapped, run};
use crate::lab::{MIB, fill};

/// Size of the disk.
pub(crate) const SIZE: u64 = 128 * MIB;
const SECTORS: u64 = SIZE / 512;

/// What a stack is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A copy of the template, as a file.
    File,
    /// A loop device over such a copy.
    Loop(Store),
    /// Layers of dm-snapshot over the template, and a linear device.
    Snapshot {
        store: Store,
        chunk_sectors: u32,
        depth: usize,
    },
}

/// How a store's loop device works.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Store {
    /// Past the page cache.
    pub(crate) direct: bool,
    /// A flush is an fsync; else it is declared to have no cache that a flush would empty.
    pub(crate) write_back: bool,
}

/// A stack that stands.
#[derive(Debug)]
pub(crate) struct Stack {
    path: String,
    // From the top down, as they are taken down.
    _mapped: Vec<Mapped>,
    _attached: Vec<Attached>,
}

impl Stack {
    /// Makes one in the empty directory `place`.
    pub(crate) fn new(kind: Kind, place: &Path) -> Result<Self, Failure> {
        let file = |name: &str| place.join(name).display().to_string();
        let image = file("image");
        fill(Path::new(&image), SIZE)?;
        let (mut mapped, mut attached) = (Vec::new(), Vec::new());
        let path = match kind {
            Kind::File => image,
            Kind::Loop(store) => {
                let device = attach(store, &image)?;
                let path = device.node().to_owned();
                attached.push(device);
                path
            }
            Kind::Snapshot {
                store,
                chunk_sectors,
                depth,
            } => {
                let origin = Attached::new(&["--read-only"], &image)?;
                let mut below = origin.node().to_owned();
                attached.push(origin);
                for level in 0..depth {
                    let cow = file(&format!("{level}.cow"));
                    run("truncate", &["--size", &(2 * SIZE).to_string(), &cow])?;
                    let cow = attach(store, &cow)?;
                    let table = format!(
                        "0 {SECTORS} snapshot {below} {} PO {chunk_sectors}",
                        cow.node()
                    );
                    let layer = Mapped::new(&format!("bench-{level}"), &table)?;
                    below = layer.node();
                    attached.push(cow);
                    mapped.insert(0, layer);
                }
                let disk = Mapped::new("bench-disk", &format!("0 {SECTORS} linear {below} 0"))?;
                let path = disk.node();
                mapped.insert(0, disk);
                path
            }
        };
        Ok(Self {
            path,
            _mapped: mapped,
            _attached: attached,
        })
    }

    /// What is read and written.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

fn attach(store: Store, path: &str) -> Result<Attached, Failure> {
    let direct = if store.direct {
        "--direct-io=on"
    } else {
        "--direct-io=off"
    };
    let device = Attached::new(&[direct], path)?;
    if !store.write_back {
        let name = device.node().trim_start_matches("/dev/");
        let cache = format!("/sys/block/{name}/queue/write_cache");
        std::fs::write(cache, "write through")?;
    }
    Ok(device)
}
