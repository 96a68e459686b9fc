//! From what a user typed to an object: a name, an id, or the start of an id.

use std::fmt::Display;

use cowslip_ledger::{
    CheckpointRecord, KernelRecord, LedgerError, SandboxRecord, TemplateRecord, Tx,
};

use crate::Engine;
use crate::error::EngineError;

/// Fewer digits than this are no reference.
const PREFIX_MIN: usize = 3;
/// How alike a name must be to be suggested, of 1.
const NEAR: f64 = 0.55;

/// What has a disk.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Sandbox(Box<SandboxRecord>),
    Checkpoint(Box<CheckpointRecord>),
}

/// Something that can be referred to.
trait Referable {
    fn id(&self) -> String;
    fn names(&self) -> Vec<String>;
}

impl Referable for SandboxRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }
    fn names(&self) -> Vec<String> {
        vec![self.name.to_string()]
    }
}

impl Referable for CheckpointRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }
    fn names(&self) -> Vec<String> {
        vec![self.name.to_string()]
    }
}

impl Referable for KernelRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }
    fn names(&self) -> Vec<String> {
        vec![self.name.to_string()]
    }
}

impl Referable for TemplateRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }
    fn names(&self) -> Vec<String> {
        self.names.iter().map(ToString::to_string).collect()
    }
}

fn find<T: Referable>(kind: &'static str, reference: &str, all: Vec<T>) -> Result<T, EngineError> {
    let shown: String = reference.chars().take(80).collect();
    let index = all
        .iter()
        .position(|one| one.names().iter().any(|name| name == reference) || one.id() == reference);
    if let Some(index) = index {
        return all
            .into_iter()
            .nth(index)
            .ok_or_else(|| EngineError::Internal("lookup".to_owned()));
    }
    let digits = reference.len() >= PREFIX_MIN
        && reference
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let (mut starting, others): (Vec<T>, Vec<T>) = all
        .into_iter()
        .partition(|one| digits && one.id().starts_with(reference));
    if starting.len() > 1 {
        let found = starting.iter().map(Referable::id).collect();
        return Err(EngineError::Ambiguous {
            reference: shown,
            found,
        });
    }
    if let Some(one) = starting.pop() {
        return Ok(one);
    }
    let mut near: Vec<(f64, String)> = others
        .iter()
        .flat_map(Referable::names)
        .map(|name| (strsim::jaro_winkler(reference, &name), name))
        .filter(|(likeness, name)| *likeness > NEAR || name.starts_with(reference))
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.truncate(3);
    let near = near.into_iter().map(|(_, name)| name).collect();
    Err(EngineError::NotFound {
        kind,
        reference: shown,
        near,
    })
}

impl Engine {
    fn find_in<T: Referable>(
        &self,
        kind: &'static str,
        reference: impl Display,
        all: impl FnOnce(&Tx<'_>) -> Result<Vec<T>, LedgerError>,
    ) -> Result<T, EngineError> {
        let all = self.site.ledger.read(all)?;
        find(kind, &reference.to_string(), all)
    }

    pub(crate) fn find_sandbox(&self, reference: &str) -> Result<SandboxRecord, EngineError> {
        self.find_in("sandbox", reference, |tx| tx.sandboxes())
    }

    pub(crate) fn find_template(&self, reference: &str) -> Result<TemplateRecord, EngineError> {
        self.find_in("template", reference, |tx| tx.templates())
    }

    pub(crate) fn find_kernel(&self, reference: &str) -> Result<KernelRecord, EngineError> {
        self.find_in("kernel", reference, |tx| tx.kernels())
    }

    /// Only published checkpoints are seen.
    pub(crate) fn find_checkpoint(&self, reference: &str) -> Result<CheckpointRecord, EngineError> {
        self.find_in("checkpoint", reference, |tx| {
            Ok(tx
                .checkpoints()?
                .into_iter()
                .filter(|one| one.ready)
                .collect())
        })
    }

    /// A sandbox or a checkpoint.
    pub(crate) fn find_source(&self, reference: &str) -> Result<Source, EngineError> {
        let sandbox = self.find_sandbox(reference);
        let checkpoint = self.find_checkpoint(reference);
        match (sandbox, checkpoint) {
            (Ok(sandbox), Ok(checkpoint)) => Err(EngineError::Invalid(format!(
                "both a sandbox ({}) and a checkpoint ({}) go by \"{}\": give the id",
                sandbox.id,
                checkpoint.id,
                reference.chars().take(80).collect::<String>()
            ))),
            (Ok(sandbox), Err(_)) => Ok(Source::Sandbox(Box::new(sandbox))),
            (Err(_), Ok(checkpoint)) => Ok(Source::Checkpoint(Box::new(checkpoint))),
            (
                Err(EngineError::NotFound {
                    reference,
                    near: mut all,
                    ..
                }),
                Err(EngineError::NotFound { near, .. }),
            ) => {
                all.extend(near);
                Err(EngineError::NotFound {
                    kind: "sandbox or checkpoint",
                    reference,
                    near: all,
                })
            }
            (Err(EngineError::NotFound { .. }), Err(error)) | (Err(error), _) => Err(error),
        }
    }

    /// The kernel that a request without one gets: the configured one, else the newest.
    pub(crate) fn default_kernel(&self) -> Result<KernelRecord, EngineError> {
        if let Some(name) = &self.config.defaults.kernel {
            return self.find_kernel(name);
        }
        self.site.ledger.read(|tx| tx.kernels())?.pop().ok_or_else(|| {
            EngineError::Invalid(
                "there is no guest kernel: import one with: cowslip kernel import NAME VMLINUZ --modules DIR"
                    .to_owned(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(&'static str, &'static str);
    impl Referable for One {
        fn id(&self) -> String {
            self.0.to_owned()
        }
        fn names(&self) -> Vec<String> {
            vec![self.1.to_owned()]
        }
    }

    fn all() -> Vec<One> {
        vec![
            One("aaa1000000000000", "web"),
            One("aaa2000000000000", "worker"),
            One("bbb0000000000000", "db"),
        ]
    }

    #[test]
    fn names_ids_and_starts_of_ids_are_found() {
        assert_eq!(find("sandbox", "web", all()).unwrap().1, "web");
        assert_eq!(find("sandbox", "bbb", all()).unwrap().1, "db");
        assert_eq!(find("sandbox", "aaa2", all()).unwrap().1, "worker");
        assert!(matches!(
            find("sandbox", "aaa", all()),
            Err(EngineError::Ambiguous { .. })
        ));
        assert!(matches!(
            find("sandbox", "bb", all()),
            Err(EngineError::NotFound { .. })
        ));
    }

    #[test]
    fn the_nearest_names_are_told() {
        let Err(error) = find("sandbox", "wroker", all()) else {
            panic!("found")
        };
        assert_eq!(error.hint().unwrap(), "did you mean \"worker\"?");
    }
}
