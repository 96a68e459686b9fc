//! Recognises a Linux kernel for x86-64 and reads which one it is.
//!
//! Two formats boot: a bzImage (the usual `vmlinuz`; Documentation/arch/x86/boot.rst) and the
//! uncompressed ELF `vmlinux`. The file is judged by its headers and its length; nothing is
//! unpacked or executed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::elf::{self, Elf, ElfError, ReadAt, SizedFile, le16, le32};

/// The largest kernel file that is accepted, in bytes: an unstripped `vmlinux` is under 1 GiB.
pub const MAX_KERNEL: u64 = 1 << 30;

/// What a kernel file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelFormat {
    /// The compressed image with its own unpacker: `vmlinuz`, `bzImage`.
    BzImage,
    /// The uncompressed ELF image: `vmlinux`.
    Elf,
}

/// A kernel file that was found to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    /// Its format.
    pub format: KernelFormat,
    /// Its release, as `uname -r` prints it; modules must be of the same.
    pub release: String,
    /// The whole version text: release, builder, build number and date.
    pub version: String,
    /// Whether an ELF image can be entered by PVH, which QEMU needs to load it. `false` for bzImage,
    /// which does not need it.
    pub pvh: bool,
    /// Length of the file, in bytes.
    pub size: u64,
}

/// Why a kernel file was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It is something else, or damaged.
    #[error(
        "\"{path}\" is not a Linux kernel: {reason}; give a bzImage (vmlinuz) or an ELF vmlinux for x86-64"
    )]
    NotAKernel {
        /// The file as it was named.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// It cannot be read.
    #[error("cannot read kernel \"{path}\"")]
    Io {
        /// The file as it was named.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Recognises the kernel at `path`.
///
/// # Errors
/// When the file cannot be read, is no kernel for x86-64, or is shorter than its header says.
pub fn probe_kernel(path: &Path) -> Result<KernelImage, KernelError> {
    let file = open(path)?;
    probe(path, &file)
}

/// Opens a regular file within the size limit. Checked before the opening, since opening a pipe
/// blocks and opening a device may act on it.
pub(crate) fn open(path: &Path) -> Result<SizedFile, KernelError> {
    let failed = |source| KernelError::Io {
        path: path.to_owned(),
        source,
    };
    let not = |reason: String| KernelError::NotAKernel {
        path: path.to_owned(),
        reason,
    };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(not("it is not a regular file".to_owned()));
    }
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_KERNEL {
        return Err(not(format!(
            "its {size} bytes are more than any kernel has"
        )));
    }
    Ok(SizedFile { file, size })
}

/// Recognises an open kernel; `path` is for messages.
pub(crate) fn probe(path: &Path, file: &SizedFile) -> Result<KernelImage, KernelError> {
    let judged = match bzimage(file) {
        Err(Refusal::OtherFormat) => vmlinux(file),
        judged => judged,
    };
    judged.map_err(|refusal| match refusal {
        Refusal::Io(source) => KernelError::Io {
            path: path.to_owned(),
            source,
        },
        Refusal::Because(reason) => KernelError::NotAKernel {
            path: path.to_owned(),
            reason,
        },
        Refusal::OtherFormat => KernelError::NotAKernel {
            path: path.to_owned(),
            reason: "it has neither a boot protocol header nor an ELF header".to_owned(),
        },
    })
}

enum Refusal {
    OtherFormat,
    Because(String),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The boot protocol's header lies in the first two sectors.
const SETUP_HEADER_END: usize = 0x268;
/// The first boot protocol that says whether the kernel is a 64-bit one.
const MIN_PROTOCOL: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

fn bzimage(file: &SizedFile) -> Result<KernelImage, Refusal> {
    let because = |reason: String| Err(Refusal::Because(reason));
    let mut header = [0; SETUP_HEADER_END];
    if file.size < SETUP_HEADER_END as u64 {
        return Err(Refusal::OtherFormat);
    }
    file.read_at(&mut header, 0)?;
    if le16(&header, 0x1fe) != 0xaa55 || &header[0x202..0x206] != b"HdrS" {
        return Err(Refusal::OtherFormat);
    }
    let protocol = le16(&header, 0x206);
    if protocol < MIN_PROTOCOL {
        let (major, minor) = (protocol >> 8, protocol & 0xff);
        return because(format!(
            "its boot protocol {major}.{minor:02} is older than 2.12"
        ));
    }
    if header[0x211] & LOADED_HIGH == 0 || le16(&header, 0x236) & XLF_KERNEL_64 == 0 {
        return because("it is a kernel for 32-bit processors".to_owned());
    }
    // Zero means four, for the sake of boot loaders older than the field.
    let setup_sectors = if header[0x1f1] == 0 {
        4
    } else {
        u64::from(header[0x1f1])
    };
    let setup = (setup_sectors + 1) * 512;
    let protected_mode = u64::from(le32(&header, 0x1f4)) * 16;
    let promised = setup + protected_mode;
    if file.size < promised {
        let size = file.size;
        return because(format!(
            "it is cut short: {size} bytes of the {promised} it should have"
        ));
    }
    let payload_end = u64::from(le32(&header, 0x248)) + u64::from(le32(&header, 0x24c));
    if payload_end > protected_mode || le32(&header, 0x24c) == 0 {
        return because("its payload lies outside the file".to_owned());
    }
    let version_at = u64::from(le16(&header, 0x20e)) + 0x200;
    if version_at == 0x200 || version_at >= setup {
        return because("its header names no version".to_owned());
    }
    let version = text_at(file, version_at, setup - version_at)?;
    let Some(release) = release_of(&version) else {
        return because("its version is not readable".to_owned());
    };
    Ok(KernelImage {
        format: KernelFormat::BzImage,
        release,
        version,
        pvh: false,
        size: file.size,
    })
}

/// Kernel text lives in the top half of the address space.
const KERNEL_SPACE: u64 = 0xffff_8000_0000_0000;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry of the PVH boot protocol.
const PVH_ENTRY_NOTE: u32 = 18;

fn vmlinux(file: &SizedFile) -> Result<KernelImage, Refusal> {
    let elf = Elf::parse(file).map_err(|error| match error {
        ElfError::NotElf => Refusal::OtherFormat,
        ElfError::Io(error) => Refusal::Io(error),
        other => Refusal::Because(format!("it is {other}")),
    })?;
    let in_kernel_space = elf
        .segments
        .iter()
        .any(|s| s.kind == elf::PT_LOAD && s.address >= KERNEL_SPACE);
    if elf.has_segment(elf::PT_INTERP) || !in_kernel_space {
        return Err(Refusal::Because("it is an ordinary ELF program".to_owned()));
    }
    let pvh = elf.has_note(b"Xen\0", PVH_ENTRY_NOTE).unwrap_or(false);
    let Some((release, version)) = banner(file)? else {
        return Err(Refusal::Because(
            "it is an ELF file without a \"Linux version\"".to_owned(),
        ));
    };
    Ok(KernelImage {
        format: KernelFormat::Elf,
        release,
        version,
        pvh,
        size: file.size,
    })
}

const BANNER: &[u8] = b"Linux version ";
/// Versions are at most a few hundred bytes.
const MAX_VERSION: u64 = 512;

/// Finds `linux_banner`, the text that `/proc/version` prints. Templates of it ("%s version %s") and
/// other mentions do not count: a release must follow.
fn banner(file: &SizedFile) -> Result<Option<(String, String)>, Refusal> {
    const WINDOW: usize = 1 << 20;
    let mut window = vec![0; WINDOW];
    let mut start = 0;
    while start < file.size {
        let length = usize::try_from(file.size - start)
            .unwrap_or(WINDOW)
            .min(WINDOW);
        file.read_at(&mut window[..length], start)?;
        let candidates = window[..length].windows(BANNER.len());
        for (at, _) in candidates.enumerate().filter(|(_, bytes)| *bytes == BANNER) {
            let text_start = start + (at + BANNER.len()) as u64;
            let version = text_at(file, text_start, MAX_VERSION)?;
            if let Some(release) = release_of(&version) {
                return Ok(Some((release, version)));
            }
        }
        if length < WINDOW {
            break;
        }
        // The next window begins early enough to hold a banner that this one cut.
        start += (WINDOW - BANNER.len()) as u64;
    }
    Ok(None)
}

/// The text at `offset`, up to a NUL, a newline or `limit` bytes, in printable ASCII.
fn text_at(file: &SizedFile, offset: u64, limit: u64) -> Result<String, Refusal> {
    let length = limit.min(MAX_VERSION).min(file.size.saturating_sub(offset));
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_at(&mut bytes, offset)?;
    let printable = |byte: &u8| (b' '..=b'~').contains(byte);
    Ok(bytes
        .iter()
        .take_while(|byte| printable(byte))
        .map(|byte| char::from(*byte))
        .collect())
}

/// The first word of a version, if it can be a release: it names a directory of modules, so it must
/// be a plain file name.
fn release_of(version: &str) -> Option<String> {
    let word = version.split(' ').next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    // utsname holds 64 characters and a NUL.
    let valid = (3..=64).contains(&word.len())
        && word.starts_with(|c: char| c.is_ascii_digit())
        && word.contains('.')
        && word.chars().all(plain);
    valid.then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use proptest::prelude::*;

    fn probe_bytes(bytes: &[u8]) -> Result<KernelImage, KernelError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        probe_kernel(file.path())
    }

    fn reason(bytes: &[u8]) -> String {
        match probe_bytes(bytes) {
            Err(KernelError::NotAKernel { reason, .. }) => reason,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_bzimage_is_recognised() {
        let image = probe_bytes(&fixture::bzimage("6.1.0-56-cloud-amd64")).unwrap();
        assert_eq!(image.format, KernelFormat::BzImage);
        assert_eq!(image.release, "6.1.0-56-cloud-amd64");
        assert!(image.version.ends_with("#1 SMP"), "{}", image.version);
    }

    #[test]
    fn a_vmlinux_is_recognised_with_or_without_pvh() {
        for pvh in [false, true] {
            let image = probe_bytes(&fixture::vmlinux("6.12.1-cowslip", pvh)).unwrap();
            assert_eq!((image.format, image.pvh), (KernelFormat::Elf, pvh));
            assert_eq!(image.release, "6.12.1-cowslip");
        }
    }

    #[test]
    fn a_banner_across_two_windows_is_found() {
        let mut bytes = fixture::vmlinux("6.12.1", false);
        let banner = bytes.windows(14).position(|b| b == BANNER).unwrap();
        let text = bytes.split_off(banner);
        bytes.resize((1 << 20) - 5, 0);
        bytes.extend_from_slice(&text);
        assert_eq!(probe_bytes(&bytes).unwrap().release, "6.12.1");
    }

    #[test]
    fn what_is_no_kernel_is_refused_with_its_reason() {
        assert!(reason(b"").contains("neither"));
        assert!(reason(&vec![b'x'; 4096]).contains("neither"));
        assert!(reason(&fs::read("/proc/self/exe").unwrap()).contains("ordinary ELF program"));
        let whole = fixture::bzimage("6.1.0");
        assert!(reason(&whole[..whole.len() - 1]).contains("cut short"));
        let mut old = whole.clone();
        old[0x206..0x208].copy_from_slice(&0x0204_u16.to_le_bytes());
        assert!(reason(&old).contains("boot protocol 2.04"));
        let mut narrow = whole.clone();
        narrow[0x236] = 0;
        assert!(reason(&narrow).contains("32-bit"));
        let mut outside = whole.clone();
        outside[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(reason(&outside).contains("payload"));
        let mut nameless = whole;
        nameless[0x20e..0x210].copy_from_slice(&[0, 0]);
        assert!(reason(&nameless).contains("no version"));
    }

    #[test]
    fn a_release_that_is_no_file_name_is_refused() {
        for version in ["../../etc", "6.1/x", "6.1\u{e9}", "linux", "", "6"] {
            assert_eq!(release_of(version), None, "{version:?}");
        }
        assert_eq!(release_of(&format!("6.{}", "1".repeat(70))), None);
    }

    #[test]
    fn a_directory_and_a_missing_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let error = probe_kernel(dir.path()).unwrap_err();
        assert!(matches!(error, KernelError::NotAKernel { .. }), "{error}");
        let error = probe_kernel(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, KernelError::Io { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn a_flipped_header_never_panics(
            changes in proptest::collection::vec((0x1f1_usize..0x268, any::<u8>()), 1..8),
        ) {
            let mut bytes = fixture::bzimage("6.1.0");
            for (at, value) in changes {
                bytes[at] = value;
            }
            let _ = probe_bytes(&bytes);
        }
    }
}
