//! The tree on its own: one source, no layers.

use super::*;

fn tree() -> Tree {
    Tree::new(Limits {
        max_entries: 10,
        max_bytes: 100,
        ..Limits::default()
    })
}

fn put(tree: &mut Tree, path: &str, kind: Kind) -> Result<NodeId, ImportError> {
    let limits = *tree.limits();
    let path = EntryPath::parse(path.as_bytes(), &limits)?;
    let meta = Meta::default();
    tree.insert(&path, Node { meta, kind })
}

fn link(tree: &mut Tree, path: &str, target: &str) -> Result<(), ImportError> {
    let limits = *tree.limits();
    let path = EntryPath::parse(path.as_bytes(), &limits)?;
    let target = EntryPath::parse(target.as_bytes(), &limits)?;
    tree.hard_link(&path, &target)
}

fn dir() -> Kind {
    Kind::Directory(Children::new())
}

fn symlink(target: &str) -> Kind {
    Kind::Symlink(target.as_bytes().into())
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ImportError>) -> Refusal {
    match result {
        Err(ImportError::Refused { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

// covers R59
#[test]
fn nothing_is_written_through_a_symbolic_link() {
    let mut tree = tree();
    put(&mut tree, "etc", dir()).unwrap();
    put(&mut tree, "out", symlink("/etc")).unwrap();
    let through = put(&mut tree, "out/passwd", Kind::Fifo);
    assert_eq!(refusal(through), Refusal::ThroughSymlink);
    assert_eq!(
        refusal(link(&mut tree, "out/x", "out")),
        Refusal::ThroughSymlink
    );
    assert_eq!(
        refusal(link(&mut tree, "x", "out/hosts")),
        Refusal::MissingLinkTarget
    );
}

#[test]
fn the_last_entry_wins_whatever_its_type() {
    let mut tree = tree();
    put(&mut tree, "a", dir()).unwrap();
    put(&mut tree, "a/b", Kind::Fifo).unwrap();
    put(&mut tree, "a", dir()).unwrap();
    assert!(tree.lookup(&[b"a", b"b"]).is_some());
    put(&mut tree, "a", symlink("b")).unwrap();
    assert!(tree.lookup(&[b"a", b"b"]).is_none());
    put(&mut tree, "a", dir()).unwrap();
    assert_eq!(tree.children(tree.lookup(&[b"a"]).unwrap()).count(), 0);
}

#[test]
fn a_hard_link_to_itself_keeps_the_file() {
    let mut tree = tree();
    let id = put(&mut tree, "a", Kind::Fifo).unwrap();
    link(&mut tree, "a", "a").unwrap();
    assert_eq!(tree.lookup(&[b"a"]), Some(id));
    put(&mut tree, "d", dir()).unwrap();
    assert_eq!(refusal(link(&mut tree, "e", "d")), Refusal::LinkToDirectory);
}

#[test]
fn limits_name_the_entry() {
    let mut tree = tree();
    let deep = "a/b/c/d/e/f/g/h/i/j/k";
    let error = put(&mut tree, deep, Kind::Fifo).unwrap_err().to_string();
    assert!(
        error.contains(deep) && error.contains("10 entries"),
        "{error}"
    );
    assert!(tree.admit_content(b"x", 100).is_ok());
    assert!(tree.admit_content(b"x", 1).is_err());
    assert!(tree.admit_content(b"x", u64::MAX).is_err());
}

#[test]
fn odd_shapes_are_refused() {
    let mut tree = tree();
    assert_eq!(
        refusal(put(&mut tree, ".", Kind::Fifo)),
        Refusal::RootNotDirectory
    );
    assert_eq!(
        refusal(put(&mut tree, "x", symlink(""))),
        Refusal::BadLinkTarget
    );
    assert_eq!(
        refusal(put(&mut tree, "lost+found", Kind::Fifo)),
        Refusal::LostAndFound
    );
    put(&mut tree, "f", Kind::Fifo).unwrap();
    assert_eq!(
        refusal(put(&mut tree, "f/x", Kind::Fifo)),
        Refusal::ThroughNonDirectory
    );
}
