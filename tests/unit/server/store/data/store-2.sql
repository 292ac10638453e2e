-- A task store of version 2 with a task in each state, as an earlier commit wrote it.
BEGIN;
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
INSERT INTO "attempts" VALUES(1,1,1700000000000000,1200,500,'status 500','default',X'6F6F7073');
INSERT INTO "attempts" VALUES(2,1,1700000000000000,1200,500,'status 500','default',X'6F6F7073');
CREATE TABLE counts (
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (queue, state)
) WITHOUT ROWID;
INSERT INTO "counts" VALUES('default','failed',1);
INSERT INTO "counts" VALUES('default','ready',2);
INSERT INTO "counts" VALUES('default','running',1);
INSERT INTO "counts" VALUES('default','succeeded',1);
INSERT INTO "counts" VALUES('pull','ready',1);
CREATE TABLE paused_queues (
    queue TEXT PRIMARY KEY,
    since_usec INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "paused_queues" VALUES('default',1700000000000000);
CREATE TABLE payloads (
    task_id INTEGER PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    headers TEXT NOT NULL,                  -- JSON: [[name, value], ...]
    body BLOB NOT NULL
);
INSERT INTO "payloads" VALUES(1,'[["X-A", "caf\u00e9"]]',X'00626F6479');
INSERT INTO "payloads" VALUES(2,'[["X-A", "caf\u00e9"]]',X'00626F6479');
INSERT INTO "payloads" VALUES(3,'[["X-A", "caf\u00e9"]]',X'00626F6479');
INSERT INTO "payloads" VALUES(4,'[["X-A", "caf\u00e9"]]',X'00626F6479');
INSERT INTO "payloads" VALUES(5,'[["X-A", "caf\u00e9"]]',X'00626F6479');
INSERT INTO "payloads" VALUES(6,'[["X-A", "caf\u00e9"]]',X'00626F6479');
INSERT INTO "payloads" VALUES(7,'[["X-A", "caf\u00e9"]]',X'00626F6479');
INSERT INTO "payloads" VALUES(8,'[["X-A", "caf\u00e9"]]',X'00626F6479');
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    user_named INTEGER NOT NULL,            -- 1: the app chose the name, so it stays blocked afterwards
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
    claim_token INTEGER,                    -- fences the result of an attempt; set while running
    tag TEXT,                               -- of a pull task
    attempts_before INTEGER NOT NULL DEFAULT 0, -- attempts made before a person had the dead letter retried
    forced INTEGER NOT NULL DEFAULT 0,      -- 1: a person wants it run now, whatever its queue's pause and rate say
    hold TEXT                               -- of a held task: the transaction whose commit lets it go
);
INSERT INTO "tasks" VALUES(1,'default','done',1,'succeeded',1700000000000000,1700000000000000,1700000000000000,1700000000000000,'POST','/work','','{"retry_limit": 3, "age_limit_seconds": null, "min_backoff_seconds": 0.1, "max_backoff_seconds": 3600.0, "max_doublings": 16}',NULL,1,1,500,'App Error',NULL,NULL,0,0,NULL);
INSERT INTO "tasks" VALUES(2,'default','bad',1,'failed',1700000000000000,1700000000000000,1700000000000000,1700000000000000,'POST','/work','','{"retry_limit": 3, "age_limit_seconds": null, "min_backoff_seconds": 0.1, "max_backoff_seconds": 3600.0, "max_doublings": 16}',NULL,1,1,500,'App Error',NULL,NULL,0,0,NULL);
INSERT INTO "tasks" VALUES(3,'default','runs',1,'running',1700000000000000,1700000000000000,NULL,NULL,'POST','/work','','{"retry_limit": 3, "age_limit_seconds": null, "min_backoff_seconds": 0.1, "max_backoff_seconds": 3600.0, "max_doublings": 16}',NULL,0,0,NULL,NULL,2304820980324139102,NULL,0,0,NULL);
INSERT INTO "tasks" VALUES(4,'default','waits',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'POST','/work','','{"retry_limit": 3, "age_limit_seconds": null, "min_backoff_seconds": 0.1, "max_backoff_seconds": 3600.0, "max_doublings": 16}',NULL,0,0,NULL,NULL,NULL,NULL,0,0,NULL);
INSERT INTO "tasks" VALUES(5,'default','later',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'POST','/work','','{"retry_limit": 3, "age_limit_seconds": null, "min_backoff_seconds": 0.1, "max_backoff_seconds": 3600.0, "max_doublings": 16}',NULL,0,0,NULL,NULL,NULL,NULL,0,1,NULL);
INSERT INTO "tasks" VALUES(6,'pull','pulled',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'PULL','/work','',NULL,NULL,0,0,NULL,NULL,NULL,'t',0,0,NULL);
INSERT INTO "tasks" VALUES(7,'default','17000000000000009426',0,'held',3400000000000000,1700000000000000,NULL,NULL,'POST','/work','','{"retry_limit": 3, "age_limit_seconds": null, "min_backoff_seconds": 0.1, "max_backoff_seconds": 3600.0, "max_doublings": 16}',NULL,0,0,NULL,NULL,NULL,NULL,0,0,'committed');
INSERT INTO "tasks" VALUES(8,'default','17000000000000019010',0,'held',1700000000000000,1700000000000000,NULL,NULL,'POST','/work','','{"retry_limit": 3, "age_limit_seconds": null, "min_backoff_seconds": 0.1, "max_backoff_seconds": 3600.0, "max_doublings": 16}',NULL,0,0,NULL,NULL,NULL,NULL,0,0,'lost');
CREATE TABLE tombstones (
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    expires_usec INTEGER NOT NULL,
    PRIMARY KEY (queue, name)
) WITHOUT ROWID;
INSERT INTO "tombstones" VALUES('default','bad',1700777600000000);
INSERT INTO "tombstones" VALUES('default','done',1700777600000000);
INSERT INTO "tombstones" VALUES('default','gone',1700777600000000);
CREATE INDEX tasks_names ON tasks (queue, name);
CREATE INDEX tasks_ready ON tasks (queue, target, eta_usec, id) WHERE state = 'ready' AND method <> 'PULL';
CREATE INDEX tasks_leasable ON tasks (queue, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';
CREATE INDEX tasks_tagged ON tasks (queue, tag, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';
CREATE INDEX tasks_states ON tasks (queue, state, id);
CREATE INDEX tasks_finished ON tasks (finished_usec) WHERE state = 'succeeded';
CREATE INDEX tasks_forced ON tasks (id) WHERE forced = 1 AND state = 'ready';
CREATE INDEX tasks_held ON tasks (hold) WHERE state = 'held';
CREATE INDEX tombstones_expiry ON tombstones (expires_usec);
PRAGMA user_version = 2;
COMMIT;
