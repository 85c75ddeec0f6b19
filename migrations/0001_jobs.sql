-- The daemon's own tables. apalis owns `Jobs` and `Workers` (names are case-insensitive, hence `image_jobs`).

CREATE TABLE image_jobs (
    id                TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 26),
    kind              TEXT NOT NULL CHECK (kind IN ('upscale','edit','generate','inpaint','control','caption','video','talking_head','speech')),
    model             TEXT,                                  -- the one asked for, then the one chosen
    model_asked       TEXT,
    status            TEXT NOT NULL CHECK (status IN ('queued','running','retrying','succeeded','failed','cancelled')),
    priority          INTEGER NOT NULL CHECK (priority BETWEEN -100 AND 100),
    progress_phase    TEXT NOT NULL,
    progress_step     INTEGER NOT NULL DEFAULT 0 CHECK (progress_step >= 0),
    progress_steps    INTEGER NOT NULL DEFAULT 0 CHECK (progress_steps >= 0),
    progress_fraction REAL NOT NULL DEFAULT 0 CHECK (progress_fraction BETWEEN 0 AND 1),
    progress_at       INTEGER NOT NULL,
    attempt           INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    max_attempts      INTEGER NOT NULL CHECK (max_attempts >= 1),
    crashes           INTEGER NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    resumed_from_step INTEGER,
    cancel_requested  INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    source_type       TEXT NOT NULL CHECK (source_type IN ('http', 'inbox')),
    source_name       TEXT,
    source_path       TEXT,                                  -- below the inbox; JSON, see protocol::WirePath
    sidecars          TEXT NOT NULL DEFAULT '[]',            -- likewise, a list
    params            TEXT NOT NULL CHECK (json_valid(params)),
    inputs            TEXT NOT NULL CHECK (json_valid(inputs)),
    input_paths       TEXT NOT NULL CHECK (json_valid(input_paths)),
    mask              TEXT,
    output_dir        TEXT,                                  -- below the outbox
    output_stem       TEXT,
    outputs           TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(outputs)),
    output_paths      TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(output_paths)),
    manifest          TEXT,
    result            TEXT,
    error             TEXT,
    dedupe_key        TEXT,
    run_at            INTEGER,                               -- when a back-off ends, ms
    hooks_due         INTEGER NOT NULL DEFAULT 0 CHECK (hooks_due IN (0, 1)),
    first_failed_at   INTEGER,
    last_failed_at    INTEGER,
    created_at        INTEGER NOT NULL,
    started_at        INTEGER,
    finished_at       INTEGER,
    CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK (status <> 'failed' OR error IS NOT NULL),
    CHECK ((status = 'retrying') = (run_at IS NOT NULL))
) STRICT;

-- One live or succeeded job per content and parameters.
CREATE UNIQUE INDEX image_jobs_dedupe ON image_jobs (dedupe_key)
    WHERE dedupe_key IS NOT NULL AND status IN ('queued', 'running', 'retrying', 'succeeded');
CREATE INDEX image_jobs_status ON image_jobs (status, id);
CREATE INDEX image_jobs_kind ON image_jobs (kind, id);
CREATE INDEX image_jobs_source ON image_jobs (source_type, id);
CREATE INDEX image_jobs_finished ON image_jobs (status, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX image_jobs_hooks ON image_jobs (id) WHERE hooks_due = 1;

-- Counting a million rows takes 100 ms; these six take none.
CREATE TABLE job_counts (status TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO job_counts VALUES ('queued', 0), ('running', 0), ('retrying', 0), ('succeeded', 0), ('failed', 0), ('cancelled', 0);
CREATE TRIGGER image_jobs_count_insert AFTER INSERT ON image_jobs BEGIN
    UPDATE job_counts SET n = n + 1 WHERE status = new.status;
END;
CREATE TRIGGER image_jobs_count_update AFTER UPDATE OF status ON image_jobs WHEN old.status <> new.status BEGIN
    UPDATE job_counts SET n = n - 1 WHERE status = old.status;
    UPDATE job_counts SET n = n + 1 WHERE status = new.status;
END;
CREATE TRIGGER image_jobs_count_delete AFTER DELETE ON image_jobs BEGIN
    UPDATE job_counts SET n = n - 1 WHERE status = old.status;
END;

-- What happened, in order, for watchers that come back (Last-Event-ID). Says which job, not what it was then:
-- a watcher is told the job as it is now.
CREATE TABLE job_events (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id     TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX job_events_job ON job_events (job_id, seq);

CREATE TABLE idempotency_keys (
    key         TEXT PRIMARY KEY NOT NULL,
    fingerprint TEXT NOT NULL,
    job_id      TEXT NOT NULL REFERENCES image_jobs (id) ON DELETE CASCADE,
    created_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_job ON idempotency_keys (job_id);

-- Files that are about to be moved out of the inbox, written before the move.
CREATE TABLE inbox_claims (
    id         TEXT PRIMARY KEY NOT NULL,
    rel_path   TEXT NOT NULL,
    sidecars   TEXT NOT NULL DEFAULT '[]',
    claimed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE app_meta (key TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- apalis: the planner takes this index for every acknowledgement and for orphan recovery, which makes both
-- proportional to all rows that ever ran. Nothing else needs it.
DROP INDEX IF EXISTS LIdx;
