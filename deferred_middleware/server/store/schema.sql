-- The local server's task store, version 6. Times are microseconds since the epoch, durations microseconds.
BEGIN IMMEDIATE;

-- One row for each task, finished ones included. The row changes at every attempt, so it is kept small: if one column
-- changes, SQLite writes the whole row again.
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    user_named INTEGER NOT NULL,            -- 1: the app chose the name, so it stays blocked afterwards
    -- Claims are kept in memory, so a task that is running is 'ready' here. Versions before 5 wrote 'running'.
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
    claim_token INTEGER,                    -- of versions before 5
    tag TEXT,                               -- of a pull task
    attempts_before INTEGER NOT NULL DEFAULT 0, -- attempts made before a person retried the dead letter
    forced INTEGER NOT NULL DEFAULT 0,      -- 1: a person wants it run now, whatever the pause and rate of its queue
    hold TEXT,                              -- of a staged task, whose state is 'held': its transaction
    failure INTEGER,                        -- how its last attempt failed, see the table failures; NULL: it did not
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
CREATE INDEX tasks_failures ON tasks (failure, state, id) WHERE failure IS NOT NULL;

-- The columns that never change and may be large.
CREATE TABLE payloads (
    task_id INTEGER PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    headers TEXT NOT NULL,                  -- JSON: [[name, value], ...]
    body BLOB NOT NULL,
    origin TEXT,                            -- JSON, of a task that the Cloud Tasks API created; NULL: another task
    checksum INTEGER                        -- of what never changes, see upkeep/checksum.py; NULL: an earlier version's
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
    scheduled_usec INTEGER,                 -- the task's ETA when the attempt began; NULL: not known
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

-- What the Cloud Tasks API has made of queues.
CREATE TABLE saved_queues (
    queue TEXT PRIMARY KEY,
    settings TEXT,                          -- JSON: the queue as google.cloud.tasks.v2.Queue; NULL: that of queue.yaml
    replaced TEXT,                          -- JSON: the entry of queue.yaml that the settings, or the deletion, replace
    deleted_until_usec INTEGER,             -- of a deleted queue: until when its name is taken, by the steady clock
    purged_usec INTEGER
) WITHOUT ROWID;

-- The results of adds that a client may repeat under the same key.
CREATE TABLE add_results (
    key TEXT PRIMARY KEY,
    results TEXT NOT NULL,                  -- JSON: [[name, outcome], ...]
    expires_usec INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX add_results_expiry ON add_results (expires_usec);

-- How tasks fail: one row for each type of exception and place in the app's code. The triggers keep the two numbers of
-- tasks, because tasks are changed and deleted in many ways.
CREATE TABLE failures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    exception TEXT NOT NULL,
    message TEXT NOT NULL,                  -- of the last attempt that failed so, as are the next four
    file TEXT NOT NULL,                     -- '': there is no traceback
    line INTEGER NOT NULL,
    function TEXT NOT NULL,
    source TEXT NOT NULL,
    first_usec INTEGER NOT NULL,
    last_usec INTEGER NOT NULL,
    attempts INTEGER NOT NULL,              -- that failed so, since the first one
    dead INTEGER NOT NULL DEFAULT 0,        -- tasks that failed so and are dead letters
    failing INTEGER NOT NULL DEFAULT 0      -- tasks that failed so and will be tried again
);
CREATE INDEX failures_last ON failures (dead + failing > 0, last_usec);

CREATE TRIGGER tasks_failures_changed AFTER UPDATE OF state, failure ON tasks
WHEN (OLD.failure IS NOT NULL OR NEW.failure IS NOT NULL)
    AND (OLD.failure IS NOT NEW.failure OR (OLD.state = 'failed') <> (NEW.state = 'failed'))
BEGIN
    UPDATE failures SET dead = dead - (OLD.state = 'failed'), failing = failing - (OLD.state <> 'failed')
        WHERE id = OLD.failure;
    UPDATE failures SET dead = dead + (NEW.state = 'failed'), failing = failing + (NEW.state <> 'failed')
        WHERE id = NEW.failure;
END;
CREATE TRIGGER tasks_failures_added AFTER INSERT ON tasks WHEN NEW.failure IS NOT NULL
BEGIN
    UPDATE failures SET dead = dead + (NEW.state = 'failed'), failing = failing + (NEW.state <> 'failed')
        WHERE id = NEW.failure;
END;
CREATE TRIGGER tasks_failures_deleted AFTER DELETE ON tasks WHEN OLD.failure IS NOT NULL
BEGIN
    UPDATE failures SET dead = dead - (OLD.state = 'failed'), failing = failing - (OLD.state <> 'failed')
        WHERE id = OLD.failure;
END;

-- What happened in spans of time: of a queue, of a function, and of all queues together, whose name is ''. The number
-- of rows is bounded: see statistics/spans.py.
CREATE TABLE statistics (
    kind TEXT NOT NULL CHECK (kind IN ('queue', 'function')),
    name TEXT NOT NULL,
    seconds INTEGER NOT NULL,               -- how long the span is
    start_usec INTEGER NOT NULL,
    enqueued INTEGER NOT NULL,
    executed INTEGER NOT NULL,              -- attempts, or leases of pull tasks
    failed INTEGER NOT NULL,                -- of the attempts
    dead INTEGER NOT NULL,                  -- of the failed attempts: the task became a dead letter
    waited TEXT NOT NULL,                   -- from the ETA to the begin of the attempt; see statistics/histogram.py
    took TEXT NOT NULL,                     -- the attempts themselves
    PRIMARY KEY (kind, name, seconds, start_usec)
) WITHOUT ROWID;

-- The slowest attempts of each function on each day.
CREATE TABLE slowest_attempts (
    function TEXT NOT NULL,
    day_usec INTEGER NOT NULL,              -- the begin of the day
    task_id INTEGER NOT NULL,
    number INTEGER NOT NULL,                -- of the attempt
    queue TEXT NOT NULL,
    started_usec INTEGER NOT NULL,
    duration_usec INTEGER NOT NULL,
    PRIMARY KEY (function, day_usec, task_id, number)
) WITHOUT ROWID;

PRAGMA user_version = 6;
COMMIT;
