//! `flatten`: a layer and its template made one image from their files, against a copy of the device.

use std::time::Instant;

use cowslip_ledger::Owner;
use cowslip_model::{SandboxId, TemplateId};

use crate::Failure;
use crate::commands::run;
use crate::lab::{Disk, Lab, MIB};
use crate::table::{Samples, Table, number};

const SIZE: u64 = 256 * MIB;
/// How much of the disk was changed, in percent.
const SHARES: [u64; 3] = [1, 10, 50];
const ROUNDS: usize = 3;
const CHUNK: u64 = 4096;

pub(crate) fn bench() -> Result<(), Failure> {
    let lab = Lab::new(SIZE)?;
    let table = Table::new(
        "256 MiB, all of them data [ms], medians",
        &["flatten", "dd bs=4M", "dd/flatten"],
    );
    for share in SHARES {
        let (mut ours, mut dd) = (Samples::default(), Samples::default());
        lab.runtime
            .block_on(changed(&lab, share, &mut ours, &mut dd))?;
        let ratio = number(dd.ratio(&ours).median());
        let words = [number(ours.median()), number(dd.median()), ratio];
        table.words(&format!("{share} % changed"), &words);
    }
    Ok(())
}

async fn changed(
    lab: &Lab,
    share: u64,
    ours: &mut Samples,
    dd: &mut Samples,
) -> Result<(), Failure> {
    let sandbox = SandboxId::from_bits(share);
    let layer = [lab.record(share, None, None)];
    lab.make(&layer[0], None).await?;
    let path = lab.activate(sandbox, &layer).await?;
    let disk = Disk::open(&path, usize::try_from(CHUNK)?)?;
    let chunks = SIZE / CHUNK;
    let changed = chunks * share / 100;
    // Spread over the disk, a chunk at a time.
    for index in 0..changed {
        let at = index * chunks / changed * CHUNK;
        disk.write(at)?;
    }
    drop(disk);
    let layout = &lab.site.layout;
    let device = format!("if={}", path.display());
    for round in 0..ROUNDS {
        let owner = Owner::Template(TemplateId::from_bits(100 + round as u64));
        let directory = layout.template(TemplateId::from_bits(100 + round as u64));
        std::fs::create_dir_all(&directory)?;
        let out = directory.join("image.ext4");
        let begun = Instant::now();
        lab.volumes.flatten(&lab.site, &layer, owner, &out).await?;
        std::fs::File::open(&out)?.sync_all()?;
        ours.time(begun.elapsed());
        cowslip_engine::unwind::unwind(&lab.site, owner)?;

        let copy = lab.scratch().join("copy");
        let to = format!("of={}", copy.display());
        let begun = Instant::now();
        run("dd", &[&device, &to, "bs=4M", "conv=fsync", "status=none"])?;
        dd.time(begun.elapsed());
        std::fs::remove_file(&copy)?;
    }
    lab.remove(sandbox, &layer).await
}
