//! Layers against cases, and against a model that knows nothing but paths.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::job::Limits;
use crate::node::Meta;

/// What a layer does, in the order in which it does it.
#[derive(Debug, Clone)]
enum Step {
    File(&'static str, u16),
    Directory(&'static str, u16),
    Symlink(&'static str),
    /// A name, and what it is to be another name of.
    Link(&'static str, &'static str),
    /// The directory (`.` for the root), and the name in it.
    Hide(&'static str, &'static str),
    HideChildren(&'static str),
}

use Step::*;

fn apply(tree: &mut Tree, layer: &[Step]) -> Result<(), ImportError> {
    let limits = *tree.limits();
    let insert = |tree: &mut Tree, path: &str, mode, kind| {
        let path = EntryPath::parse(path.as_bytes(), &limits)?;
        let meta = Meta {
            mode,
            ..Meta::default()
        };
        tree.insert(&path, Node { meta, kind }).map(drop)
    };
    tree.begin_layer()?;
    for step in layer {
        match step {
            File(path, mode) => insert(tree, path, *mode, Kind::Fifo)?,
            Directory(path, mode) => {
                insert(tree, path, *mode, Kind::Directory(Children::new()))?;
            }
            Symlink(path) => insert(tree, path, 0o777, Kind::Symlink(b"/etc"[..].into()))?,
            Link(path, target) => tree.hard_link(
                &EntryPath::parse(path.as_bytes(), &limits)?,
                &EntryPath::parse(target.as_bytes(), &limits)?,
            )?,
            Hide(directory, name) => {
                let path = format!("{directory}/.wh.{name}");
                let path = EntryPath::parse(path.as_bytes(), &limits)?;
                tree.hide(&path, name.as_bytes())?;
            }
            HideChildren(directory) => {
                let path = format!("{directory}/.wh..wh..opq");
                tree.hide_children(&EntryPath::parse(path.as_bytes(), &limits)?)?;
            }
        }
    }
    tree.end_layer()
}

/// Every path with its type, its mode, and a number that all names of one node share.
type Listing = BTreeMap<String, (char, u16, String)>;

fn listing(tree: &Tree) -> Listing {
    let mut all = Listing::new();
    let mut first = BTreeMap::new();
    let mut todo = vec![(ROOT, String::new())];
    let mut nodes = Vec::new();
    while let Some((id, path)) = todo.pop() {
        for (name, child) in tree.children(id) {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let path = format!("{path}/{name}").trim_start_matches('/').to_owned();
            todo.push((child, path.clone()));
            nodes.push((path, child));
        }
    }
    nodes.sort();
    for (path, id) in nodes {
        let first = first.entry(id).or_insert_with(|| path.clone());
        let node = tree.node(id);
        let kind = match node.kind {
            Kind::Directory(_) => 'd',
            Kind::Symlink(_) => 'l',
            _ => 'f',
        };
        all.insert(path, (kind, node.meta.mode, first.clone()));
    }
    all
}

fn layers(layers: &[&[Step]]) -> Result<Listing, ImportError> {
    let mut tree = Tree::new(Limits::default());
    for layer in layers {
        apply(&mut tree, layer)?;
    }
    Ok(listing(&tree))
}

fn names(of: &[&[Step]]) -> Vec<String> {
    layers(of).unwrap().into_keys().collect()
}

fn why(of: &[&[Step]]) -> Refusal {
    match layers(of) {
        Err(ImportError::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

// covers R58
#[test]
fn a_whiteout_hides_what_is_below_and_not_beside_it() {
    let base: &[Step] = &[File("a", 1), File("d/x", 1), File("d/y", 1)];
    assert_eq!(names(&[base, &[Hide(".", "a")]]), ["d", "d/x", "d/y"]);
    assert_eq!(
        names(&[base, &[Hide("d", "x"), Hide("d", "none")]]),
        ["a", "d", "d/y"]
    );
    // Deleted and added again, in either order.
    for layer in [
        [Hide(".", "d"), File("d/new", 2)],
        [File("d/new", 2), Hide(".", "d")],
        [HideChildren("d"), File("d/new", 2)],
        [File("d/new", 2), HideChildren("d")],
    ] {
        assert_eq!(names(&[base, &layer]), ["a", "d", "d/new"], "{layer:?}");
    }
    assert_eq!(
        layers(&[base, &[File("a", 2), Hide(".", "a")]]).unwrap()["a"].1,
        2
    );
    // Added back by a layer of its own.
    assert_eq!(
        names(&[&[File("a", 1)], &[Hide(".", "a")], &[File("a", 2)]]),
        ["a"]
    );
    // In a directory that is not there, or is a file.
    assert_eq!(
        names(&[base, &[Hide("no/such", "x"), Hide("a", "x")]]).len(),
        4
    );
    assert_eq!(names(&[base, &[HideChildren(".")]]), Vec::<String>::new());
}

#[test]
fn an_opaque_directory_keeps_itself() {
    let base: &[Step] = &[Directory("d", 0o700), File("d/x", 1)];
    let listing = layers(&[base, &[HideChildren("d")]]).unwrap();
    assert_eq!(listing["d"].1, 0o700);
    // Hidden as a whole, what the layer implies is a new one.
    let listing = layers(&[base, &[Hide(".", "d"), File("d/y", 1)]]).unwrap();
    assert_eq!(listing["d"].1, 0o755);
    let listing = layers(&[base, &[Directory("d", 0o711)]]).unwrap();
    assert_eq!((listing["d"].1, listing.len()), (0o711, 2));
}

#[test]
fn hard_links_go_across_layers() {
    let base: &[Step] = &[File("a", 1), Link("b", "a"), File("d/x", 2)];
    // One name goes, the file stays.
    let listing = layers(&[base, &[Hide(".", "a")]]).unwrap();
    assert_eq!(listing["b"], ('f', 1, "b".to_owned()));
    // One name is replaced, the other one is not.
    let listing = layers(&[base, &[File("a", 9)]]).unwrap();
    assert_eq!((listing["a"].1, listing["b"].1), (9, 1));
    // A new name of what is below, also when the old one is hidden in the same layer.
    for layer in [
        [Link("c", "d/x"), Hide("d", "x")],
        [Hide("d", "x"), Link("c", "d/x")],
    ] {
        let listing = layers(&[base, &layer]).unwrap();
        assert_eq!(listing["c"], ('f', 2, "c".to_owned()), "{layer:?}");
        assert!(!listing.contains_key("d/x"));
    }
    let listing = layers(&[base, &[Link("c", "a")]]).unwrap();
    assert_eq!(
        ["a", "b", "c"].map(|name| listing[name].2.as_str()),
        ["a"; 3]
    );
    // What the layer has comes before what is below.
    let listing = layers(&[base, &[File("a", 7), Link("c", "a")]]).unwrap();
    assert_eq!((listing["c"].1, listing["b"].1), (7, 1));
    // What the layer replaces is not below any more.
    let missing = Refusal::MissingLinkTarget;
    assert_eq!(why(&[base, &[File("d", 1), Link("c", "d/x")]]), missing);
    assert_eq!(why(&[base, &[Link("c", "none")]]), missing);
    assert_eq!(why(&[base, &[Link("c", "d")]]), Refusal::LinkToDirectory);
}

#[test]
fn a_directory_becomes_a_file_and_a_directory_again() {
    let listing = layers(&[
        &[File("d/x", 1)],
        &[File("d", 2)],
        &[Directory("d", 0o700), File("d/y", 3)],
    ]);
    assert_eq!(
        listing.unwrap().into_keys().collect::<Vec<_>>(),
        ["d", "d/y"]
    );
}

// covers R58: umoci writes layers like these
#[test]
fn what_is_in_a_replaced_directory_may_be_hidden_too() {
    let base: &[Step] = &[File("d/x", 1), File("d/e/y", 1), File("etc/x", 1)];
    for layer in [
        &[Symlink("d"), Hide("d", "x"), Hide("d", "e")][..],
        &[Hide("d", "x"), Hide("d/e", "y"), Symlink("d")],
        &[File("d", 2), HideChildren("d/e")],
    ] {
        assert_eq!(names(&[base, layer]), ["d", "etc", "etc/x"], "{layer:?}");
    }
    // It is no directory below, or was hidden itself.
    let through = Refusal::ThroughSymlink;
    let twice: &[Step] = &[Hide(".", "d"), Symlink("d"), Hide("d", "x")];
    assert_eq!(why(&[base, twice]), through);
    assert_eq!(why(&[base, &[Symlink("new"), Hide("new", "x")]]), through);
    let link: &[Step] = &[Symlink("d")];
    assert_eq!(why(&[link, &[Symlink("d"), Hide("d", "x")]]), through);
}

// covers R59
#[test]
fn nothing_goes_through_a_link_of_a_lower_layer() {
    let base: &[Step] = &[Symlink("out"), File("f", 1), File("etc/passwd", 1)];
    let through = Refusal::ThroughSymlink;
    assert_eq!(why(&[base, &[File("out/passwd", 2)]]), through);
    assert_eq!(why(&[base, &[Hide("out", "passwd")]]), through);
    assert_eq!(why(&[base, &[HideChildren("out")]]), through);
    assert_eq!(why(&[base, &[Hide("out/x", "y")]]), through);
    assert_eq!(
        why(&[base, &[File("f/x", 2)]]),
        Refusal::ThroughNonDirectory
    );
    assert_eq!(why(&[&[Symlink("s"), Hide("s", "x")]]), through);
    let missing = Refusal::MissingLinkTarget;
    assert_eq!(why(&[base, &[Link("x", "out/passwd")]]), missing);
    // The link is replaced, or hidden, by the same layer, in any order.
    for layer in [
        &[File("out/new", 1), Directory("out", 1)][..],
        &[Directory("out", 1), File("out/new", 1)],
        &[File("out/new", 1), Hide("out", "x"), Hide(".", "out")],
        &[Hide(".", "out"), File("out/new", 1), HideChildren("out")],
        &[Hide("out", "x"), Directory("out", 1), File("out/new", 1)],
    ] {
        let names = names(&[base, layer]);
        assert!(names.contains(&"out/new".to_owned()), "{layer:?}");
        assert!(names.contains(&"etc/passwd".to_owned()), "{layer:?}");
    }
}

#[test]
fn limits_are_for_all_layers_together() {
    let mut tree = Tree::new(Limits {
        max_entries: 3,
        ..Limits::default()
    });
    apply(&mut tree, &[File("a", 1), File("b", 1)]).unwrap();
    apply(&mut tree, &[File("a", 1)]).unwrap();
    let error = apply(&mut tree, &[File("a", 1)]).unwrap_err();
    assert!(error.to_string().contains("3 entries"), "{error}");
}

/// Paths to what is there: type, mode, and an identity that names of one file share. Directories that
/// a layer implies have no mode until they are merged.
type Model = BTreeMap<String, (char, Option<u16>, u32)>;

fn above(path: &str) -> Vec<String> {
    let slashes = path.match_indices('/');
    slashes.map(|(at, _)| path[..at].to_owned()).collect()
}

fn remove_below(model: &mut Model, path: &str) {
    let prefix = format!("{path}/");
    model.retain(|other, _| path != "." && !other.starts_with(&prefix));
}

/// One layer put on a model. `None` is a refusal.
fn model_layer(lower: &mut Model, layer: &[Step], next: &mut u32) -> Option<()> {
    let mut upper = Model::new();
    let put = |upper: &mut Model, path: &str, value: (char, Option<u16>, u32)| {
        for parent in above(path) {
            let parent = upper.entry(parent).or_insert(('d', None, 0));
            (parent.0 == 'd').then_some(())?;
        }
        let was = upper.insert(path.to_owned(), value);
        if value.0 != 'd' || was.is_some_and(|was| was.0 != 'd') {
            remove_below(upper, path);
        }
        Some(())
    };
    let mut hidden = BTreeSet::new();
    for step in layer {
        *next += 1;
        match *step {
            File(path, mode) => put(&mut upper, path, ('f', Some(mode), *next))?,
            Symlink(path) => put(&mut upper, path, ('l', Some(0o777), *next))?,
            Directory(path, mode) => put(&mut upper, path, ('d', Some(mode), 0))?,
            Link(path, target) => {
                let covered = above(target)
                    .iter()
                    .any(|p| upper.get(p).is_some_and(|n| n.0 != 'd'));
                let below = lower.get(target).filter(|_| !covered);
                let found = *upper.get(target).or(below)?;
                (found.0 != 'd').then_some(())?;
                put(&mut upper, path, found)?;
            }
            Hide(directory, name) => {
                let depth = 1 + directory.matches('/').count() - usize::from(directory == ".");
                hidden.insert((depth, directory, Some(name)));
            }
            HideChildren(directory) => {
                let depth = 1 + directory.matches('/').count() - usize::from(directory == ".");
                hidden.insert((depth, directory, None));
            }
        }
    }
    for (_, directory, name) in hidden {
        let mut reached = true;
        if directory != "." {
            for path in above(&format!("{directory}/")) {
                let ours = upper.get(&path).copied();
                let below = lower.get(&path).map(|node| node.0);
                if ours.is_some_and(|(kind, ..)| kind != 'd') {
                    // A directory that is replaced: all of it goes.
                    (reached && below == Some('d')).then_some(())?;
                    reached = false;
                    break;
                }
                match below {
                    Some('d') => {}
                    // Only the first link on the way is one: nothing is below it.
                    Some('l') if ours.is_none_or(|(_, mode, _)| mode.is_none()) => return None,
                    _ => reached = false,
                }
            }
        }
        let path = |name: &str| match directory {
            "." => name.to_owned(),
            _ => format!("{directory}/{name}"),
        };
        match name {
            _ if !reached => {}
            Some(name) => {
                remove_below(lower, &path(name));
                lower.remove(&path(name));
            }
            None => remove_below(lower, directory),
        }
    }
    for (path, (kind, mode, identity)) in upper {
        let below = lower.get(&path).copied();
        match (kind, mode, below) {
            ('d', Some(_), Some(('d', ..))) => drop(lower.insert(path, (kind, mode, 0))),
            ('d', None, Some(('d', ..))) => {}
            ('d', None, Some(_)) => return None,
            ('d', None, None) => drop(lower.insert(path, ('d', Some(0o755), 0))),
            _ => {
                remove_below(lower, &path);
                lower.insert(path, (kind, mode, identity));
            }
        }
    }
    Some(())
}

fn model_listing(model: &Model) -> Listing {
    let mut first = BTreeMap::new();
    let entry = |(path, (kind, mode, identity)): (&String, &(char, Option<u16>, u32))| {
        let first = match kind {
            'd' => path.clone(),
            _ => first
                .entry(*identity)
                .or_insert_with(|| path.clone())
                .clone(),
        };
        (path.clone(), (*kind, mode.unwrap_or(0), first))
    };
    model.iter().map(entry).collect()
}

fn path() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b", "a/b/a",
    ])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let directory = || prop::sample::select(vec![".", "a", "b", "a/a", "a/b"]);
    let name = prop::sample::select(vec!["a", "b"]);
    let step = prop_oneof![
        4 => (path(), 0..8u16).prop_map(|(path, mode)| File(path, mode)),
        3 => (path(), 0..8u16).prop_map(|(path, mode)| Directory(path, mode)),
        1 => path().prop_map(Symlink),
        2 => (path(), path()).prop_map(|(path, target)| Link(path, target)),
        2 => (directory(), name).prop_map(|(directory, name)| Hide(directory, name)),
        1 => directory().prop_map(HideChildren),
    ];
    prop::collection::vec(step, 0..7)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    // covers R58, R59
    #[test]
    fn layers_do_what_the_model_does(layers in prop::collection::vec(steps(), 1..5)) {
        let mut tree = Tree::new(Limits::default());
        let (mut model, mut next) = (Model::new(), 0);
        for layer in &layers {
            let real = apply(&mut tree, layer);
            let naive = model_layer(&mut model, layer, &mut next);
            match (real, naive) {
                (Ok(()), Some(())) => prop_assert_eq!(listing(&tree), model_listing(&model)),
                (Err(ImportError::Refused { .. }), None) => break,
                (real, naive) => prop_assert!(false, "{:?} but {:?}", real, naive),
            }
        }
    }
}
