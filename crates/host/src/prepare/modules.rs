//! Kernel modules: KVM by the processor, loop and device-mapper for disks, tun for networks.
//!
//! They are never unloaded: what else came to use them is not known.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::record::Record;
use super::{Finding, Part, PrepareError, Roots, Standing, Step, TakenBack};

/// The step.
#[derive(Debug)]
pub(super) struct Modules<'a> {
    roots: &'a Roots,
}

/// A module that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Module {
    /// Its name.
    pub(super) name: String,
}

/// A module that is wanted.
#[derive(Debug)]
struct Wanted {
    name: &'static str,
    /// What it registers in `/proc/misc` or `/proc/devices`: not every built-in module has a directory in
    /// sysfs, and not every kernel comes with a list of what is built in.
    registers: &'static [&'static str],
    /// Without this flag of the processor (none: always wanted) it does not load.
    flag: Option<&'static str>,
}

/// `kvm` is registered by the module of the processor's vendor.
const WANTED: [Wanted; 7] = [
    Wanted::with("kvm", &["kvm"]),
    Wanted::on("kvm_amd", "svm"),
    Wanted::on("kvm_intel", "vmx"),
    Wanted::with("loop", &["loop", "loop-control"]),
    Wanted::with("dm_mod", &["device-mapper"]),
    Wanted::with("dm_snapshot", &[]),
    Wanted::with("tun", &["tun"]),
];

impl Wanted {
    const fn with(name: &'static str, registers: &'static [&'static str]) -> Self {
        Self {
            name,
            registers,
            flag: None,
        }
    }

    const fn on(name: &'static str, flag: &'static str) -> Self {
        Self {
            name,
            registers: &["kvm"],
            flag: Some(flag),
        }
    }
}

/// What the running kernel has.
#[derive(Debug)]
struct Kernel {
    release: String,
    /// Names of the modules that can be loaded, and of those that are built in.
    loadable: Vec<String>,
    built_in: Vec<String>,
    registered: Vec<String>,
    /// The processor's flags.
    flags: Vec<String>,
}

impl Kernel {
    /// A list that is not there names nothing.
    fn of(roots: &Roots) -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let proc = |name: &str| text(&roots.proc.join(name));
        let release = text(&roots.sysctl("kernel.osrelease")).trim().to_owned();
        let list = |name: &str| {
            let text = text(&roots.modules.join(&release).join(name));
            text.lines().filter_map(module_of).collect()
        };
        let registered = [proc("misc"), proc("devices")];
        let cpu = proc("cpuinfo");
        let flags = cpu.lines().find(|line| line.starts_with("flags"));
        Self {
            loadable: list("modules.dep"),
            built_in: list("modules.builtin"),
            registered: registered
                .iter()
                .flat_map(|text| text.lines())
                .filter_map(|line| line.split_whitespace().nth(1))
                .map(str::to_owned)
                .collect(),
            flags: words(flags.unwrap_or_default()),
            release,
        }
    }

    fn virtualizes(&self) -> bool {
        let flags = WANTED.iter().filter_map(|wanted| wanted.flag);
        self.flags
            .iter()
            .any(|one| flags.clone().any(|flag| flag == one))
    }
}

/// `kernel/drivers/block/loop.ko.xz: …` → `loop`.
fn module_of(line: &str) -> Option<String> {
    let path = line.split(':').next()?;
    let (name, _) = path.rsplit('/').next()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl<'a> Modules<'a> {
    pub(super) fn new(roots: &'a Roots) -> Self {
        Self { roots }
    }

    fn is_loaded(&self, name: &str) -> bool {
        self.roots.sys.join("module").join(name).is_dir()
    }

    fn find(&self, wanted: &Wanted, kernel: &Kernel) -> (Standing<Module>, String) {
        let Wanted {
            name,
            registers,
            flag,
        } = *wanted;
        let has = |list: &[String], name: &str| list.iter().any(|one| one == name);
        if self.is_loaded(name) {
            return (Standing::Ready, "loaded, or built in".to_owned());
        }
        if has(&kernel.built_in, name) {
            return (Standing::Ready, "built in".to_owned());
        }
        if let Some(what) = registers.iter().find(|what| has(&kernel.registered, what)) {
            return (Standing::Ready, format!("the kernel lists \"{what}\""));
        }
        let is_kvm = registers.contains(&"kvm");
        if is_kvm && !kernel.virtualizes() {
            let detail = "the processor, as this host sees it, offers no virtualisation";
            return (Standing::Unneeded, detail.to_owned());
        }
        if flag.is_some_and(|flag| !has(&kernel.flags, flag)) {
            return (
                Standing::Unneeded,
                "for processors of another vendor".to_owned(),
            );
        }
        if !has(&kernel.loadable, name) {
            let place = self.roots.modules.join(&kernel.release);
            let detail = format!("not built in, and not in \"{}\"", place.display());
            return (Standing::Impossible, detail);
        }
        let module = Module {
            name: name.to_owned(),
        };
        (Standing::Needed(module), "not loaded".to_owned())
    }
}

impl Step for Modules<'_> {
    const PART: Part = Part::Modules;
    type Change = Module;

    fn recorded(record: &mut Record) -> &mut Vec<Module> {
        &mut record.modules
    }

    fn object(&self, module: &Module) -> String {
        module.name.clone()
    }

    fn look(&self) -> Result<Vec<Finding<Module>>, PrepareError> {
        let kernel = Kernel::of(self.roots);
        let findings = WANTED.iter().map(|wanted| {
            let (standing, detail) = self.find(wanted, &kernel);
            Finding {
                object: wanted.name.to_owned(),
                standing,
                detail,
            }
        });
        Ok(findings.collect())
    }

    fn make(&self, module: &Module) -> Result<(), PrepareError> {
        let failed = |why: String| PrepareError::Module {
            module: module.name.clone(),
            why,
        };
        let output = Command::new(&self.roots.modprobe)
            .args(["--", &module.name])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                let program = self.roots.modprobe.display();
                failed(format!(
                    "start \"{program}\": {error}; is the package kmod installed?"
                ))
            })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(failed(said.lines().next().map_or_else(
            || format!("modprobe ended with {}", output.status),
            str::to_owned,
        )))
    }

    fn undo(&self, module: &Module) -> Result<TakenBack, PrepareError> {
        Ok(if self.is_loaded(&module.name) {
            let detail = "stays loaded until the next boot: others may use it by now";
            TakenBack::Left(detail.to_owned())
        } else {
            TakenBack::Gone("was not loaded any more".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_modules_are_read() {
        assert_eq!(module_of("kernel/drivers/net/tun.ko").unwrap(), "tun");
        let line = "kernel/drivers/md/dm-snapshot.ko.xz: kernel/drivers/md/dm-bufio.ko.xz";
        assert_eq!(module_of(line).unwrap(), "dm_snapshot");
        assert_eq!(module_of("# nothing"), None);
    }
}
