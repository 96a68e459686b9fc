//! What a cache's directory lacks, and plausible values for it.
//!
//! Nobody's work depends on the values being right: Firecracker tells its guest of them, the guest's kernel
//! groups processors by them. They fit each other, and what the host does tell.

/// What Firecracker (on 64-bit ARM) and its jailer read.
pub(super) const REQUIRED: [&str; 6] = [
    "level",
    "type",
    "size",
    "coherency_line_size",
    "number_of_sets",
    "shared_cpu_map",
];

/// Bytes of a line, on every processor of the two architectures but a few.
const LINE: u64 = 64;
/// Lines that are no typing error.
const LINES: std::ops::RangeInclusive<u64> = 16..=1024;

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lack {
    /// Nothing.
    Nothing,
    /// These, and this is what they would plausibly say.
    Values(Vec<(&'static str, String)>),
    /// These, and nothing tells what cache it is.
    Unknown(Vec<&'static str>),
}

/// What a directory lacks whose attributes `read` gives (none: missing, or says nothing).
pub(super) fn lack(cpu: u32, read: impl Fn(&str) -> Option<String>) -> Lack {
    let missing: Vec<&'static str> = REQUIRED
        .into_iter()
        .filter(|name| read(name).is_none())
        .collect();
    if missing.is_empty() {
        return Lack::Nothing;
    }
    let number = |name: &str| read(name)?.parse::<u64>().ok().filter(|&value| value > 0);
    let (Some(level), Some(_)) = (number("level"), read("type")) else {
        return Lack::Unknown(missing);
    };
    let told = Geometry {
        size: read("size").as_deref().and_then(bytes),
        line: number("coherency_line_size"),
        sets: number("number_of_sets"),
        // Zero stands for a fully associative cache, and on some hosts for "not known".
        ways: number("ways_of_associativity"),
    };
    let whole = told.complete(level);
    let values = missing.into_iter().map(|name| {
        let value = match name {
            "size" => format!("{}K", (whole.size / 1024).max(1)),
            "coherency_line_size" => whole.line.to_string(),
            "number_of_sets" => whole.sets.to_string(),
            _ => map(cpu, read("shared_cpu_list").as_deref()),
        };
        (name, value)
    });
    Lack::Values(values.collect())
}

/// What the host tells of a cache.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    /// In bytes.
    size: Option<u64>,
    line: Option<u64>,
    sets: Option<u64>,
    ways: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Whole {
    size: u64,
    line: u64,
    sets: u64,
}

impl Geometry {
    /// size = line × sets × ways; what that leaves open is as on a usual processor.
    fn complete(self, level: u64) -> Whole {
        let (usual_size, usual_ways) = match level {
            1 => (32 << 10, 8),
            2 => (1 << 20, 8),
            _ => (32 << 20, 16),
        };
        let ways = self.ways.unwrap_or(usual_ways);
        let from_size = || {
            let line = self.size? / self.sets?.checked_mul(self.ways?)?;
            (line.is_power_of_two() && LINES.contains(&line)).then_some(line)
        };
        let line = self.line.or_else(from_size).unwrap_or(LINE);
        let row = line.saturating_mul(ways);
        let size = self
            .size
            .or_else(|| self.sets?.checked_mul(row))
            .unwrap_or(usual_size);
        let sets = self.sets.unwrap_or_else(|| (size / row).max(1));
        Whole { size, line, sets }
    }
}

/// `32K`, as the kernel writes a size; `M` too, as Firecracker reads it.
fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('K') {
        Some(digits) => (digits, 10),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 20),
            None => (text, 0),
        },
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << unit).filter(|&value| value > 0)
}

/// A mask of processors as the kernel writes it: 32 bits a word, the highest first. Without a list the
/// cache is `cpu`'s alone.
fn map(cpu: u32, list: Option<&str>) -> String {
    let cpus = list
        .and_then(numbers)
        .unwrap_or_else(|| std::iter::once(cpu).collect());
    let highest = cpus.iter().max().copied().unwrap_or(cpu);
    let mut words = vec![0_u32; (highest / 32 + 1) as usize];
    for cpu in cpus {
        words[(cpu / 32) as usize] |= 1 << (cpu % 32);
    }
    let words: Vec<String> = words
        .iter()
        .rev()
        .map(|word| format!("{word:08x}"))
        .collect();
    words.join(",")
}

/// More processors than any kernel can have.
const CPUS: u32 = 1 << 16;

/// `0-3,8`; none for what is no such list.
fn numbers(list: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if first > last || last >= CPUS {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const L2: [(&str, &str); 8] = [
        ("level", "2"),
        ("type", "Unified"),
        ("size", "512K"),
        ("coherency_line_size", "64"),
        ("number_of_sets", "1024"),
        ("ways_of_associativity", "8"),
        ("shared_cpu_map", "00000000,00000003"),
        ("shared_cpu_list", "0-1"),
    ];

    /// What [`L2`] without these gets.
    fn without(gone: &[&str]) -> Lack {
        lack(7, |name| {
            let told = L2.iter().find(|(one, _)| *one == name)?;
            (!gone.contains(&name)).then(|| told.1.to_owned())
        })
    }

    fn values(of: &[(&'static str, &str)]) -> Lack {
        Lack::Values(
            of.iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn one_of_three_follows_from_the_others() {
        assert_eq!(without(&[]), Lack::Nothing);
        assert_eq!(
            without(&["ways_of_associativity", "shared_cpu_list"]),
            Lack::Nothing
        );
        assert_eq!(without(&["size"]), values(&[("size", "512K")]));
        assert_eq!(
            without(&["number_of_sets"]),
            values(&[("number_of_sets", "1024")])
        );
        assert_eq!(
            without(&["coherency_line_size"]),
            values(&[("coherency_line_size", "64")])
        );
    }

    #[test]
    fn a_line_that_is_not_64_bytes_is_found_where_it_follows() {
        let told = Geometry {
            size: Some(1 << 20),
            line: None,
            sets: Some(1024),
            ways: Some(8),
        };
        assert_eq!(told.complete(2).line, 128);
        let nonsense = Geometry {
            ways: Some(7),
            ..told
        };
        assert_eq!(nonsense.complete(2).line, 64);
    }

    #[test]
    fn what_follows_from_nothing_is_usual_and_fits() {
        for (level, size, sets) in [
            ("1", "32K", "64"),
            ("2", "1024K", "2048"),
            ("3", "32768K", "32768"),
        ] {
            let read = |name: &str| match name {
                "level" => Some(level.to_owned()),
                "type" => Some("Data".to_owned()),
                "shared_cpu_map" => Some("1".to_owned()),
                _ => None,
            };
            let expected = [
                ("size", size),
                ("coherency_line_size", "64"),
                ("number_of_sets", sets),
            ];
            assert_eq!(lack(0, read), values(&expected), "level {level}");
        }
        // The usual size of a second level, of the 512 KiB that the sets and ways say nothing is left.
        let three = ["size", "ways_of_associativity", "coherency_line_size"];
        let expected = [("size", "512K"), ("coherency_line_size", "64")];
        assert_eq!(without(&three), values(&expected));
    }

    #[test]
    fn a_cache_that_says_not_what_it_is_gets_nothing() {
        assert_eq!(without(&["level"]), Lack::Unknown(vec!["level"]));
        assert_eq!(
            without(&["type", "size"]),
            Lack::Unknown(vec!["type", "size"])
        );
    }

    #[test]
    fn a_mask_is_written_as_the_kernel_does() {
        assert_eq!(
            without(&["shared_cpu_map"]),
            values(&[("shared_cpu_map", "00000003")])
        );
        let both = ["shared_cpu_map", "shared_cpu_list"];
        assert_eq!(without(&both), values(&[("shared_cpu_map", "00000080")]));
        assert_eq!(map(0, Some("0,33-34")), "00000006,00000001");
        for bad in ["", "3-1", "x", "0-99999999"] {
            assert_eq!(map(2, Some(bad)), "00000004", "{bad}");
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(bytes("32K"), Some(32 << 10));
        assert_eq!(bytes("2M"), Some(2 << 20));
        assert_eq!(bytes("512"), Some(512));
        for bad in ["", "K", "0K", "-1K", "18446744073709551615M"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
