//! `template export`: a template's image as a tar, or as a container image, without mounting it.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use bytes::Bytes;
use cowslip_host::confine::Allowed;
use cowslip_image::{Cancel, ExportError, ExportJob, ImageConfig, Limits, NoProgress, Platform};
use cowslip_ledger::{LedgerError, Owner, TemplateRecord};
use cowslip_model::TemplateId;
use cowslip_model::api::ExportFormat;
use tokio::sync::mpsc;

use crate::error::EngineError;
use crate::verbs::import::platform_of;
use crate::{Engine, blocking, confinement, to_the_end};

/// Pieces on their way at most, and how large one is, in bytes.
const PIECES: usize = 8;
const PIECE: usize = 256 << 10;
/// What an image is called that was given no name.
const TAG: &str = "latest";

/// What an export gives, piece by piece. After an error there is no more, and what came before is no archive.
pub type Pieces = mpsc::Receiver<Result<Bytes, EngineError>>;

/// Hands pieces over; a reader that is gone ends the export.
struct Sender(mpsc::Sender<Result<Bytes, EngineError>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(piece).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Engine {
    /// Exports a template. Gives the first piece, and what brings the others.
    ///
    /// # Errors
    /// When there is no such template, or its file system cannot be read. Later failures end the pieces.
    pub async fn export(
        self: &Arc<Self>,
        reference: &str,
        format: ExportFormat,
        tag: Option<String>,
    ) -> Result<(Option<Bytes>, Pieces), EngineError> {
        let record = self.find_template(reference)?;
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let engine = Arc::clone(self);
        let told = sender.clone();
        tokio::spawn(async move {
            let verb =
                to_the_end(async move { engine.export_to(record, format, tag, sender).await });
            if let Err(error) = verb.await {
                let _ = told.send(Err(error)).await;
            }
        });
        match pieces.recv().await {
            Some(Err(error)) => Err(error),
            Some(Ok(first)) => Ok((Some(first), pieces)),
            None => Ok((None, pieces)),
        }
    }

    async fn export_to(
        &self,
        record: TemplateRecord,
        format: ExportFormat,
        tag: Option<String>,
        sender: mpsc::Sender<Result<Bytes, EngineError>>,
    ) -> Result<(), EngineError> {
        // An image's layer is written to a file first, since its digest stands before it.
        let id = TemplateId::random().map_err(LedgerError::from)?;
        let _making = self.making(Owner::Template(id));
        let exported = async {
            let (work, _) = self.make_workshop(id).await?;
            let image = self.site.layout.template_image(record.id);
            let allowed = Allowed {
                read: vec![image.clone()],
                write: vec![work.clone()],
            };
            let required = self.config.images.require_confinement;
            let config = config_of(&record)?;
            let name = record
                .names
                .first()
                .map_or_else(|| record.id.to_string(), ToString::to_string);
            let write = move || {
                let job = ExportJob {
                    work_dir: &work,
                    limits: Limits::default(),
                    progress: &NoProgress,
                    cancel: &Cancel::default(),
                };
                let mut to = BufWriter::with_capacity(PIECE, Sender(sender));
                let exported = match format {
                    ExportFormat::Tar => cowslip_image::export_tar(&image, &mut to, &job)?,
                    ExportFormat::OciArchive => {
                        let tag = tag.as_deref().unwrap_or(TAG);
                        cowslip_image::export_oci_archive(&image, &config, tag, &mut to, &job)?
                            .exported
                    }
                };
                to.flush().map_err(|source| ExportError::Write { source })?;
                Ok::<_, ExportError>(exported)
            };
            let done = blocking(move || confinement::run(&allowed, required, write)).await??;
            let done = done.map_err(|source| EngineError::Export { name, source })?;
            for skipped in &done.skipped {
                tracing::warn!(template = %record.id, entry = skipped.entry, why = %skipped.why, "left out of an export");
            }
            Ok(())
        };
        let exported: Result<(), EngineError> = exported.await;
        match (exported, self.unwind_template(id).await) {
            (Ok(()), unwound) => unwound,
            (Err(error), unwound) => Err(error.and_rollback(unwound)),
        }
    }
}

/// How an image says that it is run.
fn config_of(record: &TemplateRecord) -> Result<ImageConfig, EngineError> {
    let given = record.config.clone().unwrap_or_default();
    let platform = match given.platform {
        Some(text) => platform_of(&text)?,
        None => Platform::host(),
    };
    let mut config = ImageConfig::new(platform);
    config.env = given
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    config.entrypoint = given.entrypoint;
    config.cmd = given.cmd;
    config.working_dir = given.workdir;
    config.user = given.user;
    config.exposed_ports = given.exposed_ports;
    config.labels = given.labels;
    config.stop_signal = given.stop_signal;
    Ok(config)
}
