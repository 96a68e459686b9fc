//! The merged tree: what the image will contain, in memory.
//!
//! A path is looked up in maps, never by a kernel. Nodes live in an arena, so a hard link is two
//! names with one [`NodeId`]. A later entry replaces an earlier one, whatever its type was.

use crate::error::{ImportError, Refusal};
use crate::job::Limits;
use crate::name::EntryPath;
use crate::node::{Children, Kind, Meta, Node, NodeId};

/// Names, link targets and attributes together may take this much memory.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// The merged tree.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    limits: Limits,
    entries: u64,
    content_bytes: u64,
    text_bytes: u64,
}

/// The root of every tree.
pub(crate) const ROOT: NodeId = NodeId(0);

impl Tree {
    /// A tree with nothing but a root directory, root's, mode 0755.
    pub(crate) fn new(limits: Limits) -> Self {
        let root = Node {
            meta: implied_directory(),
            kind: Kind::Directory(Children::new()),
        };
        Self {
            nodes: vec![root],
            limits,
            entries: 0,
            content_bytes: 0,
            text_bytes: 0,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Entries counted so far, replaced ones included.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Number of nodes ever made: an upper bound for tables indexed by node.
    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// A node's place in tables indexed by node.
    pub(crate) fn index(id: NodeId) -> usize {
        id.0 as usize
    }

    /// The names in a directory; none for what is not one.
    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        let children = match &self.node(id).kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        };
        children
            .into_iter()
            .flatten()
            .map(|(name, child)| (&**name, *child))
    }

    /// Whether the tree has nothing but its root.
    pub(crate) fn is_empty(&self) -> bool {
        self.children(ROOT).next().is_none()
    }

    /// Counts content before it is stored, so that a bomb stops early.
    pub(crate) fn admit_content(&mut self, path: &[u8], bytes: u64) -> Result<(), ImportError> {
        let limit = self.limits.max_bytes;
        match self.content_bytes.checked_add(bytes) {
            Some(total) if total <= limit => {
                self.content_bytes = total;
                Ok(())
            }
            _ => Err(ImportError::limit(path, limit, "bytes of content")),
        }
    }

    /// Puts a node at a path, replacing what is there.
    ///
    /// A directory over a directory keeps its children and gets the new metadata. Missing parents
    /// are made. Nothing is ever written through a symbolic link.
    pub(crate) fn insert(
        &mut self,
        path: &EntryPath<'_>,
        node: Node,
    ) -> Result<NodeId, ImportError> {
        self.admit_entry(path, &node)?;
        check_shape(path, &node)?;
        let Some((parents, name)) = path.split_last() else {
            return match node.kind {
                Kind::Directory(_) => {
                    self.nodes[0].meta = node.meta;
                    Ok(ROOT)
                }
                _ => Err(ImportError::refused(path.raw(), Refusal::RootNotDirectory)),
            };
        };
        let parent = self.make_parents(path, parents)?;
        if let (Some(existing), Kind::Directory(_)) = (self.child(parent, name), &node.kind)
            && let Node {
                meta,
                kind: Kind::Directory(_),
            } = &mut self.nodes[existing.0 as usize]
        {
            *meta = node.meta;
            return Ok(existing);
        }
        let id = self.push(path.raw(), node)?;
        self.link(parent, name, id);
        Ok(id)
    }

    /// Gives an existing node a second name.
    pub(crate) fn hard_link(
        &mut self,
        path: &EntryPath<'_>,
        target: &EntryPath<'_>,
    ) -> Result<(), ImportError> {
        let found = self.lookup(target.components());
        let refused = |why| Err(ImportError::refused(path.raw(), why));
        let Some(id) = found else {
            return refused(Refusal::MissingLinkTarget);
        };
        self.hard_link_to(path, id)
    }

    /// As [`Self::hard_link`], for a target that is already known.
    pub(crate) fn hard_link_to(
        &mut self,
        path: &EntryPath<'_>,
        id: NodeId,
    ) -> Result<(), ImportError> {
        let refused = |why| Err(ImportError::refused(path.raw(), why));
        if matches!(self.node(id).kind, Kind::Directory(_)) {
            return refused(Refusal::LinkToDirectory);
        }
        let Some((parents, name)) = path.split_last() else {
            return refused(Refusal::RootNotDirectory);
        };
        if path.components() == [b"lost+found"] {
            return refused(Refusal::LostAndFound);
        }
        self.admit_text(path.raw(), name.len() as u64)?;
        self.count_entry(path.raw())?;
        let parent = self.make_parents(path, parents)?;
        self.link(parent, name, id);
        Ok(())
    }

    /// Finds a node without following any symbolic link.
    pub(crate) fn lookup(&self, components: &[&[u8]]) -> Option<NodeId> {
        components
            .iter()
            .try_fold(ROOT, |dir, name| self.child(dir, name))
    }

    /// Adds the directory that ext4 wants for what fsck finds; false when the source has one.
    pub(crate) fn ensure_lost_and_found(&mut self) -> Result<bool, ImportError> {
        const NAME: &[u8] = b"lost+found";
        if self.child(ROOT, NAME).is_some() {
            return Ok(false);
        }
        let meta = Meta {
            mode: 0o700,
            ..Meta::default()
        };
        let kind = Kind::Directory(Children::new());
        let id = self.push(NAME, Node { meta, kind })?;
        self.link(ROOT, NAME, id);
        Ok(true)
    }

    fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(dir).kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn link(&mut self, dir: NodeId, name: &[u8], child: NodeId) {
        if let Kind::Directory(children) = &mut self.nodes[dir.0 as usize].kind {
            children.insert(name.into(), child);
        }
    }

    fn push(&mut self, path: &[u8], node: Node) -> Result<NodeId, ImportError> {
        let id = u32::try_from(self.nodes.len())
            .map_err(|_| ImportError::limit(path, u64::from(u32::MAX), "entries"))?;
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    fn make_parents(
        &mut self,
        path: &EntryPath<'_>,
        parents: &[&[u8]],
    ) -> Result<NodeId, ImportError> {
        let mut dir = ROOT;
        for name in parents {
            dir = match self.child(dir, name) {
                Some(next) => match self.node(next).kind {
                    Kind::Directory(_) => next,
                    Kind::Symlink(_) => {
                        return Err(ImportError::refused(path.raw(), Refusal::ThroughSymlink));
                    }
                    _ => {
                        let why = Refusal::ThroughNonDirectory;
                        return Err(ImportError::refused(path.raw(), why));
                    }
                },
                None => {
                    self.admit_text(path.raw(), name.len() as u64)?;
                    self.count_entry(path.raw())?;
                    let node = Node {
                        meta: implied_directory(),
                        kind: Kind::Directory(Children::new()),
                    };
                    let id = self.push(path.raw(), node)?;
                    self.link(dir, name, id);
                    id
                }
            };
        }
        Ok(dir)
    }

    fn admit_entry(&mut self, path: &EntryPath<'_>, node: &Node) -> Result<(), ImportError> {
        let name = path.split_last().map_or(0, |(_, name)| name.len());
        let target = match &node.kind {
            Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = node
            .meta
            .xattrs
            .iter()
            .map(|x| x.name.len() + x.value.len())
            .sum();
        self.admit_text(path.raw(), (name + target + xattrs) as u64)?;
        self.count_entry(path.raw())
    }

    fn admit_text(&mut self, path: &[u8], bytes: u64) -> Result<(), ImportError> {
        self.text_bytes += bytes;
        if self.text_bytes > MAX_TEXT_BYTES {
            let what = "bytes of names, link targets and attributes";
            return Err(ImportError::limit(path, MAX_TEXT_BYTES, what));
        }
        Ok(())
    }

    fn count_entry(&mut self, path: &[u8]) -> Result<(), ImportError> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(ImportError::limit(path, self.limits.max_entries, "entries"));
        }
        Ok(())
    }
}

/// A directory that entries imply without naming it: root's, and as old as time, so that the same
/// archive always gives the same bytes.
fn implied_directory() -> Meta {
    Meta {
        mode: 0o755,
        ..Meta::default()
    }
}

fn check_shape(path: &EntryPath<'_>, node: &Node) -> Result<(), ImportError> {
    let why = match &node.kind {
        Kind::Symlink(target)
            if target.is_empty() || target.len() > 4095 || target.contains(&0) =>
        {
            Refusal::BadLinkTarget
        }
        Kind::Directory(_) => return Ok(()),
        _ if path.components() == [b"lost+found"] => Refusal::LostAndFound,
        _ => return Ok(()),
    };
    Err(ImportError::refused(path.raw(), why))
}

#[cfg(test)]
mod tests {
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
}
