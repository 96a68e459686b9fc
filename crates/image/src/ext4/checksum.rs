//! crc32c as ext4 uses it: without the final inversion, chained through a seed.

/// The checksum seed of a file system.
pub(super) fn file_system_seed(uuid: &[u8; 16]) -> u32 {
    crc32c(!0, uuid)
}

/// The seed for what belongs to one inode. What is written here has generation 0.
pub(super) fn inode_seed(file_system: u32, ino: u32, generation: u32) -> u32 {
    let number = crc32c(file_system, &ino.to_le_bytes());
    crc32c(number, &generation.to_le_bytes())
}

/// Continues a checksum over more bytes.
pub(super) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !::crc32c::crc32c_append(!seed, bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_crc32c() {
        assert_eq!(!super::crc32c(!0, b"123456789"), 0xe306_9283);
    }
}
