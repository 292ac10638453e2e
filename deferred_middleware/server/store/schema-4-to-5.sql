-- Migrates a task store from version 4 to version 5: the attempts of first successes are in the tasks' rows.
BEGIN IMMEDIATE;

ALTER TABLE tasks ADD COLUMN first_duration_usec INTEGER;
ALTER TABLE tasks ADD COLUMN first_service TEXT;
ALTER TABLE tasks ADD COLUMN first_excerpt BLOB;

PRAGMA user_version = 5;
COMMIT;
