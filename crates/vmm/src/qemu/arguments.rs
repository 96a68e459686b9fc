//! The monitor's command line. Why each choice, with figures: `docs/qemu.md`.

use cowslip_model::ByteSize;

use super::accelerator::Accelerator;
use super::disk::{self, DiskOptions};
use super::network::{self, NetworkOptions};

/// The machine type, versioned so that a newer QEMU still shows the guest the same machine.
pub(super) const MACHINE: &str = "pc-q35-7.2";

/// The name of the agent's port in the guest (`/sys/class/virtio-ports/*/name`).
const AGENT_PORT: &str = "org.cowslip.agent";

/// PCI slots, fixed: a device that is added or left out later must not move the others, or no
/// earlier image could be restored.
mod slot {
    pub(super) const SERIAL: &str = "0x2";
    pub(super) const DISK: &str = "0x3";
    pub(super) const RANDOM: &str = "0x4";
    pub(super) const BALLOON: &str = "0x5";
    pub(super) const NETWORK: &str = "0x6";
}

/// Words of every guest's command line: speak on the serial console, and let a panic end the machine
/// (`-no-reboot` turns the reset into an end).
const COMMAND_LINE: &[&str] = &["console=ttyS0", "quiet", "panic=-1", "reboot=t"];
/// Under translation: no cmpxchg16b, which the kernel's allocator does all the time and which QEMU before 8.0 gets
/// wrong (`docs/qemu.md`); no patching of code that was just translated, no self-tests of ciphers, no second
/// look at timers that a busy host makes look bad (`docs/guest-kernel.md`).
const COMMAND_LINE_TCG: &[&str] = &[
    "clearcpuid=141",
    "noreplace-smp",
    "tsc=reliable",
    "no_timer_check",
    "cryptomgr.notests",
    "8250.nr_uarts=1",
    "raid=noautodetect",
];

/// How the machine begins.
#[derive(Debug)]
pub(super) enum Start {
    /// From a kernel.
    Boot {
        /// The kernel's name for the monitor.
        kernel: String,
        /// The initramfs' name for the monitor.
        initramfs: String,
        /// Words added to the command line.
        words: Vec<String>,
    },
    /// From an image that comes over the control channel. The guest's memory holds its kernel: the
    /// files are not read again.
    Incoming,
}

/// What the command line is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) mark: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) cpus: u32,
    pub(super) memory: ByteSize,
    pub(super) start: &'a Start,
    pub(super) disk: Option<&'a DiskOptions>,
    pub(super) network: Option<&'a NetworkOptions>,
    /// Listening sockets, as inherited descriptors.
    pub(super) control: i32,
    pub(super) agent: i32,
    pub(super) console: i32,
}

/// The arguments. The vCPUs stand still until the control channel says `cont`.
pub(super) fn build(parts: &Parts<'_>) -> Vec<String> {
    let mut line = Line::default();
    line.option("-name", format!("guest={}", parts.mark));
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.flag("-no-reboot");
    line.flag("-S");
    line.option("-display", "none");
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    machine(&mut line, parts);
    start(&mut line, parts);
    channels(&mut line, parts);
    devices(&mut line, parts);
    line.0
}

fn machine(line: &mut Line, parts: &Parts<'_>) {
    // Off is what no guest of ours uses and a hostile one could only attack. Memory is not merged
    // with other machines' (a side channel), nor put into core files.
    let without = "usb=off,vmport=off,smbus=off,sata=off,i8042=off,smm=off,hpet=off";
    line.option(
        "-machine",
        format!("{MACHINE},{without},mem-merge=off,dump-guest-core=off"),
    );
    match parts.accelerator {
        Accelerator::Kvm => {
            line.option("-accel", "kvm");
            line.option("-cpu", "host,migratable=on");
        }
        Accelerator::Tcg => {
            line.option("-accel", "tcg,thread=multi,tb-size=128");
            line.option("-cpu", "max");
        }
    }
    line.option("-smp", format!("cpus={}", parts.cpus));
    line.option("-m", format!("size={}M", parts.memory.mib_ceil()));
    line.option("-rtc", "base=utc,clock=host");
}

fn start(line: &mut Line, parts: &Parts<'_>) {
    match parts.start {
        Start::Boot {
            kernel,
            initramfs,
            words,
        } => {
            line.option("-kernel", kernel);
            line.option("-initrd", initramfs);
            line.option("-append", command_line(parts.accelerator, words));
        }
        Start::Incoming => line.option("-incoming", "defer"),
    }
}

/// The guest kernel's command line; later words win, so the caller's come last.
fn command_line(accelerator: Accelerator, words: &[String]) -> String {
    let translated = if accelerator == Accelerator::Tcg {
        COMMAND_LINE_TCG
    } else {
        &[]
    };
    let own = COMMAND_LINE.iter().chain(translated).copied();
    own.chain(words.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

fn channels(line: &mut Line, parts: &Parts<'_>) {
    for (id, fd) in [
        ("control", parts.control),
        ("agent", parts.agent),
        ("console", parts.console),
    ] {
        line.option(
            "-chardev",
            format!("socket,id={id},fd={fd},server=on,wait=off"),
        );
    }
    line.option("-mon", "chardev=control,mode=control");
    line.option("-serial", "chardev:console");
}

fn devices(line: &mut Line, parts: &Parts<'_>) {
    line.option(
        "-device",
        format!(
            "virtio-serial-pci,id=serial0,addr={},max_ports=2",
            slot::SERIAL
        ),
    );
    line.option(
        "-device",
        format!("virtserialport,bus=serial0.0,nr=1,chardev=agent,name={AGENT_PORT}"),
    );
    if let Some(options) = parts.disk {
        line.0.extend(options.arguments.iter().cloned());
        let device = disk::DEVICE;
        line.option(
            "-device",
            format!(
                "virtio-blk-pci,id={device},addr={},drive={}",
                slot::DISK,
                options.top
            ),
        );
    }
    if let Some(options) = parts.network {
        line.option("-netdev", options.backend.clone());
        // Guests do not boot from it: no program for that is read from a file.
        line.option(
            "-device",
            format!(
                "virtio-net-pci,addr={},netdev={},mac={},romfile=",
                slot::NETWORK,
                network::BACKEND,
                options.mac
            ),
        );
    }
    line.option("-device", format!("virtio-rng-pci,addr={}", slot::RANDOM));
    // Gives back to the host what the guest has freed.
    line.option(
        "-device",
        format!(
            "virtio-balloon-pci,addr={},free-page-reporting=on",
            slot::BALLOON
        ),
    );
    // A new number at every start: a restored guest's kernel reseeds its random pool by itself.
    line.option("-device", "vmgenid,guid=auto");
}

/// A growing list of arguments.
#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_owned(), value.into()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(start: &Start, accelerator: Accelerator) -> Vec<String> {
        build(&Parts {
            mark: "cowslip-00000000000000aa-00000000000000bb",
            accelerator,
            cpus: 2,
            memory: ByteSize::mib(256),
            start,
            disk: None,
            network: None,
            control: 10,
            agent: 11,
            console: 12,
        })
    }

    #[test]
    fn every_machine_is_confined_and_bears_its_mark() {
        for accelerator in [Accelerator::Tcg, Accelerator::Kvm] {
            let line = parts(&Start::Incoming, accelerator).join(" ");
            for needed in [
                "-name guest=cowslip-00000000000000aa-00000000000000bb ",
                "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-S",
                "mem-merge=off",
            ] {
                assert!(line.contains(needed), "{needed} is not in {line}");
            }
            assert!(!line.contains("-kernel"), "{line}");
        }
    }

    #[test]
    fn a_restored_machine_is_the_one_that_was_booted() {
        let start = Start::Boot {
            kernel: "/proc/self/fd/20".into(),
            initramfs: "/proc/self/fd/21".into(),
            words: vec!["cowslip.root=/dev/vda".into()],
        };
        let hardware = |line: Vec<String>| -> Vec<String> {
            line.chunks(1)
                .flatten()
                .filter(|word| !word.starts_with("console=") && !word.contains("/proc/self/fd"))
                .filter(|word| {
                    !matches!(
                        word.as_str(),
                        "-kernel" | "-initrd" | "-append" | "-incoming" | "defer"
                    )
                })
                .cloned()
                .collect()
        };
        let booted = hardware(parts(&start, Accelerator::Tcg));
        assert_eq!(booted, hardware(parts(&Start::Incoming, Accelerator::Tcg)));
    }

    #[test]
    fn the_callers_words_come_last() {
        let line = command_line(Accelerator::Tcg, &["tsc=unstable".into()]);
        assert!(line.ends_with(" tsc=unstable"), "{line}");
        assert!(line.contains(" clearcpuid=141 "), "{line}");
        let on_kvm = command_line(Accelerator::Kvm, &[]);
        assert!(!on_kvm.contains("tsc"), "KVM has a clock of its own");
        assert!(!on_kvm.contains("clearcpuid"), "it has its processor's");
    }
}
