//! What a layer changed, whatever its format: where on the disk, how much, and where the content is.

/// Where the content of a changed place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// At this offset of the layer's file.
    Data(u64),
    /// Nowhere: it reads as zeros.
    Zeros,
}

/// One changed place of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Where on the disk, in bytes.
    pub at: u64,
    /// How much, in bytes.
    pub length: u64,
    /// Its content.
    pub content: Content,
}

impl Change {
    fn end(&self) -> u64 {
        self.at + self.length
    }

    /// The part of it between two offsets that lie in it.
    fn part(&self, from: u64, to: u64) -> Self {
        Self {
            at: from,
            length: to - from,
            content: match self.content {
                Content::Data(offset) => Content::Data(offset + (from - self.at)),
                Content::Zeros => Content::Zeros,
            },
        }
    }
}

/// All changes of one layer: in order, none over another, and neighbours joined where they can be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(Vec<Change>);

impl Changes {
    /// Adds a change that lies after all others, cut off at the end of the disk.
    pub(crate) fn push(&mut self, disk_bytes: u64, change: Change) {
        let end = change.end().min(disk_bytes);
        if change.at >= end {
            return;
        }
        let change = change.part(change.at, end);
        match self.0.last_mut() {
            Some(last) if follows(last, &change) => last.length += change.length,
            _ => self.0.push(change),
        }
    }

    /// Bytes of the disk that were changed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|change| change.length).sum()
    }

    /// They, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Change> {
        self.0.iter()
    }
}

fn follows(last: &Change, next: &Change) -> bool {
    last.end() == next.at
        && match (last.content, next.content) {
            (Content::Zeros, Content::Zeros) => true,
            (Content::Data(last_at), Content::Data(at)) => last_at + last.length == at,
            _ => false,
        }
}

/// A change that shows through: of which layer (0 is the base), and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The layer.
    pub layer: usize,
    /// The change, or what higher layers left of it.
    pub change: Change,
}

/// What layers over each other, base first, changed together: in order, none over another.
#[must_use]
pub fn merge(layers: &[Changes]) -> Vec<Piece> {
    let mut shown: Vec<Piece> = Vec::new();
    for (layer, changes) in layers.iter().enumerate().rev() {
        if shown.is_empty() {
            shown.extend(changes.iter().map(|&change| Piece { layer, change }));
        } else {
            shown = under(layer, changes, &shown);
        }
    }
    shown
}

/// Lays the changes of a layer under what is over it.
fn under(layer: usize, changes: &Changes, over: &[Piece]) -> Vec<Piece> {
    let mut merged = Vec::with_capacity(over.len() + changes.0.len());
    let mut over = over.iter().copied().peekable();
    for change in changes.iter() {
        // The last piece taken may reach over the beginning of this change, or over all of it.
        let covered = merged.last().map_or(0, |last: &Piece| last.change.end());
        let mut at = change.at.max(covered);
        while let Some(piece) = over.next_if(|piece| piece.change.at < change.end()) {
            if at < piece.change.at {
                let change = change.part(at, piece.change.at);
                merged.push(Piece { layer, change });
            }
            // It may lie before this change altogether.
            at = at.max(piece.change.end());
            merged.push(piece);
        }
        if at < change.end() {
            let change = change.part(at, change.end());
            merged.push(Piece { layer, change });
        }
    }
    merged.extend(over);
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 400;

    fn layer(places: &[(u64, u64, bool)], index: u64) -> Changes {
        let mut changes = Changes::default();
        let mut at = 0;
        for &(skip, length, zeros) in places {
            at += skip;
            // Data that could only be of this layer and place.
            let content = if zeros {
                Content::Zeros
            } else {
                Content::Data(1000 * (index + 1) + at)
            };
            changes.push(
                DISK,
                Change {
                    at,
                    length,
                    content,
                },
            );
            at += length;
        }
        changes
    }

    #[test]
    fn neighbours_are_joined_and_the_end_of_the_disk_cuts() {
        let changes = layer(
            &[(1, 4, false), (0, 5, false), (0, 3, true), (300, 500, true)],
            0,
        );
        let found: Vec<_> = changes.iter().map(|one| (one.at, one.length)).collect();
        assert_eq!(found, [(1, 9), (10, 3), (313, 87)]);
        assert_eq!(changes.bytes(), 99);
    }

    proptest! {
        /// Byte by byte, the highest layer that changed it is what shows.
        #[test]
        fn the_highest_layer_shows(
            layers in prop::collection::vec(
                prop::collection::vec((0_u64..30, 1_u64..40, any::<bool>()), 0..12), 0..5),
        ) {
            let layers: Vec<Changes> = (0..)
                .zip(&layers)
                .map(|(index, places)| layer(places, index))
                .collect();
            let mut expected = BTreeMap::new();
            for (index, changes) in layers.iter().enumerate() {
                for change in changes.iter() {
                    for at in change.at..change.end() {
                        expected.insert(at, (index, change.part(at, at + 1).content));
                    }
                }
            }
            let mut found = BTreeMap::new();
            let mut end = 0;
            for piece in merge(&layers) {
                prop_assert!(piece.change.at >= end && piece.change.length > 0);
                end = piece.change.end();
                for at in piece.change.at..end {
                    found.insert(at, (piece.layer, piece.change.part(at, at + 1).content));
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
