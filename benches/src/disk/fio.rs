//! `fio`: first write, rewrite and read, by what the disk is made of.

use serde_json::Value;

use crate::Failure;
use crate::commands::run;
use crate::stack::{Kind, SIZE, Stack, Store};
use crate::table::{Table, number};

/// A measurement ends after so many seconds.
const SECONDS: &str = "1";
/// All stacks one after the other, so often: what else the machine does only takes away, so the most of
/// each counts.
const ROUNDS: usize = 2;
/// What of the disk is written, in bytes; the other half is read as it was.
const WRITTEN: u64 = SIZE / 2;

const THROUGH: Store = Store {
    direct: false,
    write_back: false,
};
const BACK: Store = Store {
    direct: false,
    write_back: true,
};
const DIRECT: Store = Store {
    direct: true,
    write_back: false,
};
const DIRECT_BACK: Store = Store {
    direct: true,
    write_back: true,
};

const fn layers(store: Store, chunk_sectors: u32, depth: usize) -> Kind {
    Kind::Snapshot {
        store,
        chunk_sectors,
        depth,
    }
}

/// The first is what the others are compared with.
const STACKS: &[(&str, Kind)] = &[
    ("loop, buffered, write-through", Kind::Loop(THROUGH)),
    ("loop, buffered, write-back", Kind::Loop(BACK)),
    ("loop, direct, write-back", Kind::Loop(DIRECT_BACK)),
    ("file", Kind::File),
    ("dm 4 KiB, buffered, write-through", layers(THROUGH, 8, 1)),
    ("dm 16 KiB, buffered, write-through", layers(THROUGH, 32, 1)),
    (
        "dm 64 KiB, buffered, write-through",
        layers(THROUGH, 128, 1),
    ),
    ("dm 4 KiB, buffered, write-back", layers(BACK, 8, 1)),
    ("dm 4 KiB, direct, write-through", layers(DIRECT, 8, 1)),
    ("dm 4 KiB, direct, write-back", layers(DIRECT_BACK, 8, 1)),
    ("dm 4 KiB, 4 layers deep", layers(THROUGH, 8, 4)),
    ("dm 4 KiB, 16 layers deep", layers(THROUGH, 8, 16)),
];

/// What was measured of one stack: operations of 4 KiB a second, then MiB a second.
type Figures = [f64; 6];

pub(crate) fn bench() -> Result<(), Failure> {
    let columns = [
        "4k 1st write",
        "4k rewrite",
        "4k read",
        "1M 1st write",
        "1M rewrite",
        "1M read",
    ];
    let mut best = vec![Figures::default(); STACKS.len()];
    for _ in 0..ROUNDS {
        for ((_, kind), best) in STACKS.iter().zip(&mut best) {
            for (best, found) in best.iter_mut().zip(measure(*kind)?) {
                *best = best.max(found);
            }
        }
    }
    let base = *best.first().ok_or("there is nothing to compare")?;
    let table = Table::new("1/s and MiB/s, then as shares of the first", &columns);
    table.words("(the first, absolute)", &base.map(number));
    for ((name, _), found) in STACKS.iter().zip(&best) {
        let shares: Vec<String> = found
            .iter()
            .zip(base)
            .map(|(found, base)| number(found / base))
            .collect();
        table.words(name, &shares);
    }
    Ok(())
}

fn measure(kind: Kind) -> Result<Figures, Failure> {
    let mut figures = Figures::default();
    let kinds = [("rand", "4k", "iops"), ("", "1M", "bw_bytes")];
    for (place, (pattern, block, field)) in kinds.into_iter().enumerate() {
        let directory = tempfile::tempdir()?;
        let stack = Stack::new(kind, directory.path())?;
        let path = stack.path();
        let write = format!("{pattern}write");
        let first = fio(path, &write, block, 0, WRITTEN)?;
        let done = number_in(&first, "write", "io_bytes")?;
        let again = fio(path, &write, block, 0, done)?;
        let read = fio(path, &format!("{pattern}read"), block, WRITTEN, WRITTEN)?;
        let figure = |value: &Value, side: &str| {
            let value = value["jobs"][0][side][field].as_f64();
            value.ok_or("fio told no figure")
        };
        let unit = if field == "iops" { 1.0 } else { 1_048_576.0 };
        figures[place * 3] = figure(&first, "write")? / unit;
        figures[place * 3 + 1] = figure(&again, "write")? / unit;
        figures[place * 3 + 2] = figure(&read, "read")? / unit;
    }
    Ok(figures)
}

/// One job of at most `bytes` bytes in the half of the disk from `offset`. Every job draws the same
/// places in the same order.
fn fio(path: &str, pattern: &str, block: &str, offset: u64, bytes: u64) -> Result<Value, Failure> {
    let options = [
        "--name=one".to_owned(),
        format!("--filename={path}"),
        format!("--rw={pattern}"),
        format!("--bs={block}"),
        format!("--offset={offset}"),
        format!("--size={WRITTEN}"),
        format!("--io_size={bytes}"),
        format!("--runtime={SECONDS}"),
        "--direct=1".to_owned(),
        "--ioengine=libaio".to_owned(),
        "--iodepth=8".to_owned(),
        "--allow_file_create=0".to_owned(),
        "--output-format=json".to_owned(),
    ];
    let words: Vec<&str> = options.iter().map(String::as_str).collect();
    let said = run("fio", &words)?;
    let begin = said.find('{').ok_or("fio gave no JSON")?;
    Ok(serde_json::from_str(said.get(begin..).unwrap_or_default())?)
}

fn number_in(value: &Value, side: &str, field: &str) -> Result<u64, Failure> {
    let found = value["jobs"][0][side][field].as_u64();
    Ok(found.ok_or("fio told no figure")?)
}
