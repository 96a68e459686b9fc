//! Modules as distributions pack them: plain, gzip, xz or zstd.

use std::io::Read;
use std::path::Path;

use super::MAX_MODULE;

/// The endings of module files, with what each means.
pub(super) const ENDINGS: &[(&str, Packing)] = &[
    (".ko", Packing::None),
    (".ko.gz", Packing::Gzip),
    (".ko.xz", Packing::Xz),
    (".ko.zst", Packing::Zstd),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    None,
    Gzip,
    Xz,
    Zstd,
}

/// The packing that a file name tells, with the name that is left; nothing for other files.
pub(super) fn split_name(file_name: &str) -> Option<(&str, Packing)> {
    ENDINGS
        .iter()
        .find_map(|(ending, packing)| Some((file_name.strip_suffix(ending)?, *packing)))
}

/// The ELF object of a module's file. What comes out is bounded, whatever goes in.
pub(super) fn unpack(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let (_, packing) = split_name(name).ok_or("its name does not end in .ko")?;
    let object = match packing {
        Packing::None => bytes,
        Packing::Gzip => read(flate2::read::MultiGzDecoder::new(bytes.as_slice()))?,
        Packing::Xz => read(liblzma::read::XzDecoder::new(bytes.as_slice()))?,
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(bytes.as_slice());
            read(decoder.map_err(|error| error.to_string())?)?
        }
    };
    if object.len() as u64 > MAX_MODULE {
        return Err("it is over 64 MiB".to_owned());
    }
    Ok(object)
}

fn read(decoder: impl Read) -> Result<Vec<u8>, String> {
    let mut object = Vec::new();
    decoder
        .take(MAX_MODULE + 1)
        .read_to_end(&mut object)
        .map_err(|error| format!("it does not decompress: {error}"))?;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn packed(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        match packing {
            Packing::None => bytes.to_vec(),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    #[test]
    fn each_packing_is_undone() {
        for (ending, packing) in ENDINGS {
            let path = format!("/m/virtio{ending}");
            let object = unpack(Path::new(&path), packed(*packing, b"an object"));
            assert_eq!(object.as_deref(), Ok(b"an object".as_slice()), "{ending}");
        }
    }

    #[test]
    fn truncated_and_foreign_files_are_refused() {
        for (ending, packing) in &ENDINGS[1..] {
            let path = format!("virtio{ending}");
            let whole = packed(*packing, &[7; 1000]);
            assert!(unpack(Path::new(&path), whole[..whole.len() - 5].to_vec()).is_err());
            assert!(unpack(Path::new(&path), b"no archive".to_vec()).is_err());
        }
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let zeros = vec![0; usize::try_from(MAX_MODULE).unwrap() + 1];
        let bomb = packed(Packing::Zstd, &zeros);
        assert!(bomb.len() < 100_000);
        assert_eq!(
            unpack(Path::new("x.ko.zst"), bomb).unwrap_err(),
            "it is over 64 MiB"
        );
    }
}
