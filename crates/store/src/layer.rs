//! What the backends share: the file of a layer, and the checks of what it is made from.

use std::cell::Cell;
use std::fs::File as StdFile;
use std::io::Read;
use std::path::{Path, PathBuf};

use cowslip_host::{Content, File, FileSpec, Head, HostError, Site};
use cowslip_ledger::{LayerRecord, Owner, Synchronous, TemplateRecord};
use cowslip_model::{ByteSize, TemplateId};
use sha2::{Digest, Sha256};

use crate::{FlattenStats, StoreError};

/// Only the engine opens layers; a monitor gets them as descriptors.
const MODE: u32 = 0o600;

/// Runs file work where blocking is allowed. The work runs to its end even if the caller goes away,
/// so a file is never left without its identity recorded.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Stopped { operation }),
        },
    }
}

/// Makes the layer's file as a handle of the layer.
pub(crate) fn make_layer_file(
    site: &Site,
    layer: &LayerRecord,
    content: Content<'_>,
) -> Result<(), StoreError> {
    let path = site.layout.layer(layer.id, layer.format);
    let slot =
        site.ledger
            .reserve::<File>(Owner::Layer(layer.id), FileSpec { path, mode: MODE }, &[])?;
    site.host.make_file(slot, content)?.settle();
    Ok(())
}

/// A flattened disk that is to be made.
pub(crate) struct Flat {
    /// Whose handle it is.
    pub(crate) owner: Owner,
    /// Its file.
    pub(crate) out: PathBuf,
    /// What it is made of, the lowest first.
    pub(crate) sources: Vec<PathBuf>,
    /// Size of the disk.
    pub(crate) size: ByteSize,
}

impl Flat {
    /// Makes it; `write` fills the file.
    pub(crate) fn make(
        self,
        site: &Site,
        write: impl Fn(&StdFile) -> std::io::Result<FlattenStats>,
    ) -> Result<FlattenStats, StoreError> {
        let stats = Cell::new(FlattenStats::default());
        let fill = |file: &StdFile| write(file).map(|done| stats.set(done));
        let content = Content::Merged {
            sources: &self.sources,
            size: self.size.bytes(),
            fill: &fill,
        };
        let spec = FileSpec {
            path: self.out.clone(),
            mode: MODE,
        };
        let slot = site.ledger.reserve::<File>(self.owner, spec, &[])?;
        site.host.make_file(slot, content)?.settle();
        Ok(stats.get())
    }
}

/// The files of a template and of layers, the lowest first.
pub(crate) fn sources(
    site: &Site,
    template: Option<&TemplateRecord>,
    layers: &[LayerRecord],
) -> Vec<PathBuf> {
    let image = template.map(|template| site.layout.template_image(template.id));
    let layers = layers
        .iter()
        .map(|layer| site.layout.layer(layer.id, layer.format));
    image.into_iter().chain(layers).collect()
}

/// Opens the image of a template that was checked.
pub(crate) fn open_template(site: &Site, template: &TemplateRecord) -> Result<StdFile, StoreError> {
    let path = site.layout.template_image(template.id);
    let found = site.host.open(&path)?;
    found.ok_or_else(|| StoreError::Template {
        template: template.id,
        path,
        why: "is gone".to_owned(),
    })
}

/// Opens the file of a layer that was checked.
pub(crate) fn open_layer(site: &Site, layer: &LayerRecord) -> Result<StdFile, StoreError> {
    let path = site.layout.layer(layer.id, layer.format);
    let found = site.host.open(&path)?;
    found.ok_or_else(|| StoreError::Layer {
        layer: layer.id,
        path,
        why: "is gone".to_owned(),
    })
}

/// The template's record, once its image was found to be there as it was imported: of the recorded size,
/// and with the recorded content. That is looked at only where the file is not the one that it was, or
/// was written: nothing of ours does either, a copy of the state directory or a stranger does.
pub(crate) fn check_template(site: &Site, id: TemplateId) -> Result<TemplateRecord, StoreError> {
    let path = site.layout.template_image(id);
    let damaged = |why: String| StoreError::Template {
        template: id,
        path: path.clone(),
        why,
    };
    let mut record = site
        .ledger
        .read(|tx| tx.template(id))?
        .ok_or_else(|| damaged("is not in the ledger".to_owned()))?;
    let head = match head_of(site, &path)? {
        Ok(head) if head.length == record.size.bytes() => head,
        Ok(head) => {
            return Err(damaged(format!(
                "has {} bytes, the ledger says {}",
                head.length,
                record.size.bytes()
            )));
        }
        Err(why) => return Err(damaged(why.to_owned())),
    };
    if record.stamp == Some(head.stamp) {
        return Ok(record);
    }
    let image = open_template(site, &record)?;
    let digest = digest_of(&image).map_err(HostError::path("read", &path))?;
    if digest != record.digest {
        return Err(damaged(format!(
            "was changed since it was imported (its sha256 is {digest} now)"
        )));
    }
    record.stamp = Some(head.stamp);
    site.ledger
        .write("template: known again", Synchronous::Normal, |tx| {
            tx.put_template(&record)
        })?;
    Ok(record)
}

fn digest_of(mut file: &StdFile) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => hasher.update(&buffer[..length]),
        }
    }
    let digest = hasher.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Checks that a whole-disk layer is there with the recorded size.
pub(crate) fn check_whole(site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
    let path = site.layout.layer(layer.id, layer.format);
    let damaged = |why: String| StoreError::Layer {
        layer: layer.id,
        path: path.clone(),
        why,
    };
    match length_of(site, &path)? {
        Ok(length) if length == layer.size.bytes() => Ok(()),
        Ok(length) => Err(damaged(format!(
            "has {length} bytes, the ledger says {}",
            layer.size.bytes()
        ))),
        Err(why) => Err(damaged(why.to_owned())),
    }
}

/// The length of a plain file, or why it is none.
fn head_of(site: &Site, path: &Path) -> Result<Result<Head, &'static str>, StoreError> {
    match site.host.head(path, 0) {
        Ok(Some(head)) => Ok(Ok(head)),
        Ok(None) => Ok(Err("is gone")),
        Err(HostError::Foreign { .. }) => Ok(Err("is not a plain file")),
        Err(error) => Err(error.into()),
    }
}

fn length_of(site: &Site, path: &Path) -> Result<Result<u64, &'static str>, StoreError> {
    Ok(head_of(site, path)?.map(|head| head.length))
}

/// A layer is never smaller than what it stands over.
pub(crate) fn not_smaller(layer: &LayerRecord, below: ByteSize) -> Result<(), StoreError> {
    if layer.size >= below {
        return Ok(());
    }
    Err(StoreError::Size {
        size: layer.size,
        why: format!("smaller than what it stands over: give it at least {below}"),
    })
}

/// Presses a layer and its name onto the disk.
pub(crate) async fn sync_layer(site: &Site, layer: &LayerRecord) -> Result<(), StoreError> {
    let site = site.clone();
    let path = site.layout.layer(layer.id, layer.format);
    blocking("sync a layer", move || {
        site.host.sync(&path)?;
        if let Some(dir) = path.parent() {
            site.host.sync(dir)?;
        }
        Ok(())
    })
    .await
}
