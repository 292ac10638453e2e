BEGIN TRANSACTION;
CREATE TABLE add_results (
    key TEXT PRIMARY KEY,
    results TEXT NOT NULL,                  -- JSON: [[name, outcome], ...]
    expires_usec INTEGER NOT NULL
) WITHOUT ROWID;
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
INSERT INTO "attempts" VALUES(1,1,1700000000000000,1200,500,'status 500','default',X'6F6F7073',NULL);
INSERT INTO "attempts" VALUES(2,1,1700000000000000,1200,500,'status 500','default',X'6F6F7073',NULL);
INSERT INTO "attempts" VALUES(3,1,1700000000000000,1200,500,'status 500','default',X'6F6F7073',NULL);
INSERT INTO "attempts" VALUES(3,2,1700000000000000,1200,500,'status 500','default',X'6F6F7073',NULL);
CREATE TABLE counts (
    queue TEXT NOT NULL,
    state TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (queue, state)
) WITHOUT ROWID;
INSERT INTO "counts" VALUES('','committed',1700000000278119);
INSERT INTO "counts" VALUES('default','failed',1);
INSERT INTO "counts" VALUES('default','ready',7);
INSERT INTO "counts" VALUES('default','succeeded',1);
INSERT INTO "counts" VALUES('other','ready',1);
INSERT INTO "counts" VALUES('pull','ready',2);
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
INSERT INTO "failures" VALUES(1,'44d8e1bffa1ccb098688d680ec64af14','status 500','','',0,'tests.support.sample/note','',1700000000001200,1700000000001200,3,1,1);
CREATE TABLE paused_queues (
    queue TEXT PRIMARY KEY,
    since_usec INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "paused_queues" VALUES('other',1700000000000000);
CREATE TABLE payloads (
    task_id INTEGER PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    headers TEXT NOT NULL,                  -- JSON: [[name, value], ...]
    body BLOB NOT NULL,
    origin TEXT,                            -- JSON, of a task that the Cloud Tasks API created; NULL: another task
    checksum INTEGER                        -- of what never changes, see upkeep/checksum.py; NULL: an earlier version's
);
INSERT INTO "payloads" VALUES(1,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'80059532000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C0866696E69736865649485947D9487942E',NULL,1894110468);
INSERT INTO "payloads" VALUES(2,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'8005952E000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C04646561649485947D9487942E',NULL,3269680462);
INSERT INTO "payloads" VALUES(3,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'8005953B000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C11646561642C20747269656420616761696E9485947D9487942E',NULL,244226940);
INSERT INTO "payloads" VALUES(5,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'80059531000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C0772756E6E696E679485947D9487942E',NULL,228124332);
INSERT INTO "payloads" VALUES(6,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'80059531000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C0777616974696E679485947D9487942E',NULL,2240360209);
INSERT INTO "payloads" VALUES(7,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'8005953F000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C1577616974696E6720666F72206120736572766963659485947D9487942E',NULL,437594387);
INSERT INTO "payloads" VALUES(8,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'80059533000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C097363686564756C65649485947D9487942E',NULL,4291215852);
INSERT INTO "payloads" VALUES(9,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'80059534000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C0A77616E746564206E6F779485947D9487942E',NULL,2401483509);
INSERT INTO "payloads" VALUES(10,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'8005953B000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C11696E2061207061757365642071756575659485947D9487942E',NULL,3726288602);
INSERT INTO "payloads" VALUES(11,'[]',X'70756C6C6564',NULL,3413746147);
INSERT INTO "payloads" VALUES(12,'[]',X'6C6561736564',NULL,3688926933);
INSERT INTO "payloads" VALUES(13,'[]',X'6E6F2063616C6C',NULL,2820838845);
INSERT INTO "payloads" VALUES(14,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'80059535000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C0B6F66206120636F6D6D69749485947D9487942E',NULL,276637843);
INSERT INTO "payloads" VALUES(15,'[["Content-Type", "application/octet-stream"], ["X-Own", "caf\u00c3\u00a9"]]',X'80059536000000000000008C1474657374732E737570706F72742E73616D706C65948C046E6F74659493948C0C6F66206E6F20636F6D6D69749485947D9487942E',NULL,2041803272);
CREATE TABLE saved_queues (
    queue TEXT PRIMARY KEY,
    settings TEXT,                          -- JSON: the queue as google.cloud.tasks.v2.Queue; NULL: that of queue.yaml
    replaced TEXT,                          -- JSON: the entry of queue.yaml that the settings, or the deletion, replace
    deleted_until_usec INTEGER,             -- of a deleted queue: until when its name is taken, by the steady clock
    purged_usec INTEGER
) WITHOUT ROWID;
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
INSERT INTO "slowest_attempts" VALUES('tests.support.sample/note',1699920000000000,1,1,'default',1700000000000000,1200);
INSERT INTO "slowest_attempts" VALUES('tests.support.sample/note',1699920000000000,2,1,'default',1700000000000000,1200);
INSERT INTO "slowest_attempts" VALUES('tests.support.sample/note',1699920000000000,3,1,'default',1700000000000000,1200);
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
INSERT INTO "statistics" VALUES('function','/without-a-name',600,1699999800000000,1,0,0,0,'','');
INSERT INTO "statistics" VALUES('function','/without-a-name',3600,1699999200000000,1,0,0,0,'','');
INSERT INTO "statistics" VALUES('function','/without-a-name',86400,1699920000000000,1,0,0,0,'','');
INSERT INTO "statistics" VALUES('function','tests.support.sample/note',600,1699999800000000,10,4,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('function','tests.support.sample/note',3600,1699999200000000,10,4,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('function','tests.support.sample/note',86400,1699920000000000,10,4,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('queue','',0,-1,0,0,0,0,'','');
INSERT INTO "statistics" VALUES('queue','',0,0,2,0,0,0,'','');
INSERT INTO "statistics" VALUES('queue','',60,1699999980000000,13,5,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('queue','',600,1699999800000000,13,5,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('queue','',3600,1699999200000000,13,5,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('queue','default',60,1699999980000000,10,4,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('queue','default',600,1699999800000000,10,4,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('queue','default',3600,1699999200000000,10,4,3,2,'{"0":4}','{"65":4}');
INSERT INTO "statistics" VALUES('queue','other',60,1699999980000000,1,0,0,0,'','');
INSERT INTO "statistics" VALUES('queue','other',600,1699999800000000,1,0,0,0,'','');
INSERT INTO "statistics" VALUES('queue','other',3600,1699999200000000,1,0,0,0,'','');
INSERT INTO "statistics" VALUES('queue','pull',60,1699999980000000,2,1,0,0,'','');
INSERT INTO "statistics" VALUES('queue','pull',600,1699999800000000,2,1,0,0,'','');
INSERT INTO "statistics" VALUES('queue','pull',3600,1699999200000000,2,1,0,0,'','');
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
INSERT INTO "tasks" VALUES(1,'default','finished',1,'succeeded',0,1700000000000000,1700000000000000,1700000000000000,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,1,1,500,'App Error',NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(2,'default','dead',1,'failed',0,1700000000000000,1700000000000000,1700000000000000,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,1,1,500,'App Error',NULL,NULL,0,0,NULL,1,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(3,'default','dead, tried again',1,'ready',1700000060000000,1700000000000000,1700000000000000,NULL,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,1,1,500,'App Error',NULL,NULL,1,0,NULL,1,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(5,'default','running',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(6,'default','waiting',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'POST','/_cb/deferred/tests.support.sample/note','','{"retry_limit": 3, "age_limit_seconds": 90.0, "min_backoff_seconds": 1.0, "max_backoff_seconds": 3600.0, "max_doublings": 16}',90000000,0,0,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(7,'default','waiting for a service',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'PUT','/_cb/deferred/tests.support.sample/note','background',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(8,'default','scheduled',1,'ready',1700086400000000,1700000000000000,NULL,NULL,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(9,'default','wanted now',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,1,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(10,'other','in a paused queue',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(11,'pull','pulled',1,'ready',1700000000000000,1700000000000000,NULL,NULL,'PULL','','',NULL,NULL,0,0,NULL,NULL,NULL,'a tag',0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(12,'pull','leased',1,'ready',1700000060000000,1700000000000000,1700000000000000,NULL,'PULL','','',NULL,NULL,1,0,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(13,'default','17000000000000005082',0,'ready',1700000000000001,1700000000000000,NULL,NULL,'POST','/without-a-name','',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(14,'default','of a commit',0,'held',1700000000000000,1700000000000000,NULL,NULL,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,0,'the transaction that was committed',NULL,NULL,NULL,NULL);
INSERT INTO "tasks" VALUES(15,'default','of no commit',0,'held',1700000000000000,1700000000000000,NULL,NULL,'POST','/_cb/deferred/tests.support.sample/note','',NULL,NULL,0,0,NULL,NULL,NULL,NULL,0,0,'the transaction that was not',NULL,NULL,NULL,NULL);
CREATE TABLE tombstones (
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    expires_usec INTEGER NOT NULL,
    PRIMARY KEY (queue, name)
) WITHOUT ROWID;
INSERT INTO "tombstones" VALUES('default','finished',1700777600041924);
INSERT INTO "tombstones" VALUES('default','dead',1700777600077752);
INSERT INTO "tombstones" VALUES('default','dead, tried again',1700777600077787);
INSERT INTO "tombstones" VALUES('default','deleted',1700777600141260);
CREATE INDEX tasks_names ON tasks (queue, name);
CREATE INDEX tasks_ready ON tasks (queue, target, eta_usec, id) WHERE state = 'ready' AND method <> 'PULL';
CREATE INDEX tasks_leasable ON tasks (queue, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';
CREATE INDEX tasks_tagged ON tasks (queue, tag, eta_usec, id) WHERE state = 'ready' AND method = 'PULL';
CREATE INDEX tasks_states ON tasks (queue, state, id);
CREATE INDEX tasks_finished ON tasks (finished_usec) WHERE state = 'succeeded';
CREATE INDEX tasks_forced ON tasks (id) WHERE forced = 1 AND state = 'ready';
CREATE INDEX tasks_held ON tasks (hold) WHERE state = 'held';
CREATE INDEX tasks_failures ON tasks (failure, state, id) WHERE failure IS NOT NULL;
CREATE INDEX tombstones_expiry ON tombstones (expires_usec);
CREATE INDEX add_results_expiry ON add_results (expires_usec);
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
COMMIT;
PRAGMA user_version = 6;
