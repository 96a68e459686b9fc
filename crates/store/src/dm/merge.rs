//! Many frozen layers as one.

use std::fs::File;

use cowslip_host::Site;
use cowslip_ledger::{LayerRecord, Owner};

use super::devices::check_store;
use crate::exceptions::{CHUNK_SECTORS, Exceptions, merge as merge_stores, store_size};
use crate::layer::{Flat, open_layer, sources};
use crate::{FlattenStats, StoreError};

/// Makes the store of `into`.
pub(super) fn merge(
    site: &Site,
    layers: &[LayerRecord],
    into: &LayerRecord,
) -> Result<(), StoreError> {
    let owner = Owner::Layer(into.id);
    if layers.is_empty() {
        return Err(StoreError::Nothing { owner });
    }
    // All are open before the first is read: whoever removes one meanwhile takes only its name.
    let files: Vec<File> = layers
        .iter()
        .map(|layer| open_layer(site, layer))
        .collect::<Result<_, _>>()?;
    let read: Vec<Exceptions> = layers
        .iter()
        .map(|layer| check_store(site, layer))
        .collect::<Result<_, _>>()?;
    let stores: Vec<(&File, &Exceptions)> = files.iter().zip(&read).collect();
    let length = store_size(into.size.bytes(), CHUNK_SECTORS)?;
    let flat = Flat {
        owner,
        out: site.layout.layer(into.id, into.format),
        sources: sources(site, None, layers),
        size: cowslip_model::ByteSize(length),
    };
    flat.make(site, |out| {
        merge_stores(&stores, out)?;
        out.set_len(length)?;
        Ok(FlattenStats::default())
    })
    .map(drop)
}
