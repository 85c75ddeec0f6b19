-- What a job's client wants to be told, as {"url":…,"events":[…]}.
ALTER TABLE image_jobs ADD COLUMN webhook TEXT CHECK (webhook IS NULL OR json_valid(webhook));

-- The trace of the request that made the job, for the log.
ALTER TABLE image_jobs ADD COLUMN trace_id TEXT;

-- Messages on their way out, each written with the change that it tells of. A row goes away once somebody has taken it,
-- or nobody has for too long; it outlives its job.
CREATE TABLE webhook_outbox (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,                         -- the header `webhook-id`, the same at every try
    job_id     TEXT NOT NULL,
    url        TEXT NOT NULL,
    body       TEXT NOT NULL CHECK (json_valid(body)),       -- as it is sent, byte for byte
    created_at INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_at    INTEGER NOT NULL                              -- not before, ms
) STRICT;
-- In the order of their job: a message waits for those before it.
CREATE INDEX webhook_outbox_job ON webhook_outbox (job_id, seq);
CREATE INDEX webhook_outbox_next ON webhook_outbox (next_at);
