-- The local server's task store, version 1. Times are microseconds since the epoch, durations microseconds.
BEGIN IMMEDIATE;

-- One row for each task that is waiting, running or remembered. It changes at every attempt, so it is kept small:
-- SQLite writes a whole row anew when one of its columns changes.
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    user_named INTEGER NOT NULL,            -- 1: the app chose the name, so it stays blocked afterwards
    state TEXT NOT NULL CHECK (state IN ('ready', 'running', 'succeeded', 'failed')),
    eta_usec INTEGER NOT NULL,
    created_usec INTEGER NOT NULL,
    first_attempt_usec INTEGER,
    finished_usec INTEGER,
    method TEXT NOT NULL,
    url TEXT NOT NULL,
    target TEXT NOT NULL,                   -- [instance.][version.]service; '' is the default service
    retry TEXT,                             -- the task's own retry policy as JSON; NULL: the queue's
    dispatch_deadline_usec INTEGER,
    retry_count INTEGER NOT NULL DEFAULT 0,
    execution_count INTEGER NOT NULL DEFAULT 0,
    previous_response INTEGER,              -- 0: the last attempt got no response
    retry_reason TEXT,
    claim_token INTEGER,                    -- fences the result of an attempt; set while running
    UNIQUE (queue, name)
);

-- Claims and "what is due next" read only this one; finished tasks aren't in it.
CREATE INDEX tasks_ready ON tasks (queue, target, eta_usec, id) WHERE state = 'ready';

-- History: the oldest finished tasks first.
CREATE INDEX tasks_finished ON tasks (state, finished_usec) WHERE finished_usec IS NOT NULL;

-- What never changes and may be large.
CREATE TABLE payloads (
    task_id INTEGER PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    headers TEXT NOT NULL,                  -- JSON: [[name, value], ...]
    body BLOB NOT NULL
);

CREATE TABLE attempts (
    task_id INTEGER NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,                -- from 1
    started_usec INTEGER NOT NULL,
    duration_usec INTEGER NOT NULL,
    status INTEGER,                         -- NULL: no HTTP response
    reason TEXT,
    service TEXT NOT NULL,
    excerpt BLOB NOT NULL,                  -- the beginning of the response's body
    PRIMARY KEY (task_id, number)
) WITHOUT ROWID;

-- Names that the app used for tasks whose row is gone, and that it can't use again yet.
CREATE TABLE tombstones (
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    expires_usec INTEGER NOT NULL,
    PRIMARY KEY (queue, name)
) WITHOUT ROWID;

CREATE INDEX tombstones_expiry ON tombstones (expires_usec);

PRAGMA user_version = 1;
COMMIT;
