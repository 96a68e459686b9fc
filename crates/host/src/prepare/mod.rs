//! `host prepare`: what a host lacks that cowslip needs, made where it can be, and taken back.
//!
//! ```text
//!            look ──► needed? ──► written to prepared.json ──► made
//!            undo ──► taken back as recorded ──► prepared.json goes
//! ```
//!
//! One file a step. A change is on record before it is made, and making it or taking it back twice is as
//! good as once: whatever moment a kill chooses, the next `prepare` or `undo` finishes. Nothing here is a
//! handle: what is prepared belongs to the host, serves every engine, and outlives each of them.
//!
//! It never acts on what it did not record, and never takes back what somebody changed since.

mod cache;
mod error;
mod limits;
mod modules;
mod record;
mod report;
mod roots;

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;

pub use error::PrepareError;
pub use report::{Line, Outcome, Part};
pub use roots::Roots;

use crate::directory::remove_tree;
use crate::error::HostError;
use crate::layout::Layout;
use cache::CacheAttributes;
use limits::Limits;
use modules::Modules;
use record::Record;

/// What a host is looked at for, and given.
trait Step {
    /// Which one it is.
    const PART: Part;
    /// What can be made and taken back, of one object.
    type Change: Clone + PartialEq;

    /// What was recorded of this step.
    fn recorded(record: &mut Record) -> &mut Vec<Self::Change>;

    /// What a change is about. There is one change of each object.
    fn object(&self, change: &Self::Change) -> String;

    /// Looks, and changes nothing.
    fn look(&self) -> Result<Vec<Finding<Self::Change>>, PrepareError>;

    /// Makes a change, whatever part of it was made before.
    fn make(&self, change: &Self::Change) -> Result<(), PrepareError>;

    /// Takes a change back, whatever part of it was made. After an error it can be tried again.
    fn undo(&self, change: &Self::Change) -> Result<TakenBack, PrepareError>;
}

/// What was found of one object.
#[derive(Debug, Clone, PartialEq)]
struct Finding<C> {
    object: String,
    standing: Standing<C>,
    detail: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Standing<C> {
    /// As it should be.
    Ready,
    /// Not, and this would mend it.
    Needed(C),
    /// Not, and nothing here can mend it.
    Impossible,
    /// Of no use on this host.
    Unneeded,
}

/// What became of a change that was to be taken back. Its record goes in every case.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TakenBack {
    /// It is as before.
    Undone(String),
    /// It was so already.
    Gone(String),
    /// It is left as it is, and why.
    Left(String),
}

/// One host, and where what was done to it is kept.
#[derive(Debug, Clone)]
pub struct Preparation {
    roots: Roots,
    layout: Layout,
}

impl Preparation {
    /// For the host that `roots` show, with the record below the run directory of `layout`.
    #[must_use]
    pub fn new(roots: Roots, layout: Layout) -> Self {
        Self { roots, layout }
    }

    /// What is as it should be and what `prepare` would do. Changes nothing, and needs no rights.
    #[must_use]
    pub fn look(&self) -> Vec<Line> {
        let mut lines = look(&self.cache());
        lines.extend(look(&self.modules()));
        lines.extend(look(&self.limits()));
        lines
    }

    /// Makes what is needed. What fails is a line of the report, and the rest is tried.
    ///
    /// # Errors
    /// When the record cannot be read or written: nothing is made that is not on record.
    pub fn prepare(&self) -> Result<Vec<Line>, PrepareError> {
        let _alone = self.alone()?;
        let place = self.layout.host();
        match std::fs::DirBuilder::new().mode(0o700).create(&place) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other.map_err(HostError::path("make the directory", &place))?,
        }
        let mut record = Record::load(&self.layout)?;
        let mut lines = self.make(&self.cache(), &mut record)?;
        lines.extend(self.make(&self.modules(), &mut record)?);
        lines.extend(self.make(&self.limits(), &mut record)?);
        Ok(lines)
    }

    /// Takes back what is on record, last first. What fails is a line of the report and stays on record.
    ///
    /// # Errors
    /// When the record cannot be read or written.
    pub fn undo(&self) -> Result<Vec<Line>, PrepareError> {
        if !self.layout.host().exists() {
            return Ok(Vec::new());
        }
        let _alone = self.alone()?;
        let mut record = Record::load(&self.layout)?;
        // A record that was lost says nothing of them, and what is mounted would be emptied below.
        for cache in self.cache().copies()? {
            if !record.caches.contains(&cache) {
                record.caches.push(cache);
            }
        }
        let mut lines = undo(&self.limits(), &mut record);
        lines.extend(undo(&self.modules(), &mut record));
        lines.extend(undo(&self.cache(), &mut record));
        if record.is_empty() {
            remove_tree(&self.layout.host())?;
        } else {
            record.write(&self.layout)?;
        }
        Ok(lines)
    }

    fn make<S: Step>(&self, step: &S, record: &mut Record) -> Result<Vec<Line>, PrepareError> {
        let findings = match step.look() {
            Ok(findings) => findings,
            Err(error) => return Ok(vec![Line::failed(S::PART, S::PART.as_str(), &error)]),
        };
        let wanted: Vec<S::Change> = findings
            .iter()
            .filter_map(|finding| match &finding.standing {
                Standing::Needed(change) => Some(change.clone()),
                _ => None,
            })
            .collect();
        let named: HashSet<String> = wanted.iter().map(|change| step.object(change)).collect();
        let recorded = S::recorded(record);
        let before = recorded.clone();
        // What was there before this change counts, not before one that somebody undid by hand.
        recorded.retain(|old| !named.contains(&step.object(old)));
        recorded.extend(wanted);
        if *recorded != before {
            record.write(&self.layout)?;
        }
        Ok(findings
            .into_iter()
            .map(|finding| match &finding.standing {
                Standing::Needed(change) => match step.make(change) {
                    Ok(()) => Line::of(S::PART, finding, Outcome::Done),
                    Err(error) => Line::failed(S::PART, &finding.object, &error),
                },
                _ => found(S::PART, finding),
            })
            .collect())
    }

    /// One `prepare` or `undo` at a time; the kernel gives the lock up with the process.
    fn alone(&self) -> Result<File, PrepareError> {
        let run = self.layout.run();
        let lock = File::open(run).map_err(HostError::path("open", run))?;
        lock.lock().map_err(HostError::path("lock", run))?;
        Ok(lock)
    }

    fn cache(&self) -> CacheAttributes<'_> {
        CacheAttributes::new(&self.roots, &self.layout)
    }

    fn modules(&self) -> Modules<'_> {
        Modules::new(&self.roots)
    }

    fn limits(&self) -> Limits<'_> {
        Limits::new(&self.roots)
    }
}

fn look<S: Step>(step: &S) -> Vec<Line> {
    match step.look() {
        Ok(findings) => findings
            .into_iter()
            .map(|finding| found(S::PART, finding))
            .collect(),
        Err(error) => vec![Line::failed(S::PART, S::PART.as_str(), &error)],
    }
}

fn found<C>(part: Part, finding: Finding<C>) -> Line {
    let outcome = match finding.standing {
        Standing::Ready => Outcome::Ready,
        Standing::Needed(_) => Outcome::Needed,
        Standing::Impossible => Outcome::Impossible,
        Standing::Unneeded => Outcome::Unneeded,
    };
    Line::of(part, finding, outcome)
}

fn undo<S: Step>(step: &S, record: &mut Record) -> Vec<Line> {
    let recorded = S::recorded(record);
    let mut lines = Vec::new();
    let mut kept = Vec::new();
    for change in std::mem::take(recorded).into_iter().rev() {
        let object = step.object(&change);
        let (outcome, detail) = match step.undo(&change) {
            Ok(TakenBack::Undone(detail)) => (Outcome::Undone, detail),
            Ok(TakenBack::Gone(detail)) => (Outcome::Gone, detail),
            Ok(TakenBack::Left(detail)) => (Outcome::Left, detail),
            Err(error) => {
                kept.push(change);
                (Outcome::Failed, error.to_string())
            }
        };
        lines.push(Line {
            part: S::PART,
            object,
            outcome,
            detail,
        });
    }
    kept.reverse();
    *recorded = kept;
    lines
}
