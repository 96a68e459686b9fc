//! Images on a base: the lower layers come from what an earlier import made of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cowslip_image::{Archive, Base, Image, ImportError, Imported, import_image};
use proptest::prelude::*;

use crate::image_builder::Files;
use crate::reference::{amd64, layers};
use crate::support::{Bench, archive};
use crate::trees::{assemble, thing};

/// An image of these layers, of which those of `absent` are not there to be read.
fn image(bench: &Bench, layers: &[&[u8]], absent: usize) -> Image {
    let mut files = Files::plain(layers);
    let present: Vec<_> = layers[absent..].to_vec();
    // The same bytes may be a layer twice.
    files
        .0
        .retain(|(_, bytes)| present.contains(&&bytes[..]) || !layers.contains(&&bytes[..]));
    let archive = bench.job(|job| Archive::read(&files.tar()[..], job));
    Image::from_oci_archive(archive.unwrap(), None, &amd64()).unwrap()
}

fn base(path: &Path, layers: usize) -> Base {
    Base {
        file: File::open(path).unwrap(),
        path: path.to_owned(),
        layers,
    }
}

/// Imports the image whole, and on a base of its lowest layers, which are gone by then.
fn both(layers: &[&[u8]], lowest: usize) -> (Imported, Imported) {
    let (whole, below, above) = (Bench::new(), Bench::new(), Bench::new());
    let expected = whole.image_of(&image(&whole, layers, 0)).unwrap();
    below
        .image_of(&image(&below, &layers[..lowest], 0))
        .unwrap();
    let image = image(&above, layers, lowest);
    assert_eq!(
        image.content_of_lowest(lowest),
        self::image(&below, &layers[..lowest], 0).content()
    );
    let found = above
        .on_base(&image, &base(&below.image(), lowest))
        .unwrap();
    (expected, found)
}

// covers R60, "cost of that layer only"
#[test]
fn on_a_base_the_image_is_the_same_to_the_last_byte() {
    let layers = layers();
    let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
    for lowest in 1..=layers.len() {
        let (expected, found) = both(&layers, lowest);
        assert_eq!(found, expected, "on {lowest} layers");
    }
}

#[test]
fn a_base_is_read_under_the_bounds_of_the_whole() {
    let lower = archive().file("a", &[1; 5000]).file("b", b"").finish();
    let upper = archive().file("c", &[2; 5000]).finish();
    let below = Bench::new();
    below.image_of(&image(&below, &[&lower], 0)).unwrap();
    let refused = |limit: &dyn Fn(&mut Bench)| {
        let mut above = Bench::new();
        let image = image(&above, &[&lower, &upper], 1);
        limit(&mut above);
        above.on_base(&image, &base(&below.image(), 1)).unwrap_err()
    };
    let error = refused(&|bench| bench.limits.max_bytes = 9_999);
    assert!(error.to_string().contains("layer 2 of 2"), "{error}");
    let error = refused(&|bench| bench.limits.max_bytes = 4_999);
    assert!(matches!(error, ImportError::Limit { .. }), "{error}");
    let error = refused(&|bench| bench.limits.max_entries = 1);
    assert!(matches!(error, ImportError::Limit { .. }), "{error}");
    let error = refused(&|bench| bench.cancel.cancel());
    assert!(matches!(error, ImportError::Cancelled), "{error}");
}

#[test]
fn a_damaged_base_is_an_error_that_names_it() {
    let lower = archive().file("directory/file", b"lower").finish();
    let upper = archive().file("upper", b"upper").finish();
    let below = Bench::new();
    below.image_of(&image(&below, &[&lower], 0)).unwrap();
    let above = Bench::new();
    let image = image(&above, &[&lower, &upper], 1);
    let at = |text: &str| {
        let text = below.debugfs(text);
        let word = text.split_whitespace().next_back().unwrap_or_default();
        word.trim_matches(|c: char| !c.is_ascii_digit())
            .parse::<u64>()
    };
    let block = at("blocks directory").unwrap();
    let file = File::options().write(true).open(below.image()).unwrap();
    file.write_all_at(&[0xff; 16], block * 4096 + 24).unwrap();
    let error = above.on_base(&image, &base(&below.image(), 1)).unwrap_err();
    let ImportError::Base { image, entry, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((&**image, &**entry), (&*below.image(), "directory"));
    // What is no file system at all.
    let text = above.path("text");
    std::fs::write(&text, "text").unwrap();
    let two = self::image(&above, &[&lower, &upper], 1);
    let error = above.on_base(&two, &base(&text, 1)).unwrap_err();
    assert!(matches!(error, ImportError::Base { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    // covers R58, R60
    #[test]
    fn any_layers_on_a_base_are_as_without(
        layers in prop::collection::vec(prop::collection::vec(thing(), 0..20), 2..4),
        lowest in 1usize..3,
        hide in any::<bool>(),
    ) {
        let mut layers: Vec<Vec<u8>> = layers.iter().map(|things| assemble(things)).collect();
        if hide {
            layers.push(archive().file(".wh.always", b"").file("d/.wh..wh..opq", b"").finish());
        }
        let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
        let whole = Bench::new();
        // A path of one layer may go through a file of another.
        prop_assume!(whole.checked(&image(&whole, &layers, 0)).is_ok());
        // Lower layers without any entry are refused on their own, so no template has them.
        let lowest = lowest.min(layers.len());
        prop_assume!(whole.checked(&image(&whole, &layers[..lowest], 0)).is_ok());
        let (expected, found) = both(&layers, lowest);
        prop_assert_eq!(found, expected);
    }
}

/// Without the base its layers have to be there.
#[test]
fn without_a_base_all_layers_are_wanted() {
    let layers = layers();
    let layers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
    let bench = Bench::new();
    let image = image(&bench, &layers, 1);
    let error = bench
        .job(|job| import_image(&image, None, job))
        .unwrap_err();
    assert!(format!("{error:?}").contains("Missing"), "{error:?}");
}
