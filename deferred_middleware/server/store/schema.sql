-- The local server's task store, version 3. Times are microseconds since the epoch, durations microseconds.
BEGIN IMMEDIATE;

-- One row for each task, finished ones included. The row changes at every attempt, so it is kept small: if one column
-- changes, SQLite writes the whole row again.
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    user_named INTEGER NOT NULL,            -- 1: the app chose the name, so it stays blocked afterwards
    -- Claims are kept in memory, so a task that is running is 'ready' here. Version 2 wrote 'running'.
    state TEXT NOT NULL CHECK (state IN ('held', 'ready', 'running', 'succeeded', 'failed')),
    eta_usec INTEGER NOT NULL,              -- of a leased pull task: when the lease ends
    created_usec INTEGER NOT NULL,
    first_attempt_usec INTEGER,
    finished_usec INTEGER,
    method TEXT NOT NULL,                   -- 'PULL': waits to be leased, and is never delivered
    url TEXT NOT NULL,
    target TEXT NOT NULL,                   -- [instance.][version.]service; '' is the default service
    retry TEXT,                             -- the task's own retry policy as JSON; NULL: the queue's
    dispatch_deadline_usec INTEGER,
    retry_count INTEGER NOT NULL DEFAULT 0,
    execution_count INTEGER NOT NULL DEFAULT 0,
    previous_response INTEGER,              -- 0: the last attempt got no response
    retry_reason TEXT,
    claim_token INTEGER,                    -- of version 2
    tag TEXT,                               -- of a pull task
    attempts_before INTEGER NOT NULL DEFAULT 0, -- attempts made before a person retried the dead letter
    forced INTEGER NOT NULL DEFAULT 0,      -- 1: a person wants it run now, whatever the pause and rate of its queue
    hold TEXT,                              -- of a staged task, whose state is 'held': its transaction
    -- Of a task that succeeded at its first attempt: the attempt, which has no row in the table attempts.
    first_duration_usec INTEGER,
    first_service TEXT,
    first_excerpt BLOB
);

-- Not unique, because finished tasks may have the name of a later one. The store looks for the name before it adds.
CREATE INDEX tasks_names ON tasks (queue, name);

-- The only index that claims and searches for the next ETA read. It has no finished tasks.
CREATE INDEX tasks_ready ON tasks (queue, target, eta_usec, id) WHERE state = 'ready' AND method <> 'PULL';

-- The same for leases: without a tag, and by tag.
CREATE INDEX tasks_leasable ON tasks (queue, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';
CREATE INDEX tasks_tagged ON tasks (queue, tag, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';

-- For lists: the tasks of a queue in one state, by age.
CREATE INDEX tasks_states ON tasks (queue, state, id);

-- For pruning: the oldest succeeded tasks first.
CREATE INDEX tasks_finished ON tasks (finished_usec) WHERE state = 'succeeded';

CREATE INDEX tasks_forced ON tasks (id) WHERE forced = 1 AND state = 'ready';
CREATE INDEX tasks_held ON tasks (hold) WHERE state = 'held';

-- The columns that never change and may be large.
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
    excerpt BLOB NOT NULL,                  -- of the response's body
    PRIMARY KEY (task_id, number)
) WITHOUT ROWID;

-- Names that the app chose and can't use again yet.
CREATE TABLE tombstones (
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    expires_usec INTEGER NOT NULL,
    PRIMARY KEY (queue, name)
) WITHOUT ROWID;

CREATE INDEX tombstones_expiry ON tombstones (expires_usec);

-- The number of tasks, changed in the transactions that change the tasks. The row with an empty queue has the stamp of
-- the last durable commit, see upkeep/commit_record.py. In this table, a commit writes no page more for it.
CREATE TABLE counts (
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (queue, state)
) WITHOUT ROWID;

CREATE TABLE paused_queues (
    queue TEXT PRIMARY KEY,
    since_usec INTEGER NOT NULL
) WITHOUT ROWID;

PRAGMA user_version = 3;
COMMIT;
