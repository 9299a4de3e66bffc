-- Schema 6, the oldest that is still opened. Never changed: later changes are entries of migrations.rs.
CREATE TABLE queue (
    seq            INTEGER PRIMARY KEY,
    job_id         BLOB    NOT NULL,
    -- Unix ms from when the job may be handed out: 0 at once; while locked, the lock's expiry.
    available_at   INTEGER NOT NULL,
    priority       INTEGER NOT NULL,
    lock           INTEGER,
    delivery_count INTEGER NOT NULL,
    batch_id       TEXT    NOT NULL,
    custom_id      TEXT    NOT NULL,
    position       INTEGER NOT NULL,
    url            TEXT    NOT NULL,
    model          TEXT    NOT NULL,
    prompt_tokens  INTEGER,
    max_output_tokens INTEGER,
    deadline       TEXT,
    metadata       TEXT,
    look_up        INTEGER NOT NULL,
    first_enqueued INTEGER NOT NULL,
    -- JSON: tries and errors of earlier deliveries.
    history        TEXT,
    -- JSON: what is known of a body that lies in payloads.
    aside          TEXT,
    body           TEXT    NOT NULL,
    -- The same as UNIQUE (job_id), in an order in which neighbours of the input share pages.
    UNIQUE (batch_id, custom_id)
);
CREATE INDEX queue_in_order ON queue (available_at, priority DESC, seq);
CREATE TABLE dead_letters (
    -- Never given twice: people name dead letters by it.
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id         BLOB    NOT NULL,
    message        TEXT    NOT NULL,
    reason         TEXT    NOT NULL,
    description    TEXT    NOT NULL,
    delivery_count INTEGER NOT NULL,
    at             TEXT    NOT NULL
);
CREATE TABLE batches (
    batch_id      TEXT PRIMARY KEY,
    state         TEXT    NOT NULL,
    jobs          INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    created_at    TEXT    NOT NULL,
    -- JSON: the inputs that jobs counts.
    inputs        TEXT    NOT NULL DEFAULT '[]',
    -- Why it is in its state, where somebody said so.
    reason        TEXT
) WITHOUT ROWID;
-- In whole tokens, or in billionths of the currency.
CREATE TABLE budgets (
    batch_id  TEXT PRIMARY KEY,
    -- A currency; NULL: tokens.
    currency  TEXT,
    allowed   INTEGER NOT NULL,
    -- What was spent, and what is set aside for calls to come.
    committed INTEGER NOT NULL,
    spent     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE outcomes (
    seq               INTEGER PRIMARY KEY,
    batch_id          TEXT    NOT NULL,
    custom_id         TEXT    NOT NULL,
    position          INTEGER NOT NULL,
    digest            INTEGER NOT NULL,
    ending            TEXT    NOT NULL,
    status_code       INTEGER,
    request_id        TEXT,
    error_code        TEXT,
    error_message     TEXT,
    prompt_tokens     INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens  INTEGER NOT NULL,
    attempts          INTEGER NOT NULL,
    deployment        TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    latency_ms        INTEGER NOT NULL,
    finished_at       TEXT    NOT NULL,
    metadata          TEXT,
    body              TEXT,
    -- What the service billed it as, where it said so: default, flex.
    service_tier      TEXT,
    -- Calls that were refused for want of quota (429).
    throttled         INTEGER NOT NULL,
    deadline          TEXT,
    -- The same as one a job_id, which is a hash and would change a page for each job.
    UNIQUE (batch_id, custom_id)
);
-- What outcomes have cost that were taken back, so that their jobs are worked again.
CREATE TABLE withdrawn (
    batch_id          TEXT    NOT NULL,
    custom_id         TEXT    NOT NULL,
    ending            TEXT    NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens  INTEGER NOT NULL,
    attempts          INTEGER NOT NULL,
    deployment        TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    latency_ms        INTEGER NOT NULL,
    finished_at       TEXT    NOT NULL,
    metadata          TEXT,
    service_tier      TEXT,
    throttled         INTEGER NOT NULL
);
CREATE INDEX withdrawn_by_batch ON withdrawn (batch_id);
CREATE TABLE payloads (
    name      TEXT    PRIMARY KEY,
    stored_at INTEGER NOT NULL,
    bytes     BLOB    NOT NULL
);
CREATE INDEX payloads_by_age ON payloads (stored_at);
CREATE TABLE usage (
    batch_id          TEXT NOT NULL,
    deployment        TEXT NOT NULL,
    model             TEXT NOT NULL,
    -- What the service billed it as; empty where it did not say.
    service_tier      TEXT NOT NULL,
    hour              TEXT NOT NULL,
    ending            TEXT NOT NULL,
    jobs              INTEGER NOT NULL,
    attempts          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    cached_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    reasoning_tokens  INTEGER NOT NULL,
    PRIMARY KEY (batch_id, deployment, model, service_tier, hour, ending)
) WITHOUT ROWID;
-- What ended in which minute: how fast a batch goes, without a look at its outcomes.
CREATE TABLE minutes (
    batch_id    TEXT    NOT NULL,
    -- Unix minutes.
    minute      INTEGER NOT NULL,
    jobs        INTEGER NOT NULL,
    tokens      INTEGER NOT NULL,
    -- The second of it in which the first of them ended.
    from_second INTEGER NOT NULL,
    PRIMARY KEY (batch_id, minute)
) WITHOUT ROWID;
CREATE TABLE shares (
    instance   TEXT PRIMARY KEY,
    beat       INTEGER NOT NULL,
    -- JSON: by deployment, what the instance could use and what it claims of the quota.
    parts      TEXT    NOT NULL,
    about      TEXT    NOT NULL,
    -- Unix ms.
    updated_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE notes (
    kind TEXT NOT NULL,
    id   TEXT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
