//! placeholder until merged
use crate::StoreError;
use cowslip_model::ByteSize;
use std::fs::File;
use std::os::unix::fs::FileExt;
pub const CHUNK_SECTORS: u32 = 8;
pub fn store_size(disk: u64, chunk: u32) -> Result<u64, StoreError> {
    let c = u64::from(chunk) * 512;
    let chunks = disk.div_ceil(c);
    let areas = chunks / (c / 16) + 1;
    (chunks + areas + 1 + 64)
        .checked_mul(c)
        .ok_or(StoreError::Size {
            size: ByteSize(disk),
            why: "too large".into(),
        })
}
pub fn blank_store(chunk: u32) -> Vec<u8> {
    let mut v = vec![0u8; chunk as usize * 1024];
    v[0..4].copy_from_slice(&0x7041_6e53_u32.to_le_bytes());
    v[4] = 1;
    v[8] = 1;
    v[12..16].copy_from_slice(&chunk.to_le_bytes());
    v
}
pub struct Exceptions;
impl Exceptions {
    pub fn read(file: &File, _d: u64) -> Result<Self, String> {
        let mut h = [0; 16];
        file.read_exact_at(&mut h, 0).map_err(|e| e.to_string())?;
        if h[..4] != 0x7041_6e53_u32.to_le_bytes() {
            return Err("is no exception store".into());
        }
        Ok(Self)
    }
}
