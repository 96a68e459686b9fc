//! What bears this instance's mark, or lies in its directories, and is in no row (R18, R43).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use cowslip_ledger::plan::Stray;
use cowslip_ledger::{HandleRow, HandleState, Owner, Resource};
use cowslip_model::{HandleId, InstanceId, LayerId, SandboxId, Timestamp};
use serde::Serialize;

use crate::cgroup::{self, Cgroup};
use crate::dm::{self, Device};
use crate::error::HostError;
use crate::layout::Layout;
use crate::loops::{self, Loop};
use crate::netns::{self, Netns};
use crate::process::{self, Process, ProcessSpec};

/// Everything of that kind, in the order in which it can be released: processes, the devices they
/// used, the loop devices below, files.
pub(crate) fn find(
    layout: &Layout,
    instance: InstanceId,
    rows: &[HandleRow],
) -> Result<Vec<Stray>, HostError> {
    let mut strays = processes(instance, rows)?;
    strays.extend(control_groups(instance, rows)?);
    strays.extend(networks(layout, instance, rows)?);
    strays.extend(devices(instance, rows)?);
    strays.extend(loop_devices(layout, rows)?);
    let mut files = files(layout, rows)?;
    files.sort_by(|a, b| a.what.cmp(&b.what));
    strays.extend(files);
    Ok(strays)
}

/// The word `field` of the specs of one kind.
fn words<'a>(
    rows: &'a [HandleRow],
    kind: &'a str,
    field: &'static str,
) -> impl Iterator<Item = &'a str> {
    rows.iter()
        .filter(move |row| row.kind == kind)
        .filter_map(move |row| row.spec.get(field)?.as_str())
}

/// The row that a stray would have had.
fn row(owner: Owner, kind: &str, spec: impl Serialize) -> Option<HandleRow> {
    Some(HandleRow {
        id: HandleId::from_bits(0),
        seq: 0,
        owner,
        kind: kind.to_owned(),
        state: HandleState::Reserved,
        spec: serde_json::to_value(spec).ok()?,
        identity: None,
        depends_on: Vec::new(),
        boot_id: process::boot_id(),
        created_at: Timestamp::now(),
    })
}

/// A monitor without a row is still known by its mark, so it can be ended.
fn processes(instance: InstanceId, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
    let known: HashSet<&str> = words(rows, Process::KIND, "mark").collect();
    let found = process::find_all(instance)?.into_iter();
    let mut strays: Vec<Stray> = found
        .map(|(pid, sandbox)| (pid, sandbox, process::mark(instance, sandbox)))
        .filter(|(_, _, mark)| !known.contains(mark.as_str()))
        .map(|(pid, sandbox, mark)| Stray {
            kind: Process::KIND.to_owned(),
            what: format!("process {pid} is the machine of sandbox {sandbox}, which has no record"),
            row: row(
                Owner::Machine(sandbox),
                Process::KIND,
                ProcessSpec::unjailed(mark),
            ),
        })
        .collect();
    strays.sort_by(|a, b| a.what.cmp(&b.what));
    Ok(strays)
}

fn control_groups(instance: InstanceId, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
    let known: Vec<&Path> = words(rows, Cgroup::KIND, "path").map(Path::new).collect();
    let prefix = process::mark_prefix(instance);
    let found = cgroup::strays(&prefix, &known).map_err(HostError::path(
        "look for control groups in",
        Path::new("/sys/fs/cgroup"),
    ))?;
    let strays = found.into_iter().map(|spec| {
        let name = spec.path.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
        let owner = Owner::Machine(id.unwrap_or(SandboxId::from_bits(0)));
        Stray {
            kind: Cgroup::KIND.to_owned(),
            what: format!(
                "the control group \"{}\" has no record",
                spec.path.display()
            ),
            row: row(owner, Cgroup::KIND, &spec),
        }
    });
    Ok(strays.collect())
}

fn networks(
    layout: &Layout,
    instance: InstanceId,
    rows: &[HandleRow],
) -> Result<Vec<Stray>, HostError> {
    let known: HashSet<&str> = ["path", "link"]
        .into_iter()
        .flat_map(|field| words(rows, Netns::KIND, field))
        .collect();
    let prefix = process::mark_prefix(instance);
    let found = netns::strays(&layout.networks(), &prefix, &known)?;
    let strays = found.into_iter().map(|spec| Stray {
        kind: Netns::KIND.to_owned(),
        what: format!(
            "the network \"{}\" with the interface \"{}\" has no record",
            spec.path.display(),
            spec.link
        ),
        row: row(Owner::Machine(SandboxId::from_bits(0)), Netns::KIND, &spec),
    });
    Ok(strays.collect())
}

fn devices(instance: InstanceId, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
    let known: HashSet<&str> = words(rows, Device::KIND, "name").collect();
    let strays = dm::strays(instance, &known)?.into_iter().map(|spec| Stray {
        kind: Device::KIND.to_owned(),
        what: format!("the device \"{}\" has no record", spec.name),
        row: row(owner_of(&spec.name), Device::KIND, &spec),
    });
    Ok(strays.collect())
}

/// Whom a device belonged to, by its name. It only matters for messages.
fn owner_of(name: &str) -> Owner {
    let id = name.rsplit('-').next().unwrap_or_default();
    if name.contains("-disk-") {
        Owner::Machine(id.parse().unwrap_or(SandboxId::from_bits(0)))
    } else {
        Owner::Layer(id.parse().unwrap_or(LayerId::from_bits(0)))
    }
}

fn loop_devices(layout: &Layout, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
    let known: HashSet<PathBuf> = words(rows, Loop::KIND, "path").map(PathBuf::from).collect();
    let strays = loops::strays(&layout.collections(), &known)?;
    let strays = strays.into_iter().map(|spec| Stray {
        kind: Loop::KIND.to_owned(),
        what: format!(
            "a loop device over \"{}\" has no record",
            spec.path.display()
        ),
        row: row(Owner::Layer(LayerId::from_bits(0)), Loop::KIND, &spec),
    });
    Ok(strays.collect())
}

fn files(layout: &Layout, rows: &[HandleRow]) -> Result<Vec<Stray>, HostError> {
    let known: HashSet<PathBuf> = rows
        .iter()
        .filter(|row| row.kind != Loop::KIND)
        .filter_map(|row| row.spec.get("path")?.as_str())
        .map(PathBuf::from)
        .collect();
    let mut strays = Vec::new();
    for dir in layout.collections().iter().chain([&layout.machines()]) {
        for entry in std::fs::read_dir(dir).map_err(HostError::path("list", dir))? {
            let path = entry.map_err(HostError::path("list", dir))?.path();
            if !known.contains(&path) {
                strays.push(Stray {
                    kind: "path".to_owned(),
                    what: format!("\"{}\" is in no record", path.display()),
                    row: None,
                });
            }
        }
    }
    Ok(strays)
}
