-- Templates of the same image that are run in different ways have the same digest.
CREATE TABLE templates_2 (
    id     TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;
INSERT INTO templates_2 (id, digest, record) SELECT id, digest, record FROM templates;
DROP TABLE templates;
ALTER TABLE templates_2 RENAME TO templates;
CREATE INDEX templates_by_digest ON templates (digest);
