//! What can be read and written inside one transaction.

use std::collections::BTreeSet;

use cowslip_model::{
    CheckpointId, HandleId, KernelId, LayerId, Name, SandboxId, TemplateId, Timestamp,
};
use rusqlite::{OptionalExtension, Row, ToSql, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::db::{EVENTS_KEPT, LedgerError};
use crate::handle::{HandleRow, HandleState};
use crate::owner::Owner;
use crate::record::{
    CheckpointRecord, EventRecord, KernelRecord, LayerRecord, SandboxRecord, TemplateRecord,
};

/// An open transaction. It remembers which sandboxes' mirror files it makes out of date.
pub struct Tx<'a> {
    sql: &'a Transaction<'a>,
    changed: BTreeSet<SandboxId>,
    removed: BTreeSet<SandboxId>,
}

fn sqlite(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> LedgerError {
    move |source| LedgerError::Sqlite {
        operation: operation.to_owned(),
        source,
    }
}

fn encode<T: Serialize>(what: &str, value: &T) -> Result<String, LedgerError> {
    serde_json::to_string(value).map_err(|source| LedgerError::Encode {
        what: what.to_owned(),
        source,
    })
}

fn decode<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, LedgerError> {
    serde_json::from_str(text).map_err(|source| LedgerError::Decode {
        what: what.to_owned(),
        source,
    })
}

impl<'a> Tx<'a> {
    pub(crate) fn new(sql: &'a Transaction<'a>) -> Self {
        Self {
            sql,
            changed: BTreeSet::new(),
            removed: BTreeSet::new(),
        }
    }

    pub(crate) fn into_dirty(self) -> (BTreeSet<SandboxId>, BTreeSet<SandboxId>) {
        let changed = self.changed.difference(&self.removed).copied().collect();
        (changed, self.removed)
    }

    fn one<T: DeserializeOwned>(
        &self,
        query: &'static str,
        key: &dyn ToSql,
    ) -> Result<Option<T>, LedgerError> {
        self.sql
            .query_row(query, [key], |row| row.get::<_, String>(0))
            .optional()
            .map_err(sqlite(query))?
            .map(|text| decode(query, &text))
            .transpose()
    }

    pub(crate) fn many<T: DeserializeOwned>(
        &self,
        query: &'static str,
        parameters: &[&dyn ToSql],
    ) -> Result<Vec<T>, LedgerError> {
        let mut statement = self.sql.prepare_cached(query).map_err(sqlite(query))?;
        let rows = statement
            .query_map(parameters, |row| row.get::<_, String>(0))
            .map_err(sqlite(query))?;
        rows.map(|text| decode(query, &text.map_err(sqlite(query))?))
            .collect()
    }

    fn execute(
        &self,
        query: &'static str,
        parameters: &[&dyn ToSql],
    ) -> Result<usize, LedgerError> {
        self.sql
            .prepare_cached(query)
            .and_then(|mut statement| statement.execute(parameters))
            .map_err(sqlite(query))
    }

    // Templates ----------------------------------------------------------------------------

    /// The template with this id.
    ///
    /// # Errors
    /// When the database fails; so for every method here.
    pub fn template(&self, id: TemplateId) -> Result<Option<TemplateRecord>, LedgerError> {
        self.one(
            "SELECT record FROM templates WHERE id = ?1",
            &id.to_string(),
        )
    }

    /// The template that goes by this name.
    pub fn template_named(&self, name: &str) -> Result<Option<TemplateRecord>, LedgerError> {
        self.one(
            "SELECT record FROM templates WHERE id = (SELECT template FROM template_names WHERE name = ?1)",
            &name,
        )
    }

    /// Every template, oldest first.
    pub fn templates(&self) -> Result<Vec<TemplateRecord>, LedgerError> {
        self.many(
            "SELECT record FROM templates ORDER BY record ->> 'created_at', id",
            &[],
        )
    }

    /// Writes a template and its names.
    pub fn put_template(&mut self, record: &TemplateRecord) -> Result<(), LedgerError> {
        let id = record.id.to_string();
        self.execute(
            "INSERT INTO templates (id, digest, record) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET digest = excluded.digest, record = excluded.record",
            &[&id, &record.digest, &encode("a template", record)?],
        )?;
        self.execute("DELETE FROM template_names WHERE template = ?1", &[&id])?;
        for name in &record.names {
            self.execute(
                "INSERT INTO template_names (name, template) VALUES (?1, ?2)",
                &[&name.as_str(), &id],
            )?;
        }
        Ok(())
    }

    /// Deletes a template; refused by the database while a layer stands on it.
    pub fn delete_template(&mut self, id: TemplateId) -> Result<(), LedgerError> {
        self.execute("DELETE FROM templates WHERE id = ?1", &[&id.to_string()])
            .map(drop)
    }

    // Kernels ------------------------------------------------------------------------------

    /// The kernel with this id.
    pub fn kernel(&self, id: KernelId) -> Result<Option<KernelRecord>, LedgerError> {
        self.one("SELECT record FROM kernels WHERE id = ?1", &id.to_string())
    }

    /// The kernel of this name.
    pub fn kernel_named(&self, name: &str) -> Result<Option<KernelRecord>, LedgerError> {
        self.one("SELECT record FROM kernels WHERE name = ?1", &name)
    }

    /// Every kernel, oldest first.
    pub fn kernels(&self) -> Result<Vec<KernelRecord>, LedgerError> {
        self.many(
            "SELECT record FROM kernels ORDER BY record ->> 'created_at', id",
            &[],
        )
    }

    /// Writes a kernel.
    pub fn put_kernel(&mut self, record: &KernelRecord) -> Result<(), LedgerError> {
        self.execute(
            "INSERT INTO kernels (id, name, record) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
            &[
                &record.id.to_string(),
                &record.name.as_str(),
                &encode("a kernel", record)?,
            ],
        )
        .map(drop)
    }

    /// Deletes a kernel; refused by the database while something needs it.
    pub fn delete_kernel(&mut self, id: KernelId) -> Result<(), LedgerError> {
        self.execute("DELETE FROM kernels WHERE id = ?1", &[&id.to_string()])
            .map(drop)
    }

    // Layers -------------------------------------------------------------------------------

    /// The layer with this id.
    pub fn layer(&self, id: LayerId) -> Result<Option<LayerRecord>, LedgerError> {
        self.one("SELECT record FROM layers WHERE id = ?1", &id.to_string())
    }

    /// Every layer.
    pub fn layers(&self) -> Result<Vec<LayerRecord>, LedgerError> {
        self.many("SELECT record FROM layers ORDER BY id", &[])
    }

    /// The layers from the one above the template up to `top`.
    pub fn chain(&self, top: LayerId) -> Result<Vec<LayerRecord>, LedgerError> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(id) = next {
            let layer = self
                .layer(id)?
                .ok_or_else(|| LedgerError::Missing(format!("layer {id}")))?;
            next = layer.parent;
            chain.push(layer);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Layers that no sandbox, no checkpoint and no other layer stands on.
    pub fn unused_layers(&self) -> Result<Vec<LayerRecord>, LedgerError> {
        self.many(
            "SELECT record FROM layers AS l
             WHERE NOT EXISTS (SELECT 1 FROM layers WHERE parent = l.id)
               AND NOT EXISTS (SELECT 1 FROM sandboxes WHERE layer = l.id OR next_layer = l.id)
               AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE layer = l.id)
             ORDER BY id",
            &[],
        )
    }

    /// Writes a layer.
    pub fn put_layer(&mut self, record: &LayerRecord) -> Result<(), LedgerError> {
        self.execute(
            "INSERT INTO layers (id, template, parent, record) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET parent = excluded.parent, record = excluded.record",
            &[
                &record.id.to_string(),
                &record.template.to_string(),
                &record.parent.map(|id| id.to_string()),
                &encode("a layer", record)?,
            ],
        )
        .map(drop)
    }

    /// Deletes a layer; refused by the database while something stands on it.
    pub fn delete_layer(&mut self, id: LayerId) -> Result<(), LedgerError> {
        self.execute("DELETE FROM layers WHERE id = ?1", &[&id.to_string()])
            .map(drop)
    }

    // Sandboxes ----------------------------------------------------------------------------

    /// The sandbox with this id.
    pub fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, LedgerError> {
        self.one(
            "SELECT record FROM sandboxes WHERE id = ?1",
            &id.to_string(),
        )
    }

    /// The sandbox of this name.
    pub fn sandbox_named(&self, name: &Name) -> Result<Option<SandboxRecord>, LedgerError> {
        self.one(
            "SELECT record FROM sandboxes WHERE name = ?1",
            &name.as_str(),
        )
    }

    /// Every sandbox, oldest first.
    pub fn sandboxes(&self) -> Result<Vec<SandboxRecord>, LedgerError> {
        self.many(
            "SELECT record FROM sandboxes ORDER BY record ->> 'created_at', id",
            &[],
        )
    }

    /// Writes a sandbox.
    pub fn put_sandbox(&mut self, record: &SandboxRecord) -> Result<(), LedgerError> {
        self.changed.insert(record.id);
        self.execute(
            "INSERT INTO sandboxes (id, name, kernel, layer, next_layer, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, layer = excluded.layer,
                 next_layer = excluded.next_layer, record = excluded.record",
            &[
                &record.id.to_string(),
                &record.name.as_str(),
                &record.spec.kernel.to_string(),
                &record.layer.map(|id| id.to_string()),
                &record.next_layer.map(|id| id.to_string()),
                &encode("a sandbox", record)?,
            ],
        )
        .map(drop)
    }

    /// Deletes a sandbox and, after the commit, its mirror file.
    pub fn delete_sandbox(&mut self, id: SandboxId) -> Result<(), LedgerError> {
        self.removed.insert(id);
        self.execute("DELETE FROM sandboxes WHERE id = ?1", &[&id.to_string()])
            .map(drop)
    }

    // Checkpoints --------------------------------------------------------------------------

    /// The checkpoint with this id, published or not.
    pub fn checkpoint(&self, id: CheckpointId) -> Result<Option<CheckpointRecord>, LedgerError> {
        self.one(
            "SELECT record FROM checkpoints WHERE id = ?1",
            &id.to_string(),
        )
    }

    /// The checkpoint of this name, published or not.
    pub fn checkpoint_named(&self, name: &Name) -> Result<Option<CheckpointRecord>, LedgerError> {
        self.one(
            "SELECT record FROM checkpoints WHERE name = ?1",
            &name.as_str(),
        )
    }

    /// Every checkpoint, oldest first, published or not.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointRecord>, LedgerError> {
        self.many(
            "SELECT record FROM checkpoints ORDER BY record ->> 'created_at', id",
            &[],
        )
    }

    /// Writes a checkpoint.
    pub fn put_checkpoint(&mut self, record: &CheckpointRecord) -> Result<(), LedgerError> {
        self.execute(
            "INSERT INTO checkpoints (id, name, kernel, layer, ready, record)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, layer = excluded.layer,
                 ready = excluded.ready, record = excluded.record",
            &[
                &record.id.to_string(),
                &record.name.as_str(),
                &record.spec.kernel.to_string(),
                &record.layer.to_string(),
                &record.ready,
                &encode("a checkpoint", record)?,
            ],
        )
        .map(drop)
    }

    /// Deletes a checkpoint.
    pub fn delete_checkpoint(&mut self, id: CheckpointId) -> Result<(), LedgerError> {
        self.execute("DELETE FROM checkpoints WHERE id = ?1", &[&id.to_string()])
            .map(drop)
    }

    // Handles ------------------------------------------------------------------------------

    pub(crate) fn insert_handle(&mut self, row: &HandleRow) -> Result<(), LedgerError> {
        self.mark(row.owner);
        self.execute(
            "INSERT INTO handles (id, owner, kind, state, spec, identity, depends_on, boot_id, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            &[
                &row.id.to_string(),
                &row.owner.to_string(),
                &row.kind,
                &match row.state {
                    HandleState::Reserved => "reserved",
                    HandleState::Held => "held",
                },
                &encode("a handle's spec", &row.spec)?,
                &row.identity.as_ref().map(|value| encode("an identity", value)).transpose()?,
                &encode("dependencies", &row.depends_on)?,
                &row.boot_id,
                &i64::try_from(row.created_at.0).unwrap_or(i64::MAX),
            ],
        )
        .map(drop)
    }

    /// Takes over a handle that a mirror file or the host knows and this database does not.
    pub fn adopt_handle(&mut self, row: &HandleRow) -> Result<(), LedgerError> {
        self.execute("DELETE FROM handles WHERE id = ?1", &[&row.id.to_string()])?;
        self.insert_handle(row)
    }

    pub(crate) fn set_handle_identity(
        &mut self,
        id: HandleId,
        identity: &serde_json::Value,
    ) -> Result<(), LedgerError> {
        let text = encode("an identity", identity)?;
        let changed = self.execute(
            "UPDATE handles SET state = 'held', identity = ?2 WHERE id = ?1",
            &[&id.to_string(), &text],
        )?;
        if changed == 0 {
            return Err(LedgerError::Missing(format!("handle {id}")));
        }
        if let Some(row) = self.handle(id)? {
            self.mark(row.owner);
        }
        Ok(())
    }

    /// What the handle stands on from now on, beside what it stood on before.
    pub fn add_dependencies(&mut self, id: HandleId, more: &[HandleId]) -> Result<(), LedgerError> {
        let mut row = self
            .handle(id)?
            .ok_or_else(|| LedgerError::Missing(format!("handle {id}")))?;
        row.depends_on.extend(
            more.iter()
                .filter(|id| !row.depends_on.contains(id))
                .copied()
                .collect::<Vec<_>>(),
        );
        self.execute(
            "UPDATE handles SET depends_on = ?2 WHERE id = ?1",
            &[&id.to_string(), &encode("dependencies", &row.depends_on)?],
        )?;
        self.mark(row.owner);
        Ok(())
    }

    /// What the handle stands on from now on, and nothing else.
    pub fn set_dependencies(&mut self, id: HandleId, all: &[HandleId]) -> Result<(), LedgerError> {
        let row = self
            .handle(id)?
            .ok_or_else(|| LedgerError::Missing(format!("handle {id}")))?;
        self.execute(
            "UPDATE handles SET depends_on = ?2 WHERE id = ?1",
            &[&id.to_string(), &encode("dependencies", &all)?],
        )?;
        self.mark(row.owner);
        Ok(())
    }

    /// Gives a handle another owner.
    pub fn give_handle(&mut self, row: &HandleRow, to: Owner) -> Result<(), LedgerError> {
        self.execute(
            "UPDATE handles SET owner = ?2 WHERE id = ?1",
            &[&row.id.to_string(), &to.to_string()],
        )?;
        self.mark(row.owner);
        self.mark(to);
        Ok(())
    }

    pub(crate) fn delete_handle(&mut self, row: &HandleRow) -> Result<(), LedgerError> {
        self.mark(row.owner);
        self.execute("DELETE FROM handles WHERE id = ?1", &[&row.id.to_string()])
            .map(drop)
    }

    /// The handle with this id.
    pub fn handle(&self, id: HandleId) -> Result<Option<HandleRow>, LedgerError> {
        Ok(self
            .handles_where("WHERE id = ?1", &[&id.to_string()])?
            .pop())
    }

    /// Every handle of one owner, in the order of reservation.
    pub fn handles_of(&self, owner: Owner) -> Result<Vec<HandleRow>, LedgerError> {
        self.handles_where("WHERE owner = ?1 ORDER BY seq", &[&owner.to_string()])
    }

    /// Every handle, in the order of reservation.
    pub fn handles(&self) -> Result<Vec<HandleRow>, LedgerError> {
        self.handles_where("ORDER BY seq", &[])
    }

    /// Every handle of one kind, in the order of reservation.
    pub fn handles_of_kind(&self, kind: &str) -> Result<Vec<HandleRow>, LedgerError> {
        self.handles_where("WHERE kind = ?1 ORDER BY seq", &[&kind])
    }

    fn handles_where(
        &self,
        clause: &'static str,
        parameters: &[&dyn ToSql],
    ) -> Result<Vec<HandleRow>, LedgerError> {
        let query = format!(
            "SELECT seq, id, owner, kind, state, spec, identity, depends_on, boot_id, created_at
             FROM handles {clause}"
        );
        let mut statement = self
            .sql
            .prepare_cached(&query)
            .map_err(sqlite("read handles"))?;
        let mut rows = statement
            .query(parameters)
            .map_err(sqlite("read handles"))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(sqlite("read handles"))? {
            found.push(handle_from(row)?);
        }
        Ok(found)
    }

    /// A handle of a machine or of a sandbox shows in that sandbox's mirror.
    fn mark(&mut self, owner: Owner) {
        if let Owner::Sandbox(id) | Owner::Machine(id) = owner {
            self.changed.insert(id);
        }
    }

    // Events -------------------------------------------------------------------------------

    /// Records an event and gives its number.
    pub fn emit(
        &mut self,
        kind: &str,
        id: impl ToString,
        name: Option<&Name>,
        detail: serde_json::Value,
    ) -> Result<EventRecord, LedgerError> {
        self.execute("INSERT INTO events (record) VALUES ('')", &[])?;
        let seq = self.sql.last_insert_rowid();
        let event = EventRecord {
            seq,
            at: Timestamp::now(),
            kind: kind.to_owned(),
            id: id.to_string(),
            name: name.map(ToString::to_string),
            detail,
        };
        self.execute(
            "UPDATE events SET record = ?2 WHERE seq = ?1",
            &[&seq, &encode("an event", &event)?],
        )?;
        self.execute(
            "DELETE FROM events WHERE seq <= ?1",
            &[&(seq - EVENTS_KEPT)],
        )?;
        Ok(event)
    }

    /// Events numbered above `after`, at most `limit` of the newest.
    pub fn events(&self, after: i64, limit: u32) -> Result<Vec<EventRecord>, LedgerError> {
        let mut newest: Vec<EventRecord> = self.many(
            "SELECT record FROM events WHERE seq > ?1 ORDER BY seq DESC LIMIT ?2",
            &[&after, &limit],
        )?;
        newest.reverse();
        Ok(newest)
    }
}

fn handle_from(row: &Row<'_>) -> Result<HandleRow, LedgerError> {
    let text = |index: usize| row.get::<_, String>(index).map_err(sqlite("read a handle"));
    let id: HandleId = decode("a handle's id", &format!("{:?}", text(1)?))?;
    let state = match text(4)?.as_str() {
        "held" => HandleState::Held,
        _ => HandleState::Reserved,
    };
    Ok(HandleRow {
        id,
        seq: row.get(0).map_err(sqlite("read a handle"))?,
        owner: decode("a handle's owner", &format!("{:?}", text(2)?))?,
        kind: text(3)?,
        state,
        spec: decode("a handle's spec", &text(5)?)?,
        identity: row
            .get::<_, Option<String>>(6)
            .map_err(sqlite("read a handle"))?
            .map(|text| decode("a handle's identity", &text))
            .transpose()?,
        depends_on: decode("a handle's dependencies", &text(7)?)?,
        boot_id: text(8)?,
        created_at: Timestamp(
            row.get::<_, i64>(9)
                .map_err(sqlite("read a handle"))?
                .try_into()
                .unwrap_or(0),
        ),
    })
}
