//! The build itself: unpack, configure, compile, collect.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use super::GuestKernelError;
use super::cache::io_error;
use super::config::Fragment;
use super::progress::Steps;

/// Changes when the same inputs would give another kernel; it is part of the cache's key.
pub(super) const RECIPE: &str = "1: allnoconfig + fragment, bzImage and stripped vmlinux";

/// Files that Kbuild names while it compiles this configuration (measured).
const EXPECTED_FILES: u64 = 2_250;

/// What the build calls, with the programs that Debian's `build-essential` and friends provide.
const TOOLS: &[&str] = &[
    "make", "gcc", "ld", "flex", "bison", "bc", "perl", "lz4", "tar", "xz", "strip",
];

/// The finished files, in a directory of their own.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) dir: PathBuf,
}

/// The compiler and the linker by their version lines: others give another kernel.
pub(super) fn compiler() -> Result<String, GuestKernelError> {
    let mut versions = String::new();
    for tool in ["gcc", "ld"] {
        let output = Command::new(tool)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        let output = output.map_err(|_| GuestKernelError::NoTool { tool })?;
        let text = String::from_utf8_lossy(&output.stdout);
        versions.extend(text.lines().take(1));
        versions.push('\n');
    }
    Ok(versions)
}

/// Fails with the first program or header that is missing, before minutes of work.
pub(super) fn check_tools() -> Result<(), GuestKernelError> {
    let dirs: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    for tool in TOOLS {
        if !dirs.iter().any(|dir| dir.join(tool).is_file()) {
            return Err(GuestKernelError::NoTool { tool });
        }
    }
    // objtool, which the kernel builds for itself, reads object files with it.
    let header = Command::new("gcc")
        .args([
            "-E",
            "-include",
            "gelf.h",
            "-x",
            "c",
            "/dev/null",
            "-o",
            "/dev/null",
        ])
        .stderr(Stdio::null())
        .status();
    match header {
        Ok(status) if status.success() => Ok(()),
        _ => Err(GuestKernelError::NoTool { tool: "libelf-dev" }),
    }
}

/// Builds in `work`, which is empty, and leaves the product inside it.
pub(super) fn build(
    work: &Path,
    source: &Path,
    fragment: &Fragment,
    steps: &Steps,
) -> Result<Product, GuestKernelError> {
    let (tree, out, product) = (work.join("source"), work.join("out"), work.join("product"));
    for dir in [&tree, &out, &product] {
        fs::create_dir(dir).map_err(io_error("create", dir))?;
    }

    steps.step(&format!("unpacking \"{}\"", source.display()));
    let mut unpack = Command::new("tar");
    unpack
        .arg("--extract")
        .arg("--strip-components=1")
        .arg("--no-same-owner");
    unpack
        .arg("--file")
        .arg(source)
        .arg("--directory")
        .arg(&tree);
    run(unpack, |_| {})?;

    steps.step("configuring");
    let fragment_path = work.join("fragment");
    fs::write(&fragment_path, fragment.text()).map_err(io_error("write", &fragment_path))?;
    let mut configure = kbuild(&tree, &out, "allnoconfig");
    configure.env("KCONFIG_ALLCONFIG", &fragment_path);
    run(configure, |_| {})?;
    let config_path = out.join(".config");
    let config = fs::read_to_string(&config_path).map_err(io_error("read", &config_path))?;
    fragment.check(&config)?;

    let jobs = thread::available_parallelism().map_or(1, usize::from);
    steps.step(&format!("compiling with {jobs} jobs: minutes, not seconds"));
    let mut files = steps.files(EXPECTED_FILES);
    let mut compile = kbuild(&tree, &out, "bzImage");
    compile.arg(format!("--jobs={jobs}"));
    run(compile, |line| {
        // "  CC      fs/ext4/inode.o"
        if let Some((_, name)) = line.trim_start().split_once(char::is_whitespace) {
            files.file(name.trim_start());
        }
    })?;
    drop(files);

    steps.step("collecting");
    let copy = |from: PathBuf, to: &str| {
        fs::copy(&from, product.join(to))
            .map(|_| ())
            .map_err(io_error("copy", &from))
    };
    copy(out.join("arch/x86/boot/bzImage"), "bzImage")?;
    copy(config_path, "config")?;
    // Symbols are of no use to a guest, and the monitor maps the whole file.
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-all")
        .arg("-o")
        .arg(product.join("vmlinux"))
        .arg(out.join("vmlinux"));
    run(strip, |_| {})?;
    for name in ["bzImage", "config", "vmlinux"] {
        let path = product.join(name);
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(io_error("sync", &path))?;
    }
    Ok(Product { dir: product })
}

/// A `make` in the kernel's tree. Who builds, where and when is left out of the kernel: the same
/// inputs give the same bytes.
fn kbuild(tree: &Path, out: &Path, target: &str) -> Command {
    let mut command = Command::new("make");
    command
        .arg("-C")
        .arg(tree)
        .arg(format!("O={}", out.display()))
        .arg("ARCH=x86_64")
        .arg(target);
    command
        .env("KBUILD_BUILD_USER", "cowslip")
        .env("KBUILD_BUILD_HOST", "cowslip");
    command
        .env("KBUILD_BUILD_TIMESTAMP", "1970-01-01")
        .env("KBUILD_BUILD_VERSION", "1");
    // Flags of an outer make (`make quickstart`) are not meant for this one.
    for inherited in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "CFLAGS",
        "LDFLAGS",
        "KCFLAGS",
    ] {
        command.env_remove(inherited);
    }
    command
}

/// Runs a command with its output read line by line; on failure the error has its last lines.
fn run(mut command: Command, mut each: impl FnMut(&str)) -> Result<(), GuestKernelError> {
    const TAIL: usize = 15;
    let name = command.get_program().to_string_lossy().into_owned();
    let failed = |source| GuestKernelError::Io {
        action: "run",
        path: PathBuf::from(&name),
        source,
    };
    // One pipe for both, so that the tail shows an error beside the line that caused it.
    let (reader, writer) = io::pipe().map_err(failed)?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(failed)?)
        .stderr(writer);
    let mut child = command.spawn().map_err(failed)?;
    let described = format!("{command:?}");
    // The command holds the pipe's other end, which must close for the reading to end.
    drop(command);
    let mut tail = VecDeque::with_capacity(TAIL);
    // A bound on the line, since the reader keeps it: nothing here writes longer ones.
    let mut lines = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let read = lines
            .by_ref()
            .take(64 << 10)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if read == 0 {
            break;
        }
        let line = String::from_utf8_lossy(&line);
        each(line.trim_end());
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.trim_end().to_owned());
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let tail = Vec::from(tail).join("\n");
    Err(GuestKernelError::Command {
        command: described,
        status,
        tail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_is_seen_line_by_line() {
        let mut lines = Vec::new();
        run(shell("echo one; echo two >&2"), |line| {
            lines.push(line.to_owned())
        })
        .unwrap();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_failure_keeps_the_last_words() {
        let error = run(shell("seq 100; echo broken >&2; exit 3"), |_| {}).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("broken") && text.contains("100") && !text.contains("\n85\n"));
        assert!(
            matches!(error, GuestKernelError::Command { status, .. } if status.code() == Some(3))
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        assert!(run(Command::new("no-such-program"), |_| {}).is_err());
    }
}
