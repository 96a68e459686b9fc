//! Engines in circumstances of their own: the machine's first process, other variables, fewer rights.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use super::Instance;

impl Instance {
    /// One whose engine is the machine's first process (`cargo xtask vm --init engine`); none where there
    /// is none. It is everybody's: a test leaves in it what it found.
    #[must_use]
    pub fn of_first_process() -> Option<Self> {
        let state = PathBuf::from(std::env::var_os("COWSLIP_TEST_ENGINE")?);
        let mut instance = Self::new();
        instance.run = state.join("run");
        instance.state = state;
        instance.shared = true;
        Some(instance)
    }

    /// Kills the engine and gives the next ones, and all commands, a variable.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.kill_engine();
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Replaces the engine by one that these words start ("setpriv", …), and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_engine_by(&self, words: &[&str]) {
        self.kill_engine();
        let mut command = self.command(words[0]);
        let program = self.scratch().join("bin/cowslip");
        let mut child = command
            .args(&words[1..])
            .arg(program)
            .arg("--state-dir")
            .arg(self.state())
            .args(["serve", "--background"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut from = BufReader::new(child.stdout.take().unwrap());
        from.read_line(&mut said).unwrap();
        assert!(said.contains("ready"), "the engine says {said:?}");
        // Whoever kills it does not wait for it as a parent does.
        std::thread::spawn(move || child.wait());
    }
}
