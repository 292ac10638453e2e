-- Migrates a task store from version 1 to version 2. A table's constraints can't be changed, so the table is copied.
BEGIN IMMEDIATE;

CREATE TABLE tasks_2 (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    user_named INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('held', 'ready', 'running', 'succeeded', 'failed')),
    eta_usec INTEGER NOT NULL,
    created_usec INTEGER NOT NULL,
    first_attempt_usec INTEGER,
    finished_usec INTEGER,
    method TEXT NOT NULL,
    url TEXT NOT NULL,
    target TEXT NOT NULL,
    retry TEXT,
    dispatch_deadline_usec INTEGER,
    retry_count INTEGER NOT NULL DEFAULT 0,
    execution_count INTEGER NOT NULL DEFAULT 0,
    previous_response INTEGER,
    retry_reason TEXT,
    claim_token INTEGER,
    tag TEXT,
    attempts_before INTEGER NOT NULL DEFAULT 0,
    forced INTEGER NOT NULL DEFAULT 0,
    hold TEXT
);
INSERT INTO tasks_2 (id, queue, name, user_named, state, eta_usec, created_usec, first_attempt_usec, finished_usec,
        method, url, target, retry, dispatch_deadline_usec, retry_count, execution_count, previous_response,
        retry_reason, claim_token)
    SELECT id, queue, name, user_named, state, eta_usec, created_usec, first_attempt_usec, finished_usec,
        method, url, target, retry, dispatch_deadline_usec, retry_count, execution_count, previous_response,
        retry_reason, claim_token
    FROM tasks;
DROP TABLE tasks;
ALTER TABLE tasks_2 RENAME TO tasks;

CREATE INDEX tasks_names ON tasks (queue, name);
CREATE INDEX tasks_ready ON tasks (queue, target, eta_usec, id) WHERE state = 'ready' AND method <> 'PULL';
CREATE INDEX tasks_leasable ON tasks (queue, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';
CREATE INDEX tasks_tagged ON tasks (queue, tag, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';
CREATE INDEX tasks_states ON tasks (queue, state, id);
CREATE INDEX tasks_finished ON tasks (finished_usec) WHERE state = 'succeeded';
CREATE INDEX tasks_forced ON tasks (id) WHERE forced = 1 AND state = 'ready';
CREATE INDEX tasks_held ON tasks (hold) WHERE state = 'held';

-- In version 1, the row of a finished task blocked its name. In version 2, a tombstone does, for nine days.
INSERT OR IGNORE INTO tombstones
    SELECT queue, name, finished_usec + 9 * 86400 * 1000000 FROM tasks
    WHERE user_named AND state IN ('succeeded', 'failed');

CREATE TABLE counts (
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (queue, state)
) WITHOUT ROWID;
INSERT INTO counts SELECT queue, state, count(*) FROM tasks GROUP BY queue, state;

CREATE TABLE paused_queues (
    queue TEXT PRIMARY KEY,
    since_usec INTEGER NOT NULL
) WITHOUT ROWID;

PRAGMA user_version = 2;
COMMIT;
