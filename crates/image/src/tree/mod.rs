//! The merged tree: what the image will contain, in memory.
//!
//! A path is looked up in maps, never by a kernel. Nodes live in an arena, so a hard link is two
//! names with one [`NodeId`]. A later entry replaces an earlier one, whatever its type was.
//! A layer of an image is collected beside the tree and put on it when it is whole ([`layer`]).

mod layer;

use self::layer::Layer;
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
    /// The layer that is being read; entries go there then.
    layer: Option<Layer>,
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
            layer: None,
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

    /// Counts an entry that is not kept, and what it has stored.
    pub(crate) fn admit_left_out(&mut self, path: &[u8], bytes: u64) -> Result<(), ImportError> {
        self.count_entry(path)?;
        self.admit_content(path, bytes)
    }

    /// Where entries go: the root, or that of the layer that is being read.
    fn base(&self) -> NodeId {
        self.layer.as_ref().map_or(ROOT, |layer| layer.root)
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
                    let base = self.base();
                    self.nodes[base.0 as usize].meta = node.meta;
                    self.name_explicitly(base);
                    Ok(base)
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
            self.name_explicitly(existing);
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
        let found = match &self.layer {
            Some(layer) => self.lookup_through(layer, target.components()),
            None => self.lookup(target.components()),
        };
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
        let mut dir = self.base();
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
                    self.name_implicitly(id);
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
        let xattrs = self.weigh_xattrs(path, &node.meta)?;
        self.admit_text(path.raw(), (name + target + xattrs) as u64)?;
        self.count_entry(path.raw())
    }

    /// Bytes of an entry's extended attributes, within their bounds.
    fn weigh_xattrs(&self, path: &EntryPath<'_>, meta: &Meta) -> Result<usize, ImportError> {
        let limits = &self.limits;
        if meta.xattrs.len() > limits.max_xattrs {
            let what = "extended attributes of one entry";
            return Err(ImportError::limit(
                path.raw(),
                limits.max_xattrs as u64,
                what,
            ));
        }
        let xattrs = meta.xattrs.iter();
        let bytes = xattrs.map(|x| x.name.len() + x.value.len()).sum();
        if bytes > limits.max_xattr_bytes {
            let what = "bytes of extended attributes of one entry";
            return Err(ImportError::limit(
                path.raw(),
                limits.max_xattr_bytes as u64,
                what,
            ));
        }
        Ok(bytes)
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
mod tests;
