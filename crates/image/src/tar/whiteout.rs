//! What the names of a layer mean that begin with `.wh.`: the OCI image specification, "Layer
//! Filesystem Changeset".

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS kept its own files under such names, and old layers still have them.
const AUFS: &[u8] = b".wh..wh.";

/// What an entry of a layer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// An entry like any other.
    Entry,
    /// Hides this name of its directory in the layers below.
    Hides(&'a [u8]),
    /// Hides all names of its directory in the layers below.
    HidesChildren,
    /// Nothing, for this reason.
    Nothing(&'static str),
    /// Nothing that the specification knows.
    Malformed,
}

/// What an entry of a layer means, by its path. Its type is of no matter (some writers made whiteouts
/// hard links of one file), except that a directory hides nothing.
pub(super) fn meaning<'a>(components: &[&'a [u8]], directory: bool) -> Meaning<'a> {
    let Some((name, parents)) = components.split_last() else {
        return Meaning::Entry;
    };
    let reserved = |component: &&&[u8]| component.starts_with(PREFIX);
    if let Some(parent) = parents.iter().find(reserved) {
        return match parent.starts_with(AUFS) && *parent != OPAQUE {
            true => aufs(),
            false => Meaning::Malformed,
        };
    }
    match name.strip_prefix(PREFIX) {
        None => Meaning::Entry,
        Some(_) if *name == OPAQUE && !directory => Meaning::HidesChildren,
        Some(_) if name.starts_with(AUFS) && *name != OPAQUE => aufs(),
        Some(b"" | b"." | b"..") => Meaning::Malformed,
        Some(_) if directory => Meaning::Malformed,
        Some(hidden) => Meaning::Hides(hidden),
    }
}

fn aufs() -> Meaning<'static> {
    Meaning::Nothing("it is a record of AUFS and no part of the image")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &'static str, directory: bool) -> Meaning<'static> {
        let components: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        meaning(&components, directory)
    }

    // covers R58
    #[test]
    fn names_and_their_meanings() {
        assert_eq!(of("a/b", false), Meaning::Entry);
        assert_eq!(of("a/.whb", false), Meaning::Entry);
        assert_eq!(of("a/.wh.b", false), Meaning::Hides(b"b"));
        assert_eq!(of(".wh....", false), Meaning::Hides(b"..."));
        assert_eq!(of("a/.wh..b", false), Meaning::Hides(b".b"));
        assert_eq!(of("a/.wh..wh..opq", false), Meaning::HidesChildren);
        for (path, directory) in [
            (".wh.", false),
            ("a/.wh..", false),
            ("a/.wh...", false),
            (".wh.a/b", false),
            (".wh..wh..opq/b", false),
            ("a/.wh.b", true),
            ("a/.wh..wh..opq", true),
        ] {
            assert_eq!(of(path, directory), Meaning::Malformed, "{path}");
        }
        for path in [".wh..wh.plnk", ".wh..wh.plnk/1.2", ".wh..wh.aufs"] {
            assert!(matches!(
                of(path, path.ends_with("plnk")),
                Meaning::Nothing(_)
            ));
        }
        assert_eq!(meaning(&[], true), Meaning::Entry);
    }
}
