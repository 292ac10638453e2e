-- Migrates a task store from version 5 to version 6: checksums of tasks. Tasks of earlier versions have none.
BEGIN IMMEDIATE;

ALTER TABLE payloads ADD COLUMN checksum INTEGER;

PRAGMA user_version = 6;
COMMIT;
