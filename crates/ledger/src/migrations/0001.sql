CREATE TABLE templates (
    id     TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL
) STRICT;

CREATE TABLE template_names (
    name     TEXT PRIMARY KEY,
    template TEXT NOT NULL REFERENCES templates (id) ON DELETE CASCADE
) STRICT;

CREATE TABLE kernels (
    id     TEXT PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL
) STRICT;

CREATE TABLE layers (
    id       TEXT PRIMARY KEY,
    template TEXT NOT NULL REFERENCES templates (id),
    parent   TEXT REFERENCES layers (id),
    record   TEXT NOT NULL
) STRICT;
CREATE INDEX layers_by_parent ON layers (parent);

CREATE TABLE sandboxes (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    kernel     TEXT NOT NULL REFERENCES kernels (id),
    layer      TEXT REFERENCES layers (id),
    next_layer TEXT REFERENCES layers (id),
    record     TEXT NOT NULL
) STRICT;

CREATE TABLE checkpoints (
    id     TEXT PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    kernel TEXT NOT NULL REFERENCES kernels (id),
    layer  TEXT NOT NULL REFERENCES layers (id),
    ready  INTEGER NOT NULL,
    record TEXT NOT NULL
) STRICT;

-- `seq` orders reservations: what is made later never supports what was made earlier.
CREATE TABLE handles (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    owner      TEXT NOT NULL,
    kind       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('reserved', 'held')),
    spec       TEXT NOT NULL,
    identity   TEXT,
    depends_on TEXT NOT NULL,
    boot_id    TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX handles_by_owner ON handles (owner);

CREATE TABLE events (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    record TEXT NOT NULL
) STRICT;
