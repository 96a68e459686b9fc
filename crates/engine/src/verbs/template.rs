//! Templates: how an image becomes one, and how one goes.

use std::sync::Arc;

use cowslip_image::Imported;
use cowslip_ledger::{Owner, Synchronous, TemplateRecord, Tx};
use cowslip_model::api::ImportMessage;
use cowslip_model::{ByteSize, ImageConfig, Name, TemplateId, Timestamp};

use crate::error::EngineError;
use crate::unwind::unwind;
use crate::verbs::rebuild::{self, RECORD};
use crate::{Engine, blocking, to_the_end};

/// Where a template's image comes from, and what that says of it.
#[derive(Debug)]
pub(crate) struct Provenance {
    /// For the user.
    pub(crate) source: String,
    /// How it is run.
    pub(crate) config: Option<ImageConfig>,
    /// See [`TemplateRecord::layers`].
    pub(crate) layers: Option<String>,
}

impl Engine {
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

    /// Publishes an image; the same content under another name becomes one more name (R62).
    pub(crate) async fn publish_template(
        &self,
        id: TemplateId,
        name: &Name,
        origin: Provenance,
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
            source: origin.source,
            config: origin.config,
            layers: origin.layers,
            stamp: head.map(|head| head.stamp),
            created_at: Timestamp::now(),
        };
        let text = rebuild::encode(&record)?;
        let host = Arc::clone(&self.site.host);
        let manifest = self.site.layout.template(id).join(RECORD);
        blocking(move || host.publish(&manifest, &text)).await??;
        let (record, new) = self.publish_name(name, |tx| {
            let same = tx
                .templates()?
                .into_iter()
                .find(|other| other.digest == record.digest && other.config == record.config);
            Ok(same.unwrap_or(record))
        })?;
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

    /// Gives a template a name, in one transaction with the look for it. Tells whether it is a new one.
    pub(crate) fn publish_name(
        &self,
        name: &Name,
        template: impl FnOnce(&mut Tx<'_>) -> Result<TemplateRecord, EngineError>,
    ) -> Result<(TemplateRecord, bool), EngineError> {
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
                    let mut record = template(tx)?;
                    let new = tx.template(record.id)?.is_none();
                    if !record.names.contains(name) {
                        record.names.push(name.clone());
                        record.names.sort();
                    }
                    tx.put_template(&record)?;
                    let detail = serde_json::json!({ "digest": record.digest, "new": new });
                    let event = tx.emit("template.imported", record.id, Some(name), detail)?;
                    Ok((record, new, event))
                })?;
        self.announce(event);
        Ok((record, new))
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
            let event =
                engine
                    .site
                    .ledger
                    .write("template: delete", Synchronous::Normal, |tx| {
                        // Names may have come or gone since it was looked up.
                        let Some(mut record) = tx.template(record.id)? else {
                            return Ok(None);
                        };
                        let is_name = |name: &Name| name.as_str() == reference;
                        if record.names.len() > 1 && record.names.iter().any(is_name) {
                            record.names.retain(|name| !is_name(name));
                            tx.put_template(&record)?;
                            return Ok(None);
                        }
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
                        let name = record.names.first();
                        Ok(Some(tx.emit(
                            "template.removed",
                            record.id,
                            name,
                            detail,
                        )?))
                    })?;
            // Another of its names went, or somebody was faster.
            let Some(event) = event else { return Ok(()) };
            engine.announce(event);
            // What does not go here has no owner any more: gc and recovery find it.
            engine.unwind_template(record.id).await
        })
        .await
    }
}

/// Sandboxes and checkpoints on a template, in words.
fn users_of(tx: &Tx<'_>, template: &TemplateRecord) -> Result<Vec<String>, EngineError> {
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
