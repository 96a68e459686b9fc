//! `images`: a container image becomes a template, beside `umoci unpack` and `mke2fs -d` of what that made.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use cowslip_e2e::{ContainerImage, Tar, many_files_tar};

use crate::Failure;
use crate::import::e2fsprogs;
use crate::lab::{Lab, complete, figure};
use crate::table::{Samples, Table, number};

const ROUNDS: usize = 3;
const NAME: &str = "bench-images";
/// Of the same layers and one more, imported while the other is there.
const CHANGED: &str = "bench-images-changed";
const FILES: usize = 50_000;

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    let umoci = Command::new("umoci").arg("--version").output();
    if umoci.is_err() || !rustix::process::geteuid().is_root() {
        println!("SKIPPED: umoci is not installed, or this is not root, whom it wants");
        return Ok(());
    }
    let mut images = Vec::new();
    if let Some(archive) = lab.archive() {
        images.push(("Debian", ContainerImage::new(fs::read(archive)?)));
    }
    images.push(("50,000 files", ContainerImage::new(many_files_tar(FILES))));
    let table = Table::new(
        "an image of one layer, ms",
        &["median", "least", "most", "to the pair", "engine, MiB"],
    );
    for (name, image) in images {
        let layout = lab.scratch().join("layout");
        image.write_layout(&layout, "v1");
        let changed = lab.scratch().join("changed");
        let top = Tar::default().file("etc-of-bench", 0o644, b"changed");
        image.layer(top).write_layout(&changed, "v1");
        let (mut ours, mut pair, mut again) =
            (Samples::default(), Samples::default(), Samples::default());
        let mut peak: f64 = 0.0;
        for _ in 0..ROUNDS {
            let (took, size, high) = import(lab, NAME, &layout)?;
            ours.time(took);
            peak = peak.max(high);
            pair.time(unpack_and_make(lab, &layout, size)?);
            again.time(import(lab, CHANGED, &changed)?.0);
            lab.cowslip(["template", "rm", CHANGED])?;
            lab.cowslip(["template", "rm", NAME])?;
        }
        let ratio = |samples: &Samples| number(samples.ratio(&pair).median());
        let row = format!("{name}: cowslip");
        table.spread(&row, &ours, &[ratio(&ours), number(peak)]);
        let row = format!("{name}: one layer on it");
        table.spread(&row, &again, &[ratio(&again)]);
        let row = format!("{name}: umoci unpack, mke2fs -d");
        table.spread(&row, &pair, &[number(1.0)]);
        fs::remove_dir_all(&layout)?;
        fs::remove_dir_all(&changed)?;
    }
    println!(
        "{ROUNDS} rounds, interleaved; layers are not compressed; cowslip's time includes both digests and the way to \
         the disk; its memory is the engine's most, above what it had before"
    );
    Ok(())
}

/// Imports. Gives the import's time, the disk's size, and how much memory the engine took for it, in
/// MiB.
fn import(
    lab: &Lab,
    name: &str,
    layout: &Path,
) -> Result<(std::time::Duration, u64, f64), Failure> {
    let source = format!("oci:{}", layout.display());
    let engine = figure(&lab.json(["info"])?, "pid")?;
    let status = format!("/proc/{engine}/status");
    // Lets the peak begin anew (proc(5)).
    fs::write(format!("/proc/{engine}/clear_refs"), "5")?;
    let before = kib(&status, "VmRSS:")?;
    let ran = lab.cowslip(["template", "import", name, &source])?;
    let high = (kib(&status, "VmHWM:")? - before) / 1024.0;
    let template = lab.json(["template", "inspect", name])?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a size in bytes
    let size = figure(&template, "size")? as u64;
    Ok((ran.took, size, high))
}

fn kib(status: &str, field: &str) -> Result<f64, Failure> {
    let text = fs::read_to_string(status)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let line = line.ok_or("the engine's status has no such line")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

fn unpack_and_make(lab: &Lab, layout: &Path, size: u64) -> Result<std::time::Duration, Failure> {
    let bundle = lab.scratch().join("bundle");
    let image = lab.scratch().join("mke2fs.ext4");
    let from = format!("{}:v1", layout.display());
    let unpacked = complete(
        Command::new("umoci")
            .args(["unpack", "--image", &from])
            .arg(&bundle),
    )?;
    let file = File::create(&image)?;
    file.set_len(size)?;
    let made = complete(
        Command::new(e2fsprogs("mke2fs"))
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(bundle.join("rootfs"))
            .arg(&image),
    )?;
    fs::remove_dir_all(&bundle)?;
    fs::remove_file(&image)?;
    Ok(unpacked.took + made.took)
}
