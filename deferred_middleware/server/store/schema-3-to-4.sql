-- Migrates a task store from version 3 to version 4: failures and statistics.
BEGIN IMMEDIATE;

ALTER TABLE tasks ADD COLUMN failure INTEGER;
CREATE INDEX tasks_failures ON tasks (failure, state, id) WHERE failure IS NOT NULL;

CREATE TABLE failures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    exception TEXT NOT NULL,
    message TEXT NOT NULL,
    file TEXT NOT NULL,
    line INTEGER NOT NULL,
    function TEXT NOT NULL,
    source TEXT NOT NULL,
    first_usec INTEGER NOT NULL,
    last_usec INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    dead INTEGER NOT NULL DEFAULT 0,
    failing INTEGER NOT NULL DEFAULT 0
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

CREATE TABLE statistics (
    kind TEXT NOT NULL CHECK (kind IN ('queue', 'function')),
    name TEXT NOT NULL,
    seconds INTEGER NOT NULL,
    start_usec INTEGER NOT NULL,
    enqueued INTEGER NOT NULL,
    executed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    waited TEXT NOT NULL,
    took TEXT NOT NULL,
    PRIMARY KEY (kind, name, seconds, start_usec)
) WITHOUT ROWID;

CREATE TABLE slowest_attempts (
    function TEXT NOT NULL,
    day_usec INTEGER NOT NULL,
    task_id INTEGER NOT NULL,
    number INTEGER NOT NULL,
    queue TEXT NOT NULL,
    started_usec INTEGER NOT NULL,
    duration_usec INTEGER NOT NULL,
    PRIMARY KEY (function, day_usec, task_id, number)
) WITHOUT ROWID;

-- How the tasks failed is read from the responses to their last attempts, see failure_key in statistics/earlier_failures.py.
CREATE TEMP TABLE found AS
    SELECT t.id AS task_id, a.number AS number, a.started_usec + a.duration_usec AS ended_usec,
        failure_key(a.status, a.reason, a.excerpt, t.url) AS key
    FROM tasks AS t JOIN attempts AS a ON a.task_id = t.id
        AND a.number = (SELECT max(number) FROM attempts WHERE task_id = t.id)
    WHERE t.state = 'failed' OR (t.state IN ('ready', 'running') AND t.retry_count > 0);
CREATE UNIQUE INDEX temp.found_tasks ON found (task_id);
INSERT INTO failures (key, first_usec, last_usec, attempts, exception, message, file, line, function, source)
    SELECT g.key, g.first_usec, g.last_usec, g.attempts,
        failure_part('exception', a.status, a.reason, a.excerpt, t.url),
        failure_part('message', a.status, a.reason, a.excerpt, t.url),
        failure_part('file', a.status, a.reason, a.excerpt, t.url),
        failure_part('line', a.status, a.reason, a.excerpt, t.url),
        failure_part('function', a.status, a.reason, a.excerpt, t.url),
        failure_part('source', a.status, a.reason, a.excerpt, t.url)
    FROM (SELECT key, min(ended_usec) AS first_usec, max(ended_usec) AS last_usec, count(*) AS attempts,
            number, max(task_id) AS task_id FROM found GROUP BY key) AS g
        JOIN attempts AS a USING (task_id, number) JOIN tasks AS t ON t.id = task_id;
UPDATE tasks SET failure = (SELECT id FROM failures WHERE key = (SELECT key FROM found WHERE task_id = tasks.id))
    WHERE id IN (SELECT task_id FROM found);
DROP TABLE found;

PRAGMA user_version = 4;
COMMIT;
