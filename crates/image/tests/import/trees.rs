//! Any tree that can be imported: exported and imported again it is the same.

use proptest::prelude::*;

use crate::support::{Bench, archive};

#[derive(Debug, Clone)]
enum What {
    File(Vec<(bool, usize)>),
    Directory,
    Symlink(String),
    Fifo,
    Device(u32, u32),
    Link(prop::sample::Index),
}

#[derive(Debug, Clone)]
pub(crate) struct Thing {
    path: Vec<u8>,
    what: What,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

pub(crate) fn thing() -> impl Strategy<Value = Thing> {
    let name = prop_oneof![
        Just(b"d".to_vec()),
        Just(b"e".to_vec()),
        "[a-c]{1,2}".prop_map(String::into_bytes),
        "[A-Z]{100,255}".prop_map(String::into_bytes),
        prop::collection::vec(0x80u8.., 1..120),
    ];
    let piece = (
        any::<bool>(),
        prop_oneof![1usize..5000, Just(4096), Just(100_000)],
    );
    let what = prop_oneof![
        4 => prop::collection::vec(piece, 0..5).prop_map(What::File),
        3 => Just(What::Directory),
        1 => "[a-z/]{1,150}".prop_map(What::Symlink),
        1 => Just(What::Fifo),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(a, b)| What::Device(a, b)),
        2 => any::<prop::sample::Index>().prop_map(What::Link),
    ];
    let id = || prop_oneof![Just(0), Just(1000), any::<u32>()];
    let xattr = (
        "(user|trusted|security)\\.[a-z]{1,20}",
        prop::collection::vec(any::<u8>(), 0..200),
    );
    (
        prop::collection::vec(name, 1..4),
        what,
        0u32..0o10000,
        (id(), id()),
        (-3i64..1 << 33, prop_oneof![Just(0), 0u32..1_000_000_000]),
        prop::collection::vec(xattr, 0..3),
    )
        .prop_map(|(names, what, mode, owner, mtime, xattrs)| Thing {
            path: names.join(&b'/'),
            what,
            mode,
            owner,
            mtime,
            xattrs,
        })
}

/// An archive of what can be put on what came before it.
pub(crate) fn assemble(things: &[Thing]) -> Vec<u8> {
    let mut files: Vec<Vec<u8>> = Vec::new();
    let mut taken: Vec<Vec<u8>> = Vec::new();
    let mut archive = archive();
    for thing in things {
        let inside = |of: &Vec<u8>| thing.path.starts_with(&[&of[..], b"/"].concat());
        let below = [&thing.path[..], b"/"].concat();
        let free = |path: &Vec<u8>| !path.starts_with(&below) && *path != thing.path;
        if files.iter().any(inside) || !taken.iter().all(free) {
            continue;
        }
        let (secs, nanos) = thing.mtime;
        let text = |value: &dyn ToString| value.to_string().into_bytes();
        let time = match secs < 0 {
            false => format!("{secs}.{nanos:09}"),
            true => secs.to_string(),
        };
        let mut records = vec![
            ("path".to_owned(), thing.path.clone()),
            ("uid".to_owned(), text(&thing.owner.0)),
            ("gid".to_owned(), text(&thing.owner.1)),
            ("mtime".to_owned(), time.into_bytes()),
        ];
        for (name, value) in &thing.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let (kind, data) = match &thing.what {
            What::File(pieces) => {
                let bytes = |(data, length): &(bool, usize)| vec![u8::from(*data) * 9; *length];
                (b'0', pieces.iter().flat_map(bytes).collect())
            }
            What::Directory => (b'5', Vec::new()),
            What::Symlink(target) => {
                records.push(("linkpath".to_owned(), target.clone().into_bytes()));
                (b'2', Vec::new())
            }
            What::Fifo => (b'6', Vec::new()),
            What::Device(..) => (b'4', Vec::new()),
            What::Link(_) if files.is_empty() => continue,
            What::Link(index) => {
                records.push(("linkpath".to_owned(), index.get(&files).clone()));
                (b'1', Vec::new())
            }
        };
        let records: Vec<_> = records.iter().map(|(k, v)| (k.as_str(), &v[..])).collect();
        archive = archive.pax(&records).raw(kind, "x", "", &data, |h| {
            h.set_mode(thing.mode);
            if let What::Device(major, minor) = thing.what {
                h.set_device_major(major).unwrap();
                h.set_device_minor(minor).unwrap();
            }
        });
        if kind != b'5' {
            files.push(thing.path.clone());
        }
        taken.push(thing.path.clone());
    }
    archive.file("always", b"").finish()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    // covers R60
    #[test]
    fn any_tree_comes_back(things in prop::collection::vec(thing(), 0..40)) {
        let bench = Bench::new();
        let imported = bench.tar(&assemble(&things)[..]).unwrap();
        prop_assert!(imported.skipped.is_empty(), "{:?}", imported.skipped);
        let bytes = bench.exported();
        let again = Bench::new();
        prop_assert_eq!(again.tar(&bytes[..]).unwrap().digest, imported.digest);
        prop_assert!(again.exported() == bytes);
    }
}
