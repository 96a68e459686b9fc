//! The root disk as block nodes.
//!
//! ```text
//!   disk0 (virtio-blk) ── layer-<file> (qcow2, written) ── below-1 (qcow2) ── below-0 (raw)
//!                              │                              │                  │
//!                         layer-<file>-file              below-1-file       below-0-file
//!                              │ /dev/fdset                   │ /dev/fdset       │ /dev/fdset
//! ```
//!
//! The monitor opens no path: each file is a set of passed descriptors. The written layer's set holds
//! one for reading and writing and one for reading only, since QEMU takes the second when the layer is
//! frozen or the machine's image is saved. A written layer's node bears the stem of its file's name,
//! so that the machine itself tells which file it writes, also to an engine that did not start it.
//!
//! Guest flushes end in the page cache (`no-flush`) unless [`Durability`] says otherwise: a running disk
//! need not survive a power cut, and the engine syncs what it publishes. The ledger owns exclusivity, hence no file locks. Nor does a
//! save or restore drop the files from the page cache (`drop-cache`): QEMU does that for a disk that
//! another host has written, and here it would sync the layer while the guest stands still, and take
//! the template from the cache of every other machine.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cowslip_model::{DiskChain, DiskFormat, DiskLayer, DiskLimits, Durability};
use serde_json::{Value, json};

use super::passing::{Passed, open_disk};
use super::qmp::{Qmp, QmpError};
use crate::VmmError;

/// The device's id.
pub(super) const DEVICE: &str = "disk0";
/// QEMU's bound on node names, in bytes.
const NODE_NAME_MAX: usize = 31;
const WRITTEN: &str = "layer-";
const FILE: &str = "-file";

/// Options of the monitor and the node that the device is put on.
#[derive(Debug)]
pub(super) struct DiskOptions {
    pub(super) arguments: Vec<String>,
    pub(super) top: String,
}

fn driver(format: DiskFormat) -> &'static str {
    match format {
        // What a monitor opens over an exception store is a device: the disk's own bytes.
        DiskFormat::Raw | DiskFormat::Snapshot => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// The name of the node that writes `path`.
fn written_node(path: &Path) -> Result<String, VmmError> {
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let fits = stem.len() + WRITTEN.len() + FILE.len() <= NODE_NAME_MAX;
    if stem.is_empty() || !fits || !stem.bytes().all(plain) {
        return Err(VmmError::File {
            operation: "name a block node after",
            path: path.to_owned(),
            source: std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "the file's name must have 1 to 20 letters, digits, - and _",
            ),
        });
    }
    Ok(format!("{WRITTEN}{stem}"))
}

/// The file that the node `name` writes. `started` is the one that the machine was started on; layers
/// that were put over it lie beside it and are qcow2.
fn written_file(name: &str, started: &Path) -> Option<PathBuf> {
    let stem = name.strip_prefix(WRITTEN)?;
    Some(if started.file_stem() == Some(stem.as_ref()) {
        started.to_owned()
    } else {
        started.with_file_name(format!("{stem}.qcow2"))
    })
}

/// Whether the open file is a block device.
fn is_device(file: &std::fs::File) -> bool {
    use std::os::unix::fs::FileTypeExt;
    file.metadata()
        .is_ok_and(|found| found.file_type().is_block_device())
}

/// `device`: it is a block device. What the guest writes to one goes straight there, since a device
/// that is switched under the monitor must not have writes waiting in a cache above it.
fn file_node(node: &str, set: i64, read_only: bool, device: bool, durability: Durability) -> Value {
    let mut value = json!({
        "driver": if device { "host_device" } else { "file" },
        "node-name": format!("{node}{FILE}"),
        "filename": format!("/dev/fdset/{set}"),
        "locking": "off",
        "aio": "threads",
        "cache": { "direct": device, "no-flush": durability == Durability::Published },
        "drop-cache": false,
    });
    if let Some(object) = value.as_object_mut() {
        if read_only {
            object.insert("read-only".to_owned(), json!(true));
        } else {
            object.insert("auto-read-only".to_owned(), json!(true));
            object.insert("discard".to_owned(), json!("unmap"));
        }
    }
    value
}

fn format_node(node: &str, layer: &DiskLayer, below: Option<&str>, read_only: bool) -> Value {
    let mut value = json!({
        "driver": driver(layer.format),
        "node-name": node,
        "file": format!("{node}{FILE}"),
        "read-only": read_only,
    });
    if let Some(object) = value.as_object_mut() {
        if layer.format == DiskFormat::Qcow2 {
            // Explicit, also where there is none: the path in the file's header is never followed.
            object.insert("backing".to_owned(), json!(below));
        }
        if !read_only {
            object.insert("discard".to_owned(), json!("unmap"));
        }
    }
    value
}

/// Opens the files of `chain` and gives the options that make it a disk.
pub(super) fn options(chain: &DiskChain, passed: &mut Passed) -> Result<DiskOptions, VmmError> {
    let mut arguments = Vec::new();
    let mut below: Option<String> = None;
    let mut set = 0;
    for (index, layer) in chain.frozen.iter().enumerate() {
        set += 1;
        let node = format!("below-{index}");
        let file = open_disk(&layer.path, false)?;
        let device = is_device(&file);
        let fd = passed.add(file);
        arguments.extend([
            "-add-fd".to_owned(),
            format!("fd={fd},set={set},opaque={node}:r"),
        ]);
        push_node(
            &mut arguments,
            &file_node(&node, set, true, device, chain.durability),
        );
        push_node(
            &mut arguments,
            &format_node(&node, layer, below.as_deref(), true),
        );
        below = Some(node);
    }
    set += 1;
    let node = written_node(&chain.top.path)?;
    let mut device = false;
    for (write, word) in [(true, "w"), (false, "r")] {
        let file = open_disk(&chain.top.path, write)?;
        device = is_device(&file);
        let fd = passed.add(file);
        arguments.extend([
            "-add-fd".to_owned(),
            format!("fd={fd},set={set},opaque={node}:{word}"),
        ]);
    }
    push_node(
        &mut arguments,
        &file_node(&node, set, false, device, chain.durability),
    );
    push_node(
        &mut arguments,
        &format_node(&node, &chain.top, below.as_deref(), false),
    );
    Ok(DiskOptions {
        arguments,
        top: node,
    })
}

fn push_node(arguments: &mut Vec<String>, node: &Value) {
    arguments.extend(["-blockdev".to_owned(), node.to_string()]);
}

/// Why the disk of a running machine was not changed, or not looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("{0}")]
    Unfit(String),
    #[error(transparent)]
    File(#[from] VmmError),
}

/// The node that the guest writes.
async fn active(qmp: &Qmp) -> Result<String, DiskError> {
    let path = format!("/machine/peripheral/{DEVICE}");
    let node = qmp
        .execute("qom-get", json!({ "path": path, "property": "drive" }))
        .await?;
    match node {
        Value::String(node) => Ok(node),
        other => Err(DiskError::Unfit(format!(
            "its root disk is no block node but {other}"
        ))),
    }
}

/// The file that the guest's writes go to. `started` is the file
/// that the machine was started on, or one beside it.
pub(super) async fn top(qmp: &Qmp, started: &Path) -> Result<PathBuf, DiskError> {
    let node = active(qmp).await?;
    written_file(&node, started)
        .ok_or_else(|| DiskError::Unfit(format!("its disk is the unknown block node \"{node}\"")))
}

/// Puts the empty overlay `next` over the written layer, which is flushed and only read from then on.
pub(super) async fn change(
    qmp: &Qmp,
    next: &DiskLayer,
    durability: Durability,
) -> Result<(), DiskError> {
    if next.format != DiskFormat::Qcow2 {
        return Err(DiskError::Unfit(
            "only a qcow2 layer can be put over another".to_owned(),
        ));
    }
    let node = written_node(&next.path)?;
    let old = active(qmp).await?;
    if old == node {
        return Err(DiskError::Unfit(format!(
            "\"{}\" is its disk already",
            next.path.display()
        )));
    }
    let set = pass(qmp, &node, next).await?;
    let swapped = swap(qmp, &old, &node, set, next, durability).await;
    // Only a refusal says that nothing was done; without an answer the swap may have taken place.
    if matches!(swapped, Err(QmpError::Refused { .. })) {
        // What was added is taken out again, newest first; a part that never was does not matter.
        for name in [node.clone(), format!("{node}{FILE}")] {
            let _ = qmp
                .execute("blockdev-del", json!({ "node-name": name }))
                .await;
        }
        let _ = qmp.execute("remove-fd", json!({ "fdset-id": set })).await;
    }
    swapped?;
    // A layer that QEMU could not reopen for reading only may hold unwritten tables.
    if is_read_only(qmp, &old).await? {
        Ok(())
    } else {
        Err(DiskError::Unfit(format!(
            "the frozen layer \"{old}\" is still open for writing"
        )))
    }
}

/// Hands over the descriptors of a new layer and gives the number of their set.
async fn pass(qmp: &Qmp, node: &str, layer: &DiskLayer) -> Result<i64, DiskError> {
    let write: OwnedFd = open_disk(&layer.path, true)?.into();
    let read: OwnedFd = open_disk(&layer.path, false)?.into();
    let added = qmp
        .execute_with_fd("add-fd", json!({ "opaque": format!("{node}:w") }), write)
        .await?;
    let set = added["fdset-id"]
        .as_i64()
        .ok_or_else(|| DiskError::Unfit(format!("add-fd gave no set but {added}")))?;
    let arguments = json!({ "fdset-id": set, "opaque": format!("{node}:r") });
    if let Err(error) = qmp.execute_with_fd("add-fd", arguments, read).await {
        let _ = qmp.execute("remove-fd", json!({ "fdset-id": set })).await;
        return Err(error.into());
    }
    Ok(set)
}

async fn swap(
    qmp: &Qmp,
    old: &str,
    node: &str,
    set: i64,
    next: &DiskLayer,
    durability: Durability,
) -> Result<(), QmpError> {
    let file = file_node(node, set, false, false, durability);
    qmp.execute("blockdev-add", file).await?;
    qmp.execute("blockdev-add", format_node(node, next, None, false))
        .await?;
    qmp.execute("blockdev-snapshot", json!({ "node": old, "overlay": node }))
        .await?;
    Ok(())
}

async fn is_read_only(qmp: &Qmp, node: &str) -> Result<bool, QmpError> {
    let nodes = qmp
        .execute("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    Ok(nodes
        .as_array()
        .into_iter()
        .flatten()
        .any(|found| found["node-name"] == node && found["ro"] == true))
}

/// Takes the right to write away from layers that were frozen: QEMU still has the descriptor it wrote
/// them with. It closes it only while the machine runs.
pub(super) async fn retire(qmp: &Qmp) -> Result<(), DiskError> {
    let sets = qmp.execute("query-fdsets", json!({})).await?;
    let writable: Vec<(i64, i64, String)> = sets
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|set| {
            let id = set["fdset-id"].as_i64();
            set["fds"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(move |fd| {
                    let node = fd["opaque"].as_str()?.strip_suffix(":w")?.to_owned();
                    Some((id?, fd["fd"].as_i64()?, node))
                })
        })
        .collect();
    if writable.len() < 2 {
        return Ok(());
    }
    let top = active(qmp).await?;
    for (set, fd, node) in writable {
        if node != top {
            qmp.execute("remove-fd", json!({ "fdset-id": set, "fd": fd }))
                .await?;
        }
    }
    Ok(())
}

/// Bounds how fast the disk is used, whichever layers it stands on.
pub(super) async fn limit(qmp: &Qmp, limits: &DiskLimits) -> Result<(), QmpError> {
    let arguments = json!({
        "id": format!("/machine/peripheral/{DEVICE}/virtio-backend"),
        "bps": limits.bandwidth.map_or(0, |bytes| bytes.bytes()),
        "bps_rd": 0,
        "bps_wr": 0,
        "iops": limits.operations.unwrap_or(0),
        "iops_rd": 0,
        "iops_wr": 0,
    });
    qmp.execute("block_set_io_throttle", arguments)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_leads_back_to_its_file() {
        let first = Path::new("/s/layers/00000000000000aa.qcow2");
        let second = Path::new("/s/layers/00000000000000bb.qcow2");
        let name = written_node(second).unwrap();
        assert!(name.len() + FILE.len() <= NODE_NAME_MAX);
        assert_eq!(written_file(&name, first).as_deref(), Some(second));
        let odd = Path::new("/s/layers/disk.img");
        assert_eq!(
            written_file(&written_node(odd).unwrap(), odd).as_deref(),
            Some(odd)
        );
        assert_eq!(written_file("below-0", odd), None);
    }

    #[test]
    fn names_that_are_no_node_names_are_refused() {
        for bad in [
            "/l/a,b.qcow2",
            "/l/a b.qcow2",
            "/l/012345678901234567890.qcow2",
            "/",
            "/l/ü.raw",
        ] {
            assert!(written_node(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_header_of_a_layer_is_never_followed() {
        let layer = DiskLayer {
            path: "/l/a.qcow2".into(),
            format: DiskFormat::Qcow2,
        };
        assert_eq!(format_node("n", &layer, None, true)["backing"], Value::Null);
        assert!(
            format_node("n", &layer, None, true)
                .get("backing")
                .is_some()
        );
        let raw = DiskLayer {
            path: "/l/a.raw".into(),
            format: DiskFormat::Raw,
        };
        assert!(format_node("n", &raw, None, false).get("backing").is_none());
    }
}
