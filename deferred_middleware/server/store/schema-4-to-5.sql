-- Migrates a task store from version 4 to version 5: checksums of tasks. Tasks of earlier versions have none.
BEGIN IMMEDIATE;

ALTER TABLE payloads ADD COLUMN checksum INTEGER;

PRAGMA user_version = 5;
COMMIT;
