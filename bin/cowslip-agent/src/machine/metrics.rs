//! Memory, disk, load and cpu, as /proc tells them.

use std::fs;
use std::io;

use cowslip_proto::pb::MetricsReply;

use super::disk;

/// Microseconds in one tick of /proc/stat: USER_HZ is 100 on every architecture that we run on.
const TICK_US: u64 = 10_000;

/// Reads all of them.
pub(crate) fn read() -> io::Result<MetricsReply> {
    let (disk_total_bytes, disk_available_bytes) = disk::root_size()?;
    let mut reply = MetricsReply {
        disk_total_bytes,
        disk_available_bytes,
        ..Default::default()
    };
    memory(&fs::read_to_string("/proc/meminfo")?, &mut reply);
    load(&fs::read_to_string("/proc/loadavg")?, &mut reply);
    cpu(&fs::read_to_string("/proc/stat")?, &mut reply);
    Ok(reply)
}

fn memory(text: &str, reply: &mut MetricsReply) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(kib)) = (words.next(), words.next()) else {
            continue;
        };
        let bytes = kib.parse::<u64>().unwrap_or(0).saturating_mul(1024);
        match name {
            "MemTotal:" => reply.mem_total_bytes = bytes,
            "MemAvailable:" => reply.mem_available_bytes = bytes,
            "SwapTotal:" => reply.swap_total_bytes = bytes,
            "SwapFree:" => reply.swap_free_bytes = bytes,
            _ => {}
        }
    }
}

fn load(text: &str, reply: &mut MetricsReply) {
    let mut words = text.split_ascii_whitespace();
    let mut next = || milli(words.next().unwrap_or_default());
    reply.load1_milli = next();
    reply.load5_milli = next();
    reply.load15_milli = next();
    let tasks = words
        .next()
        .and_then(|w| w.split_once('/'))
        .map(|(_, all)| all);
    reply.processes = tasks.and_then(|t| t.parse().ok()).unwrap_or(0);
}

/// "1.25" is 1250.
fn milli(text: &str) -> u32 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part = format!("{part:0<3.3}");
    let whole = whole.parse::<u32>().unwrap_or(0);
    whole
        .saturating_mul(1000)
        .saturating_add(part.parse().unwrap_or(0))
}

fn cpu(text: &str, reply: &mut MetricsReply) {
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("cpu") else {
            continue;
        };
        let Some(all) = rest.strip_prefix(' ') else {
            reply.cpus += 1;
            continue;
        };
        let ticks = all
            .split_ascii_whitespace()
            .map(|n| n.parse::<u64>().unwrap_or(0));
        let us = ticks.map(|t| t.saturating_mul(TICK_US)).collect::<Vec<_>>();
        let at = |i: usize| us.get(i).copied().unwrap_or(0);
        // user nice system idle iowait irq softirq steal
        reply.cpu_user_us = at(0) + at(1);
        reply.cpu_system_us = at(2) + at(5) + at(6);
        reply.cpu_idle_us = at(3) + at(4);
        reply.cpu_steal_us = at(7);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_the_kernel_writes_it() {
        let mut m = MetricsReply::default();
        memory(
            "MemTotal:  2048 kB\nMemAvailable: 1024 kB\nHugePages_Total: 0\n",
            &mut m,
        );
        load("0.05 1.25 12.00 1/73 4711\n", &mut m);
        cpu(
            "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 5\n",
            &mut m,
        );
        assert_eq!(
            (m.mem_total_bytes, m.mem_available_bytes),
            (2 << 20, 1 << 20)
        );
        assert_eq!(
            (m.load1_milli, m.load5_milli, m.load15_milli),
            (50, 1250, 12000)
        );
        assert_eq!((m.cpus, m.processes), (1, 73));
        assert_eq!((m.cpu_user_us, m.cpu_system_us), (30_000, 160_000));
        assert_eq!((m.cpu_idle_us, m.cpu_steal_us), (90_000, 80_000));
    }
}
