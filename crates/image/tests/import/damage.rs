//! Images with damage anywhere: no panic, no endless loop, and an error that can be shown.

use std::path::Path;
use std::time::{Duration, Instant};

use cowslip_image::Limits;
use proptest::prelude::*;

use crate::hostile_ext4::made;
use crate::support::{Bench, archive};

/// Places that are not zero, where damage has something to damage.
fn places(image: &Path) -> (Vec<u8>, Vec<usize>) {
    let bytes = std::fs::read(image).unwrap();
    let places = (0..bytes.len())
        .filter(|at| bytes[*at] != 0 && bytes[*at] != 7)
        .collect();
    (bytes, places)
}

fn survives(bench: &mut Bench, name: &str, bytes: &[u8]) -> Result<bool, TestCaseError> {
    bench.limits = Limits {
        max_bytes: 8 << 20,
        max_entries: 1000,
        ..Limits::default()
    };
    let image = bench.path(name);
    std::fs::write(&image, bytes).unwrap();
    let start = Instant::now();
    let result = bench.export_of(&image);
    prop_assert!(start.elapsed() < Duration::from_secs(10));
    if let Err(error) = &result {
        prop_assert!(
            !error.to_string().chars().any(char::is_control),
            "{}",
            error
        );
    }
    Ok(result.is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn no_damage_makes_it_panic_or_go_on_for_ever(seed in any::<u64>(), checksums in any::<bool>()) {
        let mut bench = Bench::new();
        let option = if checksums { "metadata_csum" } else { "^metadata_csum" };
        let image = made(&bench, &["-O", option]);
        let (clean, places) = places(&image);
        let mut state = seed | 1;
        let mut random = |most: usize| {
            // xorshift: what matters is only that a failure can be repeated.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 1).unwrap() % most
        };
        let mut whole = 0;
        for case in 0..150 {
            let mut bytes = clean.clone();
            for _ in 0..1 + random(6) {
                let at = places[random(places.len())];
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, u8::try_from(random(256)).unwrap()][random(6)];
            }
            if case % 10 == 0 {
                bytes.truncate(random(clean.len()));
            }
            whole += u32::from(survives(&mut bench, "damaged", &bytes)?);
        }
        // Some damage is in what nobody reads, so that not all of this is one early refusal.
        prop_assert!(whole < 150);
    }
}

#[test]
fn what_came_of_an_import_can_be_cut_anywhere() {
    let mut bench = Bench::new();
    bench
        .tar(&archive().file("a", b"1").file("b", &[1; 9000]).finish()[..])
        .unwrap();
    let bytes = std::fs::read(bench.image()).unwrap();
    for length in [
        0,
        1,
        1023,
        1024,
        2047,
        2048,
        4096,
        5000,
        bytes.len() / 2,
        bytes.len() - 1,
    ] {
        assert!(
            !survives(&mut bench, "cut", &bytes[..length]).unwrap(),
            "{length}"
        );
    }
    assert!(survives(&mut bench, "cut", &bytes).unwrap());
}
