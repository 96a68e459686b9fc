//! `template import` and `template rm`.

use std::cell::Cell;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowslip_host::{Directory, DirectorySpec};
use cowslip_image::{Cancel, Imported, Job, Limits, Owners, Phase, Progress, Sizing};
use cowslip_ledger::{LedgerError, Owner, Synchronous, TemplateRecord};
use cowslip_model::api::ImportMessage;
use cowslip_model::{ByteSize, Name, TemplateId, Timestamp};
use tokio::sync::mpsc;

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::verbs::rebuild::{self, RECORD};
use crate::{Engine, blocking, to_the_end};

/// Where an image comes from.
enum From {
    Directory(PathBuf),
    Tar(Box<dyn Read + Send>),
}

/// Sends progress to a client; a client that is gone cancels the import.
struct Reporter {
    messages: mpsc::Sender<ImportMessage>,
    cancel: Cancel,
    phase: Cell<&'static str>,
    /// When the client was told last.
    told: Cell<Instant>,
}

/// A client is told no more often than this: the import counts every entry.
const TELL_EVERY: Duration = Duration::from_millis(50);

impl Reporter {
    fn send(&self, bytes: u64, entries: u64) {
        let message = ImportMessage::Progress {
            phase: self.phase.get().to_owned(),
            entries,
            bytes,
        };
        // A full channel only means that the client is slower than the import.
        if let Err(mpsc::error::TrySendError::Closed(_)) = self.messages.try_send(message) {
            self.cancel.cancel();
        }
    }
}

impl Progress for Reporter {
    fn phase(&self, phase: Phase, _total: Option<u64>) {
        self.phase.set(match phase {
            Phase::Reading => "reading",
            Phase::Writing => "writing",
            Phase::Sealing => "sealing",
        });
        self.send(0, 0);
    }

    fn advance(&self, bytes: u64, entries: u64) {
        if self.told.get().elapsed() >= TELL_EVERY {
            self.told.set(Instant::now());
            self.send(bytes, entries);
        }
    }
}

impl Engine {
    /// Imports a template from a tar stream: plain, gzip or zstd. Gives the last message.
    ///
    /// # Errors
    /// When the name is taken or the archive is refused; nothing is left then.
    pub async fn import_tar(
        self: &Arc<Self>,
        name: Name,
        reader: impl Read + Send + 'static,
        progress: mpsc::Sender<ImportMessage>,
    ) -> Result<ImportMessage, EngineError> {
        self.import(name, From::Tar(Box::new(reader)), progress)
            .await
    }

    /// Imports a template from a directory on this host.
    ///
    /// # Errors
    /// As for [`Engine::import_tar`].
    pub async fn import_directory(
        self: &Arc<Self>,
        name: Name,
        path: PathBuf,
        progress: mpsc::Sender<ImportMessage>,
    ) -> Result<ImportMessage, EngineError> {
        self.import(name, From::Directory(path), progress).await
    }

    async fn import(
        self: &Arc<Self>,
        name: Name,
        from: From,
        progress: mpsc::Sender<ImportMessage>,
    ) -> Result<ImportMessage, EngineError> {
        self.refuse_taken(&name)?;
        self.refuse_without_space("import")?;
        let engine = Arc::clone(self);
        to_the_end(async move {
            let id = TemplateId::random().map_err(LedgerError::from)?;
            let _making = engine.making(Owner::Template(id));
            match engine.import_as(id, &name, from, progress).await {
                Ok(done) => Ok(done),
                Err(error) => Err(error.and_rollback(engine.unwind_template(id).await)),
            }
        })
        .await
    }

    pub(crate) fn refuse_taken(&self, name: &Name) -> Result<(), EngineError> {
        match self
            .site
            .ledger
            .read(|tx| tx.template_named(name.as_str()))?
        {
            Some(_) => Err(EngineError::Exists {
                kind: "template",
                name: name.clone(),
            }),
            None => Ok(()),
        }
    }

    async fn import_as(
        &self,
        id: TemplateId,
        name: &Name,
        from: From,
        progress: mpsc::Sender<ImportMessage>,
    ) -> Result<ImportMessage, EngineError> {
        let owner = Owner::Template(id);
        let directory = self.site.layout.template(id);
        self.make_directory(
            owner,
            DirectorySpec {
                path: directory.clone(),
                mode: 0o700,
            },
        )
        .await?;
        let work = DirectorySpec {
            path: directory.join("work"),
            mode: 0o700,
        };
        let slot = self
            .site
            .ledger
            .reserve::<Directory>(owner, work.clone(), &[])?;
        let host = Arc::clone(&self.site.host);
        let work_handle = blocking(move || host.make_directory(slot)).await??.settle();

        let source = match &from {
            From::Directory(_) => "directory",
            From::Tar(_) => "tar",
        };
        let image = self.site.layout.template_image(id);
        let imported = blocking(move || {
            let cancel = Cancel::default();
            let reporter = Reporter {
                messages: progress,
                cancel: cancel.clone(),
                phase: Cell::new("reading"),
                told: Cell::new(Instant::now()),
            };
            let job = Job {
                work_dir: &work.path,
                output: &image,
                // The same for all, so that the same content is the same image (R62).
                label: "root",
                limits: Limits::default(),
                sizing: Sizing::default(),
                owners: if cowslip_host::process::is_root() {
                    Owners::Keep
                } else {
                    Owners::SelfIsRoot
                },
                progress: &reporter,
                cancel: &cancel,
            };
            match from {
                From::Directory(path) => cowslip_image::import_directory(&path, &job),
                From::Tar(reader) => cowslip_image::import_tar(reader, &job),
            }
        })
        .await?
        .map_err(|source| EngineError::Import {
            name: name.clone(),
            source,
        })?;
        if let Some(row) = self.site.ledger.read(|tx| tx.handle(work_handle))? {
            self.release_row(row).await?;
        }
        self.publish_template(id, name, source, &imported).await
    }

    /// Publishes an image; the same content under another name becomes one more name (R62).
    pub(crate) async fn publish_template(
        &self,
        id: TemplateId,
        name: &Name,
        source: &str,
        imported: &Imported,
    ) -> Result<ImportMessage, EngineError> {
        let (host, image) = (
            Arc::clone(&self.site.host),
            self.site.layout.template_image(id),
        );
        let head = blocking(move || host.head(&image, 0)).await??;
        let record = TemplateRecord {
            id,
            names: vec![name.clone()],
            digest: imported.digest.to_string(),
            size: ByteSize(imported.size),
            used: ByteSize(imported.used),
            entries: imported.entries,
            source: source.to_owned(),
            stamp: head.map(|head| head.stamp),
            created_at: Timestamp::now(),
        };
        let text = rebuild::encode(&record)?;
        let host = Arc::clone(&self.site.host);
        let manifest = self.site.layout.template(id).join(RECORD);
        blocking(move || host.publish(&manifest, &text)).await??;
        let (record, new, event) =
            self.site
                .ledger
                .write("template: publish", Synchronous::Full, |tx| {
                    if tx.template_named(name.as_str())?.is_some() {
                        return Err(EngineError::Exists {
                            kind: "template",
                            name: name.clone(),
                        });
                    }
                    let same = tx
                        .templates()?
                        .into_iter()
                        .find(|other| other.digest == record.digest);
                    let new = same.is_none();
                    let mut record = same.unwrap_or(record);
                    if !new {
                        record.names.push(name.clone());
                        record.names.sort();
                    }
                    tx.put_template(&record)?;
                    let detail = serde_json::json!({ "digest": record.digest, "new": new });
                    let event = tx.emit("template.imported", record.id, Some(name), detail)?;
                    Ok((record, new, event))
                })?;
        self.announce(event);
        if !new {
            self.unwind_template(id).await?;
        }
        Ok(ImportMessage::Done {
            template: Box::new(self.view_template(&record)?),
            skipped: imported
                .skipped
                .iter()
                .map(|one| format!("{}: {}", one.entry, one.why))
                .collect(),
            new,
        })
    }

    pub(crate) async fn unwind_template(&self, id: TemplateId) -> Result<(), EngineError> {
        let site = self.site.clone();
        Ok(blocking(move || unwind(&site, Owner::Template(id))).await??)
    }

    /// Removes a name of a template, and with the last one the template.
    ///
    /// # Errors
    /// When layers stand on it: they are named (R27).
    pub async fn remove_template(self: &Arc<Self>, reference: &str) -> Result<(), EngineError> {
        let record = self.find_template(reference)?;
        let reference = reference.to_owned();
        let engine = Arc::clone(self);
        to_the_end(async move {
            if record.names.len() > 1 && record.names.iter().any(|name| name.as_str() == reference)
            {
                return engine
                    .site
                    .ledger
                    .write("template: untag", Synchronous::Normal, |tx| {
                        let mut left = record.clone();
                        left.names.retain(|name| name.as_str() != reference);
                        tx.put_template(&left).map_err(EngineError::from)
                    });
            }
            let event =
                engine
                    .site
                    .ledger
                    .write("template: delete", Synchronous::Normal, |tx| {
                        let users = users_of(tx, &record)?;
                        if !users.is_empty() {
                            return Err(EngineError::InUse {
                                kind: "template",
                                name: reference.clone(),
                                users,
                                hint: "remove those first",
                            });
                        }
                        tx.delete_template(record.id)?;
                        let detail = serde_json::json!({ "digest": record.digest });
                        Ok(tx.emit("template.removed", record.id, record.names.first(), detail)?)
                    })?;
            engine.announce(event);
            // What does not go here has no owner any more: gc and recovery find it.
            engine.unwind_template(record.id).await
        })
        .await
    }
}

/// Sandboxes and checkpoints on a template, in words.
fn users_of(
    tx: &cowslip_ledger::Tx<'_>,
    template: &TemplateRecord,
) -> Result<Vec<String>, EngineError> {
    let mut users: Vec<String> = tx
        .sandboxes()?
        .iter()
        .filter(|sandbox| sandbox.spec.template == template.id)
        .map(|sandbox| format!("sandbox \"{}\"", sandbox.name))
        .collect();
    users.extend(
        tx.checkpoints()?
            .iter()
            .filter(|checkpoint| checkpoint.spec.template == template.id)
            .map(|checkpoint| format!("checkpoint \"{}\"", checkpoint.name)),
    );
    if users.is_empty()
        && tx
            .layers()?
            .iter()
            .any(|layer| layer.template == template.id)
    {
        users.push("layers that are being released".to_owned());
    }
    Ok(users)
}
