-- Migrates a task store from version 2 to version 3.
BEGIN IMMEDIATE;

ALTER TABLE tasks ADD COLUMN first_duration_usec INTEGER;
ALTER TABLE tasks ADD COLUMN first_service TEXT;
ALTER TABLE tasks ADD COLUMN first_excerpt BLOB;

PRAGMA user_version = 3;
COMMIT;
