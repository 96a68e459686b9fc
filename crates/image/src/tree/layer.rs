//! Layers of an image, put on one another.
//!
//! ```text
//!  begin_layer ─ insert, hard_link, hide, hide_children … in any order ─ end_layer
//!                   │ into a tree of the layer's own                        │ 1. what is hidden goes below
//!                   │ (a hard link may name what is below)                  │ 2. the layer's tree on top
//! ```
//!
//! A whiteout hides only what lower layers have, never what its own layer adds, in whatever order the
//! layer has them. Collecting the layer first makes that so by construction.

use std::collections::HashSet;

use super::{ROOT, Tree, implied_directory};
use crate::error::{ImportError, Refusal};
use crate::name::EntryPath;
use crate::node::{Children, Kind, Node, NodeId};

/// A layer that is being read.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) root: NodeId,
    /// Directories that the layer's paths go through without naming them.
    implied: HashSet<NodeId>,
    hidden: Vec<Hidden>,
}

/// What a layer hides below it. In this order shallow ones come first, so that what hides a whole
/// directory leaves nothing for those inside it to complain about.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hidden {
    depth: usize,
    directory: Vec<Box<[u8]>>,
    /// A name of the directory, or all that it has.
    name: Option<Box<[u8]>>,
    /// The entry as the layer spells it, for messages.
    entry: Box<[u8]>,
}

impl Tree {
    /// Begins a layer: until [`Self::end_layer`], entries go into it.
    pub(crate) fn begin_layer(&mut self) -> Result<(), ImportError> {
        let root = self.push(
            b".",
            Node {
                meta: implied_directory(),
                kind: Kind::Directory(Children::new()),
            },
        )?;
        self.layer = Some(Layer {
            root,
            implied: HashSet::from([root]),
            hidden: Vec::new(),
        });
        Ok(())
    }

    /// Hides a name of the layers below; `path` is the whiteout's, beside that name.
    pub(crate) fn hide(&mut self, path: &EntryPath<'_>, name: &[u8]) -> Result<(), ImportError> {
        self.add_hidden(path, Some(name.into()))
    }

    /// Hides all that the layers below have in the directory that `path` is in.
    pub(crate) fn hide_children(&mut self, path: &EntryPath<'_>) -> Result<(), ImportError> {
        self.add_hidden(path, None)
    }

    fn add_hidden(
        &mut self,
        path: &EntryPath<'_>,
        name: Option<Box<[u8]>>,
    ) -> Result<(), ImportError> {
        self.admit_text(path.raw(), 2 * path.raw().len() as u64)?;
        let parents = path.split_last().map_or(&[][..], |(parents, _)| parents);
        if let Some(layer) = &mut self.layer {
            layer.hidden.push(Hidden {
                depth: parents.len(),
                directory: parents.iter().map(|name| Box::from(*name)).collect(),
                name,
                entry: path.raw().into(),
            });
        }
        Ok(())
    }

    pub(super) fn name_explicitly(&mut self, directory: NodeId) {
        if let Some(layer) = &mut self.layer {
            layer.implied.remove(&directory);
        }
    }

    pub(super) fn name_implicitly(&mut self, directory: NodeId) {
        if let Some(layer) = &mut self.layer {
            layer.implied.insert(directory);
        }
    }

    /// Finds what a hard link of the layer means: in the layer, else below it, where what the layer
    /// hides still counts. No symbolic link is followed.
    pub(super) fn lookup_through(&self, layer: &Layer, components: &[&[u8]]) -> Option<NodeId> {
        let (mut upper, mut lower) = (Some(layer.root), Some(ROOT));
        for name in components {
            let below = lower.and_then(|dir| self.child(dir, name));
            upper = upper.and_then(|dir| self.child(dir, name));
            lower = match upper {
                Some(node) if !self.is_directory(node) => None,
                _ => below,
            };
        }
        upper.or(lower)
    }

    /// Puts the layer on what is below it.
    pub(crate) fn end_layer(&mut self) -> Result<(), ImportError> {
        let Some(mut layer) = self.layer.take() else {
            return Ok(());
        };
        let mut hidden = std::mem::take(&mut layer.hidden);
        hidden.sort_unstable();
        for hidden in hidden {
            let Some(directory) = self.hidden_directory(&layer, &hidden)? else {
                continue;
            };
            if let Kind::Directory(children) = &mut self.nodes[directory.0 as usize].kind {
                match hidden.name {
                    Some(name) => drop(children.remove(&name)),
                    None => children.clear(),
                }
            }
        }
        self.put_on(&layer)
    }

    /// The lower directory that something is hidden in, if there is one.
    fn hidden_directory(
        &self,
        layer: &Layer,
        hidden: &Hidden,
    ) -> Result<Option<NodeId>, ImportError> {
        let refused = |why| Err(ImportError::refused(&hidden.entry, why));
        let (mut upper, mut lower) = (Some(layer.root), Some(ROOT));
        for name in &hidden.directory {
            upper = upper.and_then(|dir| self.child(dir, name));
            lower = lower.and_then(|dir| self.child(dir, name));
            if let Some(why) = upper.and_then(|node| self.obstacle(node)) {
                // Of a directory that the layer replaces umoci hides each name as well: nothing of it stays anyway.
                // Where there was none, programs that go by the order of entries would follow the layer's link.
                return match lower.is_some_and(|node| self.is_directory(node)) {
                    true => Ok(None),
                    false => refused(why),
                };
            }
            let replaced = upper.is_some_and(|node| !layer.implied.contains(&node));
            match lower.and_then(|node| self.obstacle(node)) {
                None => {}
                Some(Refusal::ThroughSymlink) if !replaced => {
                    return refused(Refusal::ThroughSymlink);
                }
                // Nothing is in there that could be hidden.
                Some(_) => lower = None,
            }
        }
        Ok(lower)
    }

    /// Merges the layer's directories into those of the same path, and replaces all else.
    fn put_on(&mut self, layer: &Layer) -> Result<(), ImportError> {
        let mut todo = vec![(ROOT, layer.root, Vec::new())];
        while let Some((lower, upper, path)) = todo.pop() {
            if !layer.implied.contains(&upper) {
                self.nodes[lower.0 as usize].meta =
                    std::mem::take(&mut self.nodes[upper.0 as usize].meta);
            }
            let names = match &mut self.nodes[upper.0 as usize].kind {
                Kind::Directory(children) => std::mem::take(children),
                _ => continue,
            };
            for (name, node) in names {
                let below = self.child(lower, &name);
                let obstacle = below.and_then(|below| self.obstacle(below));
                match (below, obstacle) {
                    (Some(below), None) if self.is_directory(node) => {
                        todo.push((below, node, join(&path, &name)));
                    }
                    (_, Some(why)) if layer.implied.contains(&node) => {
                        return Err(ImportError::refused(&join(&path, &name), why));
                    }
                    _ => self.link(lower, &name, node),
                }
            }
        }
        Ok(())
    }

    fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, Kind::Directory(_))
    }

    /// Why no path goes through a node; `None` for a directory.
    fn obstacle(&self, id: NodeId) -> Option<Refusal> {
        match self.node(id).kind {
            Kind::Directory(_) => None,
            Kind::Symlink(_) => Some(Refusal::ThroughSymlink),
            _ => Some(Refusal::ThroughNonDirectory),
        }
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        b"" => name.to_vec(),
        _ => [path, name].join(&b'/'),
    }
}

#[cfg(test)]
mod tests;
