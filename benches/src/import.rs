//! `import`: a root file system becomes a template, beside `mke2fs -d` of the same tree.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::lab::{Lab, complete, figure};
use crate::table::{Samples, Table, number};

const ROUNDS: usize = 5;
const NAME: &str = "bench-import";
const MIB: f64 = 1_048_576.0;

pub(crate) fn bench(lab: &Lab) -> Result<(), Failure> {
    let template = lab.json(["template", "inspect", crate::lab::TEMPLATE])?;
    let size = figure(&template, "size")?;
    let used = figure(&template, "used")? / MIB;
    let image = lab.scratch().join("mke2fs.ext4");
    let mut directory = Samples::default();
    let mut tar = Samples::default();
    let mut mke2fs = Samples::default();
    let mut digest = Samples::default();
    for _ in 0..ROUNDS {
        // The template that is there already would be found again: nothing would be written.
        directory.time(import(lab, lab.rootfs())?);
        let file = File::create(&image)?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a size in bytes
        file.set_len(size as u64)?;
        mke2fs.time(
            complete(
                Command::new(e2fsprogs("mke2fs"))
                    .args(["-q", "-F", "-t", "ext4", "-d"])
                    .arg(lab.rootfs())
                    .arg(&image),
            )?
            .took,
        );
        digest.time(complete(Command::new("sha256sum").arg(&image))?.took);
        drop(file);
        std::fs::remove_file(&image)?;
        if let Some(archive) = lab.archive() {
            tar.time(import(lab, archive)?);
        }
    }
    let table = Table::new(
        &format!("import of {used:.0} MiB, ms"),
        &["median", "least", "most", "MiB/s", "to mke2fs"],
    );
    let mut rows = vec![("cowslip, from the directory", &directory)];
    if lab.archive().is_some() {
        rows.push(("cowslip, from the tar", &tar));
    }
    rows.push(("mke2fs -d", &mke2fs));
    rows.push(("sha256sum of its image", &digest));
    for (name, samples) in rows {
        let rate = number(used / (samples.median() / 1000.0));
        let ratio = number(samples.ratio(&mke2fs).median());
        table.spread(name, samples, &[rate, ratio]);
    }
    println!(
        "{ROUNDS} rounds, interleaved; cowslip's time includes the digest and the way to the disk"
    );
    Ok(())
}

/// Imports under a name of its own and removes it again; the time is the import's.
fn import(lab: &Lab, source: &Path) -> Result<std::time::Duration, Failure> {
    let source = source
        .to_str()
        .ok_or("the root file system's path is no text")?;
    let ran = lab.cowslip(["template", "import", NAME, source])?;
    lab.cowslip(["template", "rm", NAME])?;
    Ok(ran.took)
}

/// Debian keeps these outside the PATH of ordinary users.
pub(crate) fn e2fsprogs(name: &str) -> PathBuf {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| name.into())
}
