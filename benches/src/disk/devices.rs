//! `devices`: a copy-on-write disk made and removed, by us (every row of the ledger included), by the
//! commands of a shell, and by nothing but the system calls. The same objects each time: a store's file,
//! its loop device, the layer and the disk; the template's loop device is there before.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use cowslip_engine::unwind::unwind;
use cowslip_host::dm::{Control, whole};
use cowslip_host::loops::attach_bare;
use cowslip_host::{DeviceNumber, Target};
use cowslip_ledger::{LedgerError, Owner, Synchronous};
use cowslip_model::SandboxId;
use cowslip_store::exceptions::{CHUNK_SECTORS, blank_store, store_size};

use crate::Failure;
use crate::commands::run;
use crate::lab::{Lab, MIB};
use crate::table::{Samples, Table, number};

const ROUNDS: usize = 7;
/// In each round, one after the other.
const TIMES: u32 = 4;
const SIZE: u64 = 16 * MIB;
const SECTORS: u64 = SIZE / 512;

pub(crate) fn bench() -> Result<(), Failure> {
    let lab = Lab::new(SIZE)?;
    // Somebody uses the template all the time, so that its loop device stays.
    let other = lab.record(1, None, None);
    let sandbox = SandboxId::from_bits(1);
    let outcome = lab.runtime.block_on(async {
        lab.make(&other, None).await?;
        lab.activate(sandbox, std::slice::from_ref(&other)).await
    });
    outcome?;
    let (origin, _keep) = attach_bare(&File::options().read(true).write(true).open(lab.image())?)?;
    let [mut ours, mut commands, mut bare] = std::array::from_fn(|_| Samples::default());
    let [mut our_steps, mut bare_steps]: [[Samples; 5]; 2] = Default::default();
    for _ in 0..ROUNDS {
        ours.time(measure(|| steps(&mut our_steps, || by_us(&lab)))?);
        commands.time(measure(|| by_commands(lab.scratch(), origin))?);
        let calls = || by_calls(lab.scratch(), origin);
        bare.time(measure(|| steps(&mut bare_steps, calls))?);
    }
    let table = Table::new(
        "a disk made and removed [ms]",
        &["median", "least", "most", "to bare"],
    );
    for (name, samples) in [
        ("cowslip, the ledger included", &ours),
        ("losetup and dmsetup", &commands),
        ("bare system calls", &bare),
    ] {
        table.spread(name, samples, &[number(samples.ratio(&bare).median())]);
    }
    println!(
        "the commands take {} times as long as cowslip",
        number(commands.ratio(&ours).median())
    );
    let table = Table::new("of that, medians [ms]", &["cowslip", "bare"]);
    let names = [
        "the store's file",
        "loop device, layer, disk",
        "the disk removed",
        "the layer removed, the loop device gone",
        "the file removed",
    ];
    for (name, (ours, bare)) in names.iter().zip(our_steps.iter().zip(&bare_steps)) {
        table.words(name, &[number(ours.median()), number(bare.median())]);
    }
    transactions(&lab)?;
    lab.runtime
        .block_on(lab.remove(sandbox, std::slice::from_ref(&other)))
}

/// What a row of the ledger costs: above there are twelve transactions, one of them pressed onto the
/// disk.
fn transactions(lab: &Lab) -> Result<(), Failure> {
    let mut layer = lab.record(9, None, None);
    let table = Table::new("one transaction of the ledger [ms]", &["median"]);
    for (name, durability) in [
        ("outlives the engine", Synchronous::Normal),
        ("outlives a power cut", Synchronous::Full),
    ] {
        let mut samples = Samples::default();
        for _ in 0..ROUNDS * 8 {
            // A row that stays as it is would not be written.
            layer.created_at.0 += 1;
            let begun = Instant::now();
            lab.site
                .ledger
                .write::<_, LedgerError>("bench", durability, |tx| tx.put_layer(&layer))?;
            samples.time(begun.elapsed());
        }
        table.words(name, &[number(samples.median())]);
    }
    Ok(())
}

/// The time of one, of several.
fn measure<T>(mut work: impl FnMut() -> Result<T, Failure>) -> Result<Duration, Failure> {
    let begun = Instant::now();
    for _ in 0..TIMES {
        work()?;
    }
    Ok(begun.elapsed() / TIMES)
}

/// Does one thing and notes the times of its steps.
fn steps(
    steps: &mut [Samples; 5],
    work: impl Fn() -> Result<[Duration; 5], Failure>,
) -> Result<(), Failure> {
    for (samples, took) in steps.iter_mut().zip(work()?) {
        samples.time(took);
    }
    Ok(())
}

/// Makes and removes one; gives the times of the steps.
fn by_us(lab: &Lab) -> Result<[Duration; 5], Failure> {
    let layer = [lab.record(2, None, None)];
    let sandbox = SandboxId::from_bits(2);
    lab.runtime.block_on(async {
        let mut clock = Clock::new();
        lab.make(&layer[0], None).await?;
        let file = clock.lap();
        lab.activate(sandbox, &layer).await?;
        let devices = clock.lap();
        unwind(&lab.site, Owner::Machine(sandbox))?;
        let disk = clock.lap();
        lab.volumes.retire(&lab.site).await?;
        let retired = clock.lap();
        unwind(&lab.site, Owner::Layer(layer[0].id))?;
        Ok([file, devices, disk, retired, clock.lap()])
    })
}

/// Tells how long each of some steps took.
struct Clock(Instant);

impl Clock {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn lap(&mut self) -> Duration {
        let took = self.0.elapsed();
        self.0 = Instant::now();
        took
    }
}

fn by_commands(directory: &Path, origin: DeviceNumber) -> Result<(), Failure> {
    let store = directory.join("store");
    let store = store.to_str().unwrap_or_default();
    let size = store_size(SIZE, CHUNK_SECTORS)?.to_string();
    run("truncate", &["--size", &size, store])?;
    let cow = run("losetup", &["--find", "--show", store])?;
    let table = format!("0 {SECTORS} snapshot {origin} {cow} PO {CHUNK_SECTORS}");
    run("dmsetup", &["create", "bench-layer", "--table", &table])?;
    let table = format!("0 {SECTORS} linear /dev/mapper/bench-layer 0");
    run("dmsetup", &["create", "bench-disk", "--table", &table])?;
    run("dmsetup", &["remove", "bench-disk"])?;
    run("dmsetup", &["remove", "bench-layer"])?;
    run("losetup", &["--detach", &cow])?;
    run("rm", &[store])?;
    Ok(())
}

/// The same steps by nothing but the system calls.
fn by_calls(directory: &Path, origin: DeviceNumber) -> Result<[Duration; 5], Failure> {
    use std::io::Write;
    let mut clock = Clock::new();
    let store = directory.join("store");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&store)?;
    file.write_all(&blank_store(CHUNK_SECTORS)?)?;
    file.set_len(store_size(SIZE, CHUNK_SECTORS)?)?;
    let made = clock.lap();
    let (number, held) = attach_bare(&file)?;
    let control = Control::open()?;
    let target = Target::Snapshot {
        origin,
        store: number,
        chunk_sectors: CHUNK_SECTORS,
    };
    let layer = device(&control, "bench-layer", target)?;
    drop(held);
    let target = Target::Linear {
        device: layer,
        from: 0,
    };
    device(&control, "bench-disk", target)?;
    let devices = clock.lap();
    control.remove("bench-disk")?;
    let disk = clock.lap();
    control.remove("bench-layer")?;
    let layer = clock.lap();
    std::fs::remove_file(&store)?;
    Ok([made, devices, disk, layer, clock.lap()])
}

fn device(control: &Control, name: &str, target: Target) -> Result<DeviceNumber, Failure> {
    let number = control.create(name, name)?.number;
    control.load(name, &whole(SECTORS, target), false)?;
    control.resume(name)?;
    Ok(number)
}
