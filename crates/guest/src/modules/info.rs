//! What a module says of itself in its `.modinfo` section: NUL-separated `key=value` texts.

use crate::elf::{ET_REL, Elf};

/// Dependencies of real modules: at most a few dozen.
const MAX_DEPENDS: usize = 256;

/// The fields that decide whether and when a module can be loaded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ModuleInfo {
    /// The kernel release it was built for: the first word of `vermagic`.
    pub(super) release: String,
    /// Modules whose symbols it uses.
    pub(super) depends: Vec<String>,
    /// Modules that it asks to have loaded before it (`softdep=pre: …`), without needing them.
    pub(super) load_before: Vec<String>,
}

impl ModuleInfo {
    /// Reads them from a module's ELF object; the error completes "not a usable kernel module: …".
    pub(super) fn parse(object: &[u8]) -> Result<Self, String> {
        let elf = Elf::parse(object).map_err(|error| format!("it is {error}"))?;
        if elf.kind != ET_REL {
            return Err("it is an ELF file, but not an object".to_owned());
        }
        let section = elf
            .section(b".modinfo")
            .map_err(|error| format!("it is {error}"))?;
        let section = section.ok_or("it has no .modinfo section")?;
        let fields: Vec<(&str, &str)> = section
            .split(|byte| *byte == 0)
            .filter_map(|field| std::str::from_utf8(field).ok()?.split_once('='))
            .collect();
        let values = |key: &'static str| {
            fields
                .iter()
                .filter(move |(name, _)| *name == key)
                .map(|(_, value)| *value)
        };
        let magic = values("vermagic")
            .next()
            .and_then(|magic| magic.split(' ').next());
        let release = magic
            .filter(|word| !word.is_empty())
            .ok_or("it names no kernel release")?;
        let depends = values("depends").flat_map(|list| list.split(','));
        let before = values("softdep").flat_map(softdep_pre);
        let info = Self {
            release: release.chars().take(64).collect(),
            depends: depends.filter_map(module_name).collect(),
            load_before: before.filter_map(module_name).collect(),
        };
        if info.depends.len() + info.load_before.len() > MAX_DEPENDS {
            return Err("it depends on more modules than a real one".to_owned());
        }
        Ok(info)
    }
}

/// The words after `pre:` and before `post:`.
fn softdep_pre(value: &str) -> impl Iterator<Item = &str> {
    let words = value.split_ascii_whitespace();
    words
        .skip_while(|word| *word != "pre:")
        .skip(1)
        .take_while(|word| *word != "post:")
}

/// A module's name as the kernel has it, or nothing when it can be no name. Names become paths in
/// the archive.
pub(super) fn module_name(text: &str) -> Option<String> {
    let valid = !text.is_empty()
        && text.len() <= 64
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    valid.then(|| text.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn dependencies_and_wishes_are_read() {
        let object = fixture::module(
            "ext4",
            "6.1.0-9",
            &["mbcache", "jbd2"],
            Some("pre: crc32c x-y post: z"),
        );
        let info = ModuleInfo::parse(&object).unwrap();
        assert_eq!(info.release, "6.1.0-9");
        assert_eq!(info.depends, ["mbcache", "jbd2"]);
        assert_eq!(info.load_before, ["crc32c", "x_y"]);
    }

    #[test]
    fn a_module_without_dependencies_has_none() {
        let info = ModuleInfo::parse(&fixture::module("tun", "6.1.0", &[], None)).unwrap();
        assert!(info.depends.is_empty() && info.load_before.is_empty());
    }

    #[test]
    fn names_that_could_leave_the_archive_are_dropped() {
        let object = fixture::module("x", "6.1.0", &["../../init", "a/b", "ok"], None);
        assert_eq!(ModuleInfo::parse(&object).unwrap().depends, ["ok"]);
    }

    #[test]
    fn other_files_say_why() {
        assert_eq!(
            ModuleInfo::parse(b"text").unwrap_err(),
            "it is not an ELF file"
        );
        assert!(
            ModuleInfo::parse(&fixture::program(62, false))
                .unwrap_err()
                .contains("object")
        );
        let object = fixture::module("x", "", &[], None);
        assert!(ModuleInfo::parse(&object).unwrap_err().contains("release"));
    }
}
