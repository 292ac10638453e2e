-- Migrates a task store from version 2 to version 3: what the Cloud Tasks API needs.
BEGIN IMMEDIATE;

ALTER TABLE payloads ADD COLUMN origin TEXT;
ALTER TABLE attempts ADD COLUMN scheduled_usec INTEGER;

CREATE TABLE saved_queues (
    queue TEXT PRIMARY KEY,
    settings TEXT,
    replaced TEXT,
    deleted_until_usec INTEGER,
    purged_usec INTEGER
) WITHOUT ROWID;

CREATE TABLE add_results (
    key TEXT PRIMARY KEY,
    results TEXT NOT NULL,
    expires_usec INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX add_results_expiry ON add_results (expires_usec);

PRAGMA user_version = 3;
COMMIT;
