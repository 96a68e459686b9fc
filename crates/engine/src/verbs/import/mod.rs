//! `template import`: a root file system, or an image of layers, becomes a template.
//!
//! ```text
//!   directory, tar ─────────────────────────────────────┐
//!   image: documents read and checked ─┬─ layers new ───┴─ import ─ record.json ─ publish
//!                                      │   (those that a template has are read from it)
//!                                      └─ a template has these layers: one more name of it   (R62)
//! ```

mod progress;
mod pull;
mod source;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowslip_host::confine::Allowed;
use cowslip_host::{Directory, DirectorySpec};
use cowslip_image::{
    Base, Cancel, Image, ImportError, Imported, Job, Limits, Owners, Platform, Sizing,
};
use cowslip_ledger::{LedgerError, Owner, TemplateRecord};
use cowslip_model::api::{ImportMessage, ImportOptions};
use cowslip_model::{HandleId, ImageConfig, Name, TemplateId};
use tokio::sync::mpsc;

use crate::confinement;
use crate::error::EngineError;
use crate::verbs::create::DISK_MAX;
use crate::verbs::template::Provenance;
use crate::{Engine, blocking, to_the_end};
use progress::Reporter;
pub use pull::RegistryImage;
pub(crate) use source::LayersKey;
pub use source::{Local, Source};
use source::{Opened, content_of};

/// What an import works with. It goes from thread to thread with the work.
struct Workshop {
    /// Private, for what is left over in the end.
    work: PathBuf,
    output: PathBuf,
    platform: Platform,
    sizing: Sizing,
    reporter: Reporter,
    cancel: Cancel,
}

impl Workshop {
    fn job(&self) -> Job<'_> {
        Job {
            work_dir: &self.work,
            output: &self.output,
            // The same for all, so that the same content is the same image (R62).
            label: "root",
            limits: Limits::default(),
            sizing: self.sizing,
            owners: if cowslip_host::process::is_root() {
                Owners::Keep
            } else {
                Owners::SelfIsRoot
            },
            progress: &self.reporter,
            cancel: &self.cancel,
        }
    }
}

/// What is made of a source, checked.
struct Options {
    platform: Platform,
    sizing: Sizing,
    entrypoint: Option<Vec<String>>,
}

impl Options {
    fn check(options: ImportOptions) -> Result<Self, EngineError> {
        let ImportOptions {
            size,
            platform,
            entrypoint,
        } = options;
        let platform = match platform {
            None => Platform::host(),
            Some(text) => platform_of(&text)?,
        };
        if platform.os() != "linux" {
            return Err(EngineError::Invalid(format!(
                "the platform {platform} cannot be used: sandboxes run linux only"
            )));
        }
        if let Some(size) = size.filter(|size| size.bytes() > DISK_MAX) {
            return Err(EngineError::Invalid(format!(
                "a disk of {size}: give at most {}",
                cowslip_model::ByteSize(DISK_MAX)
            )));
        }
        if entrypoint.iter().flatten().any(|word| word.contains('\0')) {
            return Err(EngineError::Invalid(
                "a word of the entrypoint has a NUL".to_owned(),
            ));
        }
        let mut sizing = Sizing::default();
        if let Some(size) = size {
            sizing.min_bytes = size.bytes();
        }
        Ok(Self {
            platform,
            sizing,
            entrypoint,
        })
    }

    /// What is kept of what the source says about itself.
    fn config(&self, said: Option<ImageConfig>) -> Option<ImageConfig> {
        let Some(entrypoint) = &self.entrypoint else {
            return said;
        };
        let mut config = said.unwrap_or_default();
        config.entrypoint.clone_from(entrypoint);
        // They are arguments of the program that is replaced.
        config.cmd.clear();
        Some(config)
    }
}

/// Reads a platform's words.
pub(crate) fn platform_of(text: &str) -> Result<Platform, EngineError> {
    text.parse().map_err(|error| {
        EngineError::Invalid(format!("the platform \"{text}\" cannot be used: {error}"))
    })
}

impl Engine {
    /// Imports a template. Gives the last message.
    ///
    /// # Errors
    /// When the name is taken or the source is refused; nothing is left then.
    pub async fn import(
        self: &Arc<Self>,
        name: Name,
        source: Source,
        options: ImportOptions,
        progress: mpsc::Sender<ImportMessage>,
    ) -> Result<ImportMessage, EngineError> {
        let options = Options::check(options)?;
        self.refuse_taken(&name)?;
        self.refuse_without_space("import")?;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let id = TemplateId::random().map_err(LedgerError::from)?;
            let _making = engine.making(Owner::Template(id));
            let made = engine.import_as(id, &name, source, options, progress);
            match made.await {
                Ok(done) => Ok(done),
                Err(error) => Err(error.and_rollback(engine.unwind_template(id).await)),
            }
        })
        .await
    }

    async fn import_as(
        &self,
        id: TemplateId,
        name: &Name,
        source: Source,
        options: Options,
        progress: mpsc::Sender<ImportMessage>,
    ) -> Result<ImportMessage, EngineError> {
        let failed = |source| EngineError::Import {
            name: name.clone(),
            source,
        };
        let (work, scratch) = self.make_workshop(id).await?;
        let told = progress.clone();
        let cancel = Cancel::default();
        let workshop = Workshop {
            work,
            output: self.site.layout.template_image(id),
            platform: options.platform.clone(),
            sizing: options.sizing,
            reporter: Reporter::new(progress, cancel.clone()),
            cancel,
        };
        let words = source.words();
        let mut allowed = Allowed {
            read: Vec::new(),
            write: vec![self.site.layout.template(id)],
        };
        let (opened, base, workshop, lease) = match source {
            Source::Registry(image) => {
                let pull = self.pull(&image, &options.platform, told.clone());
                let (pulled, base) = pull.await?;
                allowed.read.push(self.site.layout.images());
                (
                    Opened::Image(Box::new(pulled.image)),
                    base,
                    workshop,
                    Some(pulled.lease),
                )
            }
            Source::Local(local) => {
                // Of what is not there, the import's own error tells.
                let path = local.path().filter(|path| path.exists());
                allowed.read.extend(path.map(Path::to_owned));
                let opening = self.confined(&allowed, move || (local.open(&workshop), workshop));
                let (opened, workshop) = opening.await?;
                let opened = opened.map_err(failed)?;
                let base = match &opened {
                    Opened::Image(image) => self.template_below(image),
                    Opened::Directory(_) | Opened::Tar(_) => None,
                };
                (opened, base, workshop, None)
            }
        };
        let config = options.config(opened.config());
        let key = opened.layers_key(options.sizing);
        // Another import of these layers that is under way is waited for: then they are there (R62).
        let _one = match key {
            Some(key) => tokio::select! {
                one = self.importing.lock(key) => Some(one),
                () = told.closed() => return Err(failed(ImportError::Cancelled)),
            },
            None => None,
        };
        if let Some(done) = self.name_what_is_there(name, key, config.as_ref())? {
            self.unwind_template(id).await?;
            return Ok(done);
        }
        let imported = self.confined(&allowed, move || {
            opened.import(base.as_ref(), &workshop.job())
        });
        let imported: Imported = match imported.await? {
            Ok(imported) => imported,
            Err(error) => {
                if let (ImportError::Layer { .. }, Some(lease)) = (&error, lease) {
                    // The next pull gets anew what is not what it was when it was downloaded.
                    let _ = blocking(move || lease.discard_damaged())
                        .await?
                        .inspect_err(|error| tracing::warn!(%error, "look for damaged blobs"));
                }
                return Err(failed(error));
            }
        };
        // Others may have the room now.
        drop(lease);
        if let Err(error) = self.collect_blobs(false).await {
            tracing::warn!(%error, "the cache of images keeps more than it may");
        }
        if let Some(row) = self.site.ledger.read(|tx| tx.handle(scratch))? {
            self.release_row(row).await?;
        }
        let origin = Provenance {
            source: words,
            config,
            layers: key.map(|key| key.to_string()),
        };
        self.publish_template(id, name, origin, &imported).await
    }

    /// Runs blocking work where it may touch nothing of the host but what is allowed, nor any network.
    async fn confined<T: Send + 'static>(
        &self,
        allowed: &Allowed,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let required = self.config.images.require_confinement;
        let allowed = allowed.clone();
        blocking(move || confinement::run(&allowed, required, work)).await?
    }

    /// The directory of a template to be, and one in it to work in.
    pub(crate) async fn make_workshop(
        &self,
        id: TemplateId,
    ) -> Result<(PathBuf, HandleId), EngineError> {
        let owner = Owner::Template(id);
        let path = self.site.layout.template(id);
        let work = DirectorySpec {
            path: path.join("work"),
            mode: 0o700,
        };
        self.make_directory(owner, DirectorySpec { path, mode: 0o700 })
            .await?;
        let reserve = self
            .site
            .ledger
            .reserve::<Directory>(owner, work.clone(), &[]);
        let (slot, host) = (reserve?, Arc::clone(&self.site.host));
        let scratch = blocking(move || host.make_directory(slot)).await??.settle();
        Ok((work.path, scratch))
    }

    /// The template that has the most of an image's layers, from the lowest on, and no others. It is open: it may be
    /// removed while it is read.
    fn template_below(&self, image: &Image) -> Option<Base> {
        let templates = self.site.ledger.read(|tx| tx.templates());
        let templates = templates
            .inspect_err(
                |error| tracing::warn!(%error, "look for a template with the lower layers"),
            )
            .ok()?;
        let by_content: HashMap<&str, TemplateId> = templates
            .iter()
            .filter_map(|one| Some((content_of(one.layers.as_ref()?), one.id)))
            .collect();
        (1..=image.layers().len()).rev().find_map(|layers| {
            let content = image.content_of_lowest(layers).to_string();
            let id = by_content.get(&*content)?;
            let path = self.site.layout.template_image(*id);
            // One that cannot be opened was just removed, or tells of itself when it is used.
            let file = File::open(&path).ok()?;
            Some(Base { file, path, layers })
        })
    }

    /// Gives the name to a template that has the same layers and is run in the same way.
    fn name_what_is_there(
        &self,
        name: &Name,
        key: Option<LayersKey>,
        config: Option<&ImageConfig>,
    ) -> Result<Option<ImportMessage>, EngineError> {
        let Some(key) = key.map(|key| key.to_string()) else {
            return Ok(None);
        };
        let is_it = |one: &TemplateRecord| {
            one.layers.as_ref() == Some(&key) && one.config.as_ref() == config
        };
        let templates = self.site.ledger.read(|tx| tx.templates())?;
        let Some(found) = templates.into_iter().find(is_it) else {
            return Ok(None);
        };
        let published = self.publish_name(name, |tx| {
            // It may have been removed since.
            tx.template(found.id)?.ok_or_else(|| EngineError::NotFound {
                kind: "template",
                reference: found.id.to_string(),
                near: Vec::new(),
            })
        });
        let (record, new) = match published {
            // It went in between: it is imported like any other.
            Err(EngineError::NotFound { .. }) => return Ok(None),
            published => published?,
        };
        Ok(Some(ImportMessage::Done {
            template: Box::new(self.view_template(&record)?),
            skipped: Vec::new(),
            new,
        }))
    }
}
