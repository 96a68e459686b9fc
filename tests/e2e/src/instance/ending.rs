//! The end of an instance: everything of it goes, and what survived fails the test.

use std::fs;
use std::path::Path;

use super::Instance;
use crate::{survivors, vitals};

impl Instance {
    /// Removes every sandbox and checkpoint, ends the engine and looks for survivors.
    fn finish(&self) {
        if self.state.join("cowslip.db").exists() {
            self.empty();
            self.assert_agreement();
        }
        if !self.shared && self.state.join("cowslip.db").exists() {
            let end = self.engine().map(survivors::watch);
            let _ = self.say("serve --stop").ok();
            // It gives the directory up a moment before it is gone.
            if let Some(end) = end.flatten() {
                survivors::wait(&end);
            }
        }
        let mut marks = vec![self.base.path().display().to_string()];
        marks.extend(self.machine_mark());
        let left = survivors::processes(&marks);
        assert!(left.is_empty(), "processes survived: {left:?}");
        self.assert_no_devices();
        self.assert_no_networks();
        let objects: Vec<_> = self
            .files()
            .into_iter()
            .filter(|path| {
                !["templates", "kernels"]
                    .iter()
                    .any(|kept| path.starts_with(self.state.join(kept)))
                    && !self.is_collection(path)
            })
            .collect();
        assert!(objects.is_empty(), "files survived: {objects:?}");
    }

    fn is_collection(&self, path: &Path) -> bool {
        path.parent() == Some(&self.state)
    }

    /// Removes what the test made.
    fn empty(&self) {
        self.remove_all("ls --all --quiet", &["rm", "--force"]);
        self.remove_all("checkpoint ls --quiet", &["checkpoint", "rm", "--cascade"]);
        if self.shared {
            self.remove_all("template ls --quiet", &["template", "rm"]);
            self.remove_all("kernel ls --quiet", &["kernel", "rm"]);
        }
    }

    fn remove_all(&self, list: &str, remove: &[&str]) {
        let ids = self.say(list).ok();
        if !ids.is_empty() {
            let words = remove.iter().copied().chain(ids.lines());
            let _ = self.call(words).ok();
        }
    }

    /// Ends everything of a test that failed, whatever state it is in.
    fn abandon(&self) {
        if let Ok(log) = fs::read_to_string(self.state.join("engine.log")) {
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- the engine's last words:\n{}", last.join("\n"));
        }
        let sandboxes = fs::read_dir(self.state.join("sandboxes"));
        for sandbox in sandboxes.into_iter().flatten().flatten() {
            let console = fs::read(sandbox.path().join("console.log")).unwrap_or_default();
            let last = String::from_utf8_lossy(&console[console.len().saturating_sub(2000)..]);
            eprintln!("--- the console of {:?}:\n{last}", sandbox.file_name());
        }
        for machine in self.machines() {
            let threads = vitals::of(machine);
            eprintln!(
                "--- the threads of machine {}:\n{threads}",
                machine.as_raw_nonzero()
            );
        }
        self.kill_all();
        self.drop_networks();
        // Devices outlive processes: a run in the test VM fails for those that are left, and this try may be
        // followed by another.
        if self.shared || std::env::var_os("COWSLIP_IN_TEST_VM").is_some() {
            // For the tests after it; the first failure is the one to tell.
            let empty = std::panic::AssertUnwindSafe(|| self.empty());
            let _ = std::panic::catch_unwind(empty);
            self.kill_all();
        }
    }

    /// Takes the networks down that a failed test left: its directory cannot go while they are in it.
    fn drop_networks(&self) {
        let names = fs::read_dir(self.run.join("net"));
        for name in names.into_iter().flatten().flatten() {
            let _ = rustix::mount::unmount(name.path(), rustix::mount::UnmountFlags::DETACH);
            let _ = fs::remove_file(name.path());
        }
        let instance = fs::read_to_string(self.state.join("instance")).unwrap_or_default();
        let Some(short) = instance.get(..6) else {
            return;
        };
        let script = format!(
            "for link in /sys/class/net/cow{short}.*; do ip link del \"${{link##*/}}\"; done; \
             nft delete table inet cowslip-{}",
            instance.trim()
        );
        // The first failure is the one to tell.
        let _ = self.command("sh").args(["-c", &script]).output();
    }

    fn kill_all(&self) {
        let mut marks = vec![self.base.path().display().to_string()];
        marks.extend(self.machine_mark());
        for (pid, _) in survivors::processes(&marks) {
            survivors::kill(pid);
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abandon();
            return;
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.finish()));
        if let Err(cause) = outcome {
            self.abandon();
            std::panic::resume_unwind(cause);
        }
    }
}
