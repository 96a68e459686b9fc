//! Images of a machine's memory: whole ones, and those that hold only what changed since another.
//!
//! ```text
//!   checkpoints/<id>/memory          what was saved
//!                    memory.1, .2 …  what that stands on, the newest first: other names of the same files
//!                    memory.whole    all of it, put together for the first restore; good for one boot
//!   sandboxes/<id>/base, base.1 …    what its machine was restored from, or saved to, last
//! ```
//!
//! A file that several images stand on has a name in the directory of each, and goes with the last of them: an
//! image never refers to another checkpoint, and a checkpoint can be removed whatever stands on it.
//!
//! The monitor remembers what was written since its last save, whether anybody knows how that came out. So the
//! record says that there is a base only from the moment a save is known to have come about until the next
//! is begun.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowslip_ledger::{CheckpointRecord, LedgerError, SandboxRecord, Synchronous};
use cowslip_model::SandboxId;
use cowslip_vmm::{Machine, Vmm};

use crate::error::EngineError;
use crate::verbs::boot::Started;
use crate::verbs::checkpoint::MEMORY;
use crate::{Engine, blocking};

/// In a sandbox's directory: the image that its next one may stand on.
const BASE: &str = "base";
/// Beside an image that is not whole: the whole one.
const WHOLE: &str = "memory.whole";

/// What `image` stands on, `number` below it; itself for zero.
fn below(image: &Path, number: u32) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    if number > 0 {
        path.push(format!(".{number}"));
    }
    path.into()
}

/// `image` and the `depth` images that it stands on, the newest first.
pub(crate) fn files(image: &Path, depth: u32) -> Vec<PathBuf> {
    (0..=depth).map(|number| below(image, number)).collect()
}

impl Engine {
    /// Gives what the next image of this machine may stand on names beside that. Gives how many; none where it
    /// has to be whole.
    pub(crate) async fn stand_on_base(
        &self,
        sandbox: &SandboxRecord,
        machine: &Arc<dyn Machine>,
        image: &Path,
    ) -> Option<u32> {
        let depth = sandbox.memory_base.filter(|_| machine.tracks_memory())? + 1;
        if depth > self.config.machine.memory_chain {
            return None;
        }
        let base = self.site.layout.sandbox(sandbox.id).join(BASE);
        let names = files(&base, depth - 1);
        let links = names
            .into_iter()
            .zip(1..)
            .map(|(from, number)| (from, below(image, number)));
        match self.relink(Vec::new(), links.collect()).await {
            Ok(()) => Some(depth),
            Err(error) => {
                tracing::warn!(sandbox = %sandbox.name, %error, "all of the memory is saved: its last image is not there");
                None
            }
        }
    }

    /// Makes `image`, with the `depth` images that it stands on, what the next image of this sandbox may stand
    /// on. Gives what the record is to say.
    pub(crate) async fn keep_base(
        &self,
        sandbox: SandboxId,
        machine: &Arc<dyn Machine>,
        image: &Path,
        depth: u32,
    ) -> Option<u32> {
        let most = self.config.machine.memory_chain;
        if most == 0 || !machine.tracks_memory() {
            return None;
        }
        let base = self.site.layout.sandbox(sandbox).join(BASE);
        let links = files(image, depth).into_iter().zip(files(&base, depth));
        match self
            .relink(files(&base, most.max(depth)), links.collect())
            .await
        {
            Ok(()) => Some(depth),
            Err(error) => {
                tracing::warn!(%sandbox, %error, "the next image will hold all of the memory");
                None
            }
        }
    }

    /// Lets go of what no image of an ended machine can stand on any more.
    pub(crate) async fn drop_base(&self, sandbox: SandboxId) {
        let most = self.config.machine.memory_chain;
        if most == 0 {
            return;
        }
        let base = self.site.layout.sandbox(sandbox).join(BASE);
        if let Err(error) = self.relink(files(&base, most), Vec::new()).await {
            tracing::warn!(%sandbox, %error, "a former image stays in its directory");
        }
    }

    /// What the next image of a machine that was just restored may stand on.
    pub(crate) async fn base_of(&self, sandbox: SandboxId, started: &Started) -> Option<u32> {
        let image = started.image.as_ref()?;
        self.keep_base(sandbox, &started.live.machine, image, 0)
            .await
    }

    async fn relink(
        &self,
        gone: Vec<PathBuf>,
        links: Vec<(PathBuf, PathBuf)>,
    ) -> Result<(), EngineError> {
        let host = Arc::clone(&self.site.host);
        Ok(blocking(move || host.relink(&gone, &links)).await??)
    }

    /// The image to restore a checkpoint from.
    pub(crate) async fn whole_image(
        &self,
        vmm: &Arc<dyn Vmm>,
        checkpoint: &CheckpointRecord,
    ) -> Result<PathBuf, EngineError> {
        let image = self.site.layout.checkpoint(checkpoint.id).join(MEMORY);
        if checkpoint.memory_chain == 0 {
            return Ok(image);
        }
        let _one = self.completing.lock(checkpoint.id).await;
        let whole = image.with_file_name(WHOLE);
        let boot = self.site.host.boot_id();
        let missing = || LedgerError::Missing(format!("checkpoint {}", checkpoint.id));
        let found = self.site.ledger.read(|tx| tx.checkpoint(checkpoint.id))?;
        if found.ok_or_else(missing)?.whole_since.as_ref() == Some(&boot) {
            return Ok(whole);
        }
        // It is not pressed onto the disk: after a power cut what is there may be anything.
        self.relink(vec![whole.clone()], Vec::new()).await?;
        let stands_on = &files(&image, checkpoint.memory_chain)[1..];
        vmm.complete(&image, stands_on, &whole).await?;
        self.site
            .ledger
            .write("fork: whole image", Synchronous::Normal, |tx| {
                let mut record = tx.checkpoint(checkpoint.id)?.ok_or_else(missing)?;
                record.whole_since = Some(boot);
                tx.put_checkpoint(&record)
            })?;
        Ok(whole)
    }

    /// Refuses a checkpoint whose template is another than when it was taken, or whose memory is of another kernel.
    pub(crate) fn refuse_changed(&self, checkpoint: &CheckpointRecord) -> Result<(), EngineError> {
        let (template, kernel) = self.site.ledger.read(|tx| {
            let template = tx.template(checkpoint.spec.template)?;
            let kernel = tx.kernel(checkpoint.spec.kernel)?;
            Ok::<_, LedgerError>((
                template.map(|template| template.digest),
                kernel.map(|kernel| kernel.digest),
            ))
        })?;
        for (what, saved, present) in [
            ("template's image", &checkpoint.template_digest, template),
            ("kernel", &checkpoint.kernel_digest, kernel),
        ] {
            // Where there is no memory, whatever kernel is here boots.
            if let Some(saved) = saved
                && present.as_ref() != Some(saved)
                && (what != "kernel" || !checkpoint.disk_only)
            {
                let present = present.map_or_else(
                    || "is not here".to_owned(),
                    |digest| format!("is sha256:{digest} here"),
                );
                return Err(EngineError::Unsupported(format!(
                    "checkpoint \"{}\" cannot be restored: its {what} was sha256:{saved}, and {present}; import \
                     that again",
                    checkpoint.name
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_the_newest_first() {
        let paths = files(Path::new("/c/memory"), 2);
        let expected = ["/c/memory", "/c/memory.1", "/c/memory.2"];
        assert_eq!(paths, expected.map(PathBuf::from));
    }
}
