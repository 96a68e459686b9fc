//! The API's objects as people read them.

use std::time::Duration;

use cowslip_host::prepare::{Line, Outcome};
use cowslip_model::api::{
    Check, CheckStatus, Checkpoint, Diff, DoctorReport, Event, GcReport, Info, Kernel, Sandbox,
    Template,
};
use cowslip_model::{ByteSize, Name, SandboxState, Timestamp};

use super::table::{Table, Tone};
use crate::exit::one_line;

fn plain(text: impl Into<String>) -> (String, Tone) {
    (text.into(), Tone::Plain)
}

/// A span in its two largest units, as `3d 4h` or `12s`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let two = |a: u64, x: &str, b: u64, y: &str| match b {
        0 => format!("{a}{x}"),
        b => format!("{a}{x} {b}{y}"),
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => two(minutes, "m", seconds % 60, "s"),
        (0, hours, minutes) => two(hours, "h", minutes, "m"),
        (days, hours, _) => two(days, "d", hours, "h"),
    }
}

fn state(sandbox: &Sandbox) -> (String, Tone) {
    let tone = match sandbox.state {
        SandboxState::Running if sandbox.frozen => Tone::Warning,
        SandboxState::Running => Tone::Good,
        SandboxState::Failed => Tone::Bad,
        SandboxState::Paused | SandboxState::Creating => Tone::Warning,
        SandboxState::Stopped => Tone::Plain,
    };
    let text = match sandbox.transition {
        Some(way) => way.to_string(),
        None if sandbox.frozen => format!("{}, disk full", sandbox.state),
        None => sandbox.state.to_string(),
    };
    (text, tone)
}

/// Sandboxes.
pub(crate) fn sandboxes(items: &[Sandbox], now: Timestamp, whole: bool) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "ID",
        "TEMPLATE",
        "STATE",
        "AGE",
        "CPUS",
        "MEMORY",
        "DISK USED",
        "TTL LEFT",
    ]);
    for item in items {
        let template = item.template_name.as_ref().map_or_else(
            || {
                if whole {
                    item.template.to_string()
                } else {
                    item.template.short()
                }
            },
            Name::to_string,
        );
        table.row(vec![
            plain(item.name.to_string()),
            plain(if whole {
                item.id.to_string()
            } else {
                item.id.short()
            }),
            plain(template),
            state(item),
            plain(span(now.since(item.created_at))),
            plain(item.cpus.to_string()),
            plain(item.memory.to_string()),
            plain(item.disk_used.to_string()),
            plain(
                item.expires_at
                    .map_or_else(|| "-".to_owned(), |end| span(end.since(now))),
            ),
        ]);
    }
    table
}

/// Templates.
pub(crate) fn templates(items: &[Template], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "NAME", "ID", "SIZE", "USED", "ENTRIES", "SOURCE", "LAYERS", "AGE",
    ]);
    for item in items {
        let names: Vec<&str> = item.names.iter().map(Name::as_str).collect();
        table.row(vec![
            plain(if names.is_empty() {
                "-".to_owned()
            } else {
                names.join(", ")
            }),
            plain(item.id.short()),
            plain(item.size.to_string()),
            plain(item.used.to_string()),
            plain(item.entries.to_string()),
            plain(item.source.clone()),
            plain(item.layers.to_string()),
            plain(span(now.since(item.created_at))),
        ]);
    }
    table
}

/// What the layers of a disk changed, the last one on top as it lies, and all of them together.
pub(crate) fn diff(found: &Diff) -> String {
    let mut table = Table::new(&["LAYER", "CHANGED", "DISK USED", "STATE", "CHECKPOINTS"]);
    for layer in found.layers.iter().rev() {
        let names: Vec<&str> = layer.checkpoints.iter().map(Name::as_str).collect();
        table.row(vec![
            plain(layer.id.short()),
            plain(layer.changed.to_string()),
            plain(layer.occupied.to_string()),
            plain(if layer.frozen { "frozen" } else { "writable" }),
            plain(names.join(", ")),
        ]);
    }
    let template = found
        .template_name
        .as_ref()
        .map_or_else(|| found.template.short(), Name::to_string);
    let occupied: u64 = found.layers.iter().map(|one| one.occupied.bytes()).sum();
    table.row(vec![
        plain("together"),
        plain(found.changed.to_string()),
        plain(ByteSize(occupied).to_string()),
        plain(""),
        plain(format!("over template {template}, disk of {}", found.size)),
    ]);
    table.render(super::table::Style::of_stdout())
}

/// How long the parts of sandboxes' last starts took.
pub(crate) fn timings(items: &[Sandbox]) -> String {
    let mut table = Table::new(&["SANDBOX", "PHASE", "TIME"]);
    let millis = |us: u64| format!("{}.{:03} ms", us / 1000, us % 1000);
    for item in items {
        let parts = item
            .phases
            .iter()
            .map(|phase| (phase.name.as_str(), phase.us));
        let whole = ("together", item.phases.iter().map(|phase| phase.us).sum());
        for (name, us) in parts.chain([whole]) {
            table.row(vec![
                plain(item.name.to_string()),
                plain(name),
                plain(millis(us)),
            ]);
        }
    }
    table.render(super::table::Style::of_stdout())
}

/// Kernels.
pub(crate) fn kernels(items: &[Kernel], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "NAME", "ID", "RELEASE", "FORMAT", "MODULES", "SIZE", "AGE", "DEFAULT",
    ]);
    for item in items {
        table.row(vec![
            plain(item.name.to_string()),
            plain(item.id.short()),
            plain(item.release.clone()),
            plain(item.format.clone()),
            plain(item.modules.to_string()),
            plain(item.size.to_string()),
            plain(span(now.since(item.created_at))),
            plain(if item.default { "yes" } else { "" }),
        ]);
    }
    table
}

/// Checkpoints.
pub(crate) fn checkpoints(items: &[Checkpoint], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "ID",
        "SANDBOX",
        "MEMORY USED",
        "DISK USED",
        "DOWNTIME",
        "AGE",
    ]);
    for item in items {
        table.row(vec![
            plain(item.name.to_string()),
            plain(item.id.short()),
            plain(item.sandbox_name.to_string()),
            plain(item.memory_used.to_string()),
            plain(item.disk_used.to_string()),
            plain(format!("{:.0} ms", item.downtime_ms)),
            plain(span(now.since(item.created_at))),
        ]);
    }
    table
}

/// One event, as a line.
pub(crate) fn event(event: &Event) -> String {
    let mut line = format!("{}  {}  {}", event.at, event.kind, event.id);
    if let Some(name) = &event.name {
        line.push_str(&format!("  {name}"));
    }
    let empty =
        event.detail.is_null() || event.detail.as_object().is_some_and(|map| map.is_empty());
    if !empty {
        line.push_str(&format!("  {}", event.detail));
    }
    one_line(&line) + "\n"
}

/// Pairs of a label and a value, aligned.
fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs
        .iter()
        .map(|(label, _)| label.len())
        .max()
        .unwrap_or(0);
    pairs
        .iter()
        .map(|(label, value)| format!("{label:width$}  {}\n", one_line(value)))
        .collect()
}

/// What the engine is and uses.
pub(crate) fn info(info: &Info) -> String {
    let sandboxes = if info.sandboxes.is_empty() {
        "none".to_owned()
    } else {
        let counts = info
            .sandboxes
            .iter()
            .map(|(state, count)| format!("{count} {state}"));
        counts.collect::<Vec<_>>().join(", ")
    };
    pairs(&[
        ("version", info.version.clone()),
        ("engine", format!("process {}", info.pid)),
        ("instance", info.instance.clone()),
        (
            "state directory",
            format!("{} ({} free)", info.state_dir, info.disk_free),
        ),
        ("run directory", info.run_dir.clone()),
        ("memory available", info.memory_available.to_string()),
        (
            "volumes",
            format!("{} ({})", info.backend, info.backend_reason),
        ),
        (
            "monitor",
            match &info.monitor {
                Some(monitor) => format!("{monitor}: {}", info.monitor_reason),
                None => info.monitor_reason.clone(),
            },
        ),
        ("accelerator", info.accelerator_reason.clone()),
        ("sandboxes", sandboxes),
        ("templates", info.templates.to_string()),
        ("kernels", info.kernels.to_string()),
        ("checkpoints", info.checkpoints.to_string()),
        ("handles", info.handles.to_string()),
    ])
}

/// What `doctor` found.
pub(crate) fn doctor(report: &DoctorReport, colour: bool) -> String {
    let width = report
        .checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut text: String = report
        .checks
        .iter()
        .map(|one| check_line(one, width, colour))
        .collect();
    if report.differences.is_empty() {
        text.push_str("\nthe ledger and the host agree\n");
    } else {
        text.push_str("\nthe ledger and the host differ; \"cowslip gc\" would take these steps:\n");
        for step in &report.differences {
            text.push_str(&format!("  {}\n", one_line(step)));
        }
    }
    text
}

fn check_line(check: &Check, width: usize, colour: bool) -> String {
    let (word, code) = match check.status {
        CheckStatus::Ok => ("ok     ", 32),
        CheckStatus::Warning => ("warning", 33),
        CheckStatus::Failed => ("failed ", 31),
    };
    let word = if colour {
        format!("\u{1b}[{code}m{word}\u{1b}[0m")
    } else {
        word.to_owned()
    };
    let mut line = format!(
        "{word}  {:width$}  {}\n",
        check.name,
        one_line(&check.detail)
    );
    if let Some(mend) = &check.mend {
        line.push_str(&format!(
            "         {:width$}  to mend it: {}\n",
            "",
            one_line(mend)
        ));
    }
    line
}

/// What `host prepare` and `host undo` found and did. What failed is told as a failure.
pub(crate) fn preparation(lines: &[Line]) -> Table {
    let mut table = Table::new(&["STEP", "OBJECT", "STATE", "DETAIL"]);
    for line in lines {
        let tone = match line.outcome {
            Outcome::Ready | Outcome::Done | Outcome::Undone => Tone::Good,
            Outcome::Needed | Outcome::Left => Tone::Warning,
            Outcome::Impossible | Outcome::Unneeded | Outcome::Gone => Tone::Plain,
            Outcome::Failed => continue,
        };
        table.row(vec![
            plain(line.part.as_str()),
            plain(line.object.as_str()),
            (line.outcome.as_str().to_owned(), tone),
            plain(line.detail.as_str()),
        ]);
    }
    table
}

/// What `gc` released.
pub(crate) fn gc(report: &GcReport) -> String {
    if report.released.is_empty() && report.left.is_empty() {
        return "nothing to release\n".to_owned();
    }
    let released = report
        .released
        .iter()
        .map(|what| format!("released  {}\n", one_line(what)));
    let left = report
        .left
        .iter()
        .map(|what| format!("left      {}\n", one_line(what)));
    released.chain(left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        let text = |seconds| span(Duration::from_secs(seconds));
        assert_eq!(text(0), "0s");
        assert_eq!(text(59), "59s");
        assert_eq!(text(60), "1m");
        assert_eq!(text(3_661), "1h 1m");
        assert_eq!(text(90_000), "1d 1h");
        assert_eq!(text(172_800), "2d");
    }
}
