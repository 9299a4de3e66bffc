PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
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
INSERT INTO queue VALUES(1,X'37e856cfcc185eb48937dd76fd292c5a',0,1,NULL,0,'broken','job-1',1,'/v1/chat/completions','gpt-4.1',11,20,NULL,NULL,1,1796085589170,'{"resubmitted":1}',NULL,'{"model": "gpt-4.1", "messages": [{"role": "user", "content": "質問 number 1"}], "max_tokens": 20}');
INSERT INTO queue VALUES(2,X'04c5bafb0da95b2cb040263188e4fd33',0,0,NULL,0,'later','job-0',0,'/v1/chat/completions','gpt-4.1',11,20,NULL,NULL,0,1796085599447,NULL,NULL,'{"model": "gpt-4.1", "messages": [{"role": "user", "content": "質問 number 0"}], "max_tokens": 20}');
INSERT INTO queue VALUES(3,X'1485eb7071fb53ae9198aaf1b484bbf9',0,1,NULL,0,'later','job-1',1,'/v1/chat/completions','gpt-4.1',11,20,NULL,NULL,0,1796085599447,NULL,NULL,'{"model": "gpt-4.1", "messages": [{"role": "user", "content": "質問 number 1"}], "max_tokens": 20}');
INSERT INTO queue VALUES(4,X'7fa413c995ab5fbda9205afc7bd5190f',0,2,NULL,0,'later','job-2',2,'/v1/chat/completions','gpt-4.1',11,20,NULL,NULL,0,1796085599447,NULL,NULL,'{"model": "gpt-4.1", "messages": [{"role": "user", "content": "質問 number 2"}], "max_tokens": 20}');
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
INSERT INTO dead_letters VALUES(2,X'605e06e08f0a5e6dba34a311999a4ae3','{"custom_id":"job-2","batch_id":"broken","method":"POST","url":"/v1/chat/completions","body":{"model": "gpt-4.1", "messages": [{"role": "user", "content": "質問 number 2"}], "max_tokens": 20},"position":2,"estimate":{"prompt":11,"max_output":20},"priority":2,"history":{"first_enqueued":"2026-12-01T00:39:49.17Z"}}','RetriesExhausted','1 tries, the last one ended with oops: broken',1,'2026-12-01T00:39:49.265641078Z');
INSERT INTO dead_letters VALUES(3,X'31025396b4a95069b279ef1f1a18bab1','{"custom_id":"job-0","batch_id":"broken","method":"POST","url":"/v1/chat/completions","body":{"model": "gpt-4.1", "messages": [{"role": "user", "content": "質問 number 0"}], "max_tokens": 20},"position":0,"estimate":{"prompt":11,"max_output":20},"history":{"first_enqueued":"2026-12-01T00:39:49.17Z"}}','RetriesExhausted','1 tries, the last one ended with oops: broken',1,'2026-12-01T00:39:49.266168976Z');
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
INSERT INTO batches VALUES('broken','running',3,33,'2026-12-01T00:39:48.91593675Z','[{"fingerprint":"9a5ad02d648e21da","lines":3,"jobs":3,"counted":3,"promptTokens":33}]',NULL);
INSERT INTO batches VALUES('later','paused',3,33,'2026-12-01T00:39:59.21995843Z','[{"fingerprint":"9a5ad02d648e21da","lines":3,"jobs":3,"counted":3,"promptTokens":33}]','the quota is needed');
INSERT INTO batches VALUES('night','done',4,44,'2026-12-01T00:39:29.29483667Z','[{"fingerprint":"3bfe0ed810e37520","lines":4,"jobs":4,"counted":4,"promptTokens":44}]',NULL);
CREATE TABLE budgets (
    batch_id  TEXT PRIMARY KEY,
    -- A currency; NULL: tokens.
    currency  TEXT,
    allowed   INTEGER NOT NULL,
    -- What was spent, and what is set aside for calls to come.
    committed INTEGER NOT NULL,
    spent     INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO budgets VALUES('later','USD',50000000000,0,0);
INSERT INTO budgets VALUES('night','USD',5000000000,712000,712000);
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
INSERT INTO outcomes VALUES(1,'night','job-2',2,-344514302591797772,'succeeded',200,'2efe5dc1-de3d-e0c0-fdab-911d0f7a1781',NULL,NULL,11,0,20,0,1,'simulator','gpt-4.1',0,'2026-12-01T00:39:29.469596346Z','{"team": "東京"}','{"id":"chatcmpl-6338058b167866a3","object":"chat.completion","created":1796085569,"model":"gpt-4.1-2025-04-14","service_tier":null,"system_fingerprint":"fp_simulator","choices":[{"index":0,"finish_reason":"length","logprobs":null,"message":{"role":"assistant","content":"story early value point right place sound great round human local power heart field north plant the water table under","refusal":null},"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"protected_material_text":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}],"usage":{"prompt_tokens":11,"completion_tokens":20,"total_tokens":31,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":null},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":null}},"prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"jailbreak":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}]}',NULL,0,NULL);
INSERT INTO outcomes VALUES(2,'night','job-3',3,7169699837454599666,'succeeded',200,'74a0cf46-e1c0-994c-2563-9ee95a2aaa3a',NULL,NULL,11,0,19,0,1,'simulator','gpt-4.1',0,'2026-12-01T00:39:29.471097685Z','{"team": "東京"}','{"id":"chatcmpl-bb4008713526a0b4","object":"chat.completion","created":1796085569,"model":"gpt-4.1-2025-04-14","service_tier":null,"system_fingerprint":"fp_simulator","choices":[{"index":0,"finish_reason":"stop","logprobs":null,"message":{"role":"assistant","content":"human local power heart field north plant the water table under light house green river small stone white paper","refusal":null},"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"protected_material_text":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}],"usage":{"prompt_tokens":11,"completion_tokens":19,"total_tokens":30,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":null},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":null}},"prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"jailbreak":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}]}',NULL,0,NULL);
INSERT INTO outcomes VALUES(3,'night','job-1',1,-4404672663953243074,'succeeded',200,'42471830-2022-f607-0dc8-83f2c6e77282',NULL,NULL,11,0,19,0,1,'simulator','gpt-4.1',0,'2026-12-01T00:39:29.471127725Z','{"team": "東京"}','{"id":"chatcmpl-bd74f4ac61adfb39","object":"chat.completion","created":1796085569,"model":"gpt-4.1-2025-04-14","service_tier":null,"system_fingerprint":"fp_simulator","choices":[{"index":0,"finish_reason":"stop","logprobs":null,"message":{"role":"assistant","content":"plant the water table under light house green river small stone white paper world night about music story early","refusal":null},"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"protected_material_text":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}],"usage":{"prompt_tokens":11,"completion_tokens":19,"total_tokens":30,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":null},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":null}},"prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"jailbreak":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}]}',NULL,0,NULL);
INSERT INTO outcomes VALUES(4,'night','job-0',0,-1611708870170669537,'succeeded',200,'53331aba-4adc-bbba-8811-255172a6e17f',NULL,NULL,11,0,20,0,1,'simulator','gpt-4.1',0,'2026-12-01T00:39:29.47114113Z','{"team": "東京"}','{"id":"chatcmpl-6c8af77e9efeb95e","object":"chat.completion","created":1796085569,"model":"gpt-4.1-2025-04-14","service_tier":null,"system_fingerprint":"fp_simulator","choices":[{"index":0,"finish_reason":"length","logprobs":null,"message":{"role":"assistant","content":"sound great round human local power heart field north plant the water table under light house green river small stone","refusal":null},"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"protected_material_text":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}],"usage":{"prompt_tokens":11,"completion_tokens":20,"total_tokens":31,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":null},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":null}},"prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"jailbreak":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}]}',NULL,0,NULL);
INSERT INTO outcomes VALUES(6,'broken','job-2',2,-344514302591797772,'dead',500,NULL,'oops','broken',0,0,0,0,1,'','gpt-4.1',0,'2026-12-01T00:39:49.252045602Z',NULL,'{"error":{"message":"broken","code":"oops"}}',NULL,0,NULL);
INSERT INTO outcomes VALUES(7,'broken','job-0',0,-1611708870170669537,'dead',500,NULL,'oops','broken',0,0,0,0,1,'','gpt-4.1',0,'2026-12-01T00:39:49.253606321Z',NULL,'{"error":{"message":"broken","code":"oops"}}',NULL,0,NULL);
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
INSERT INTO withdrawn VALUES('broken','job-1','dead',0,0,0,0,1,'','gpt-4.1',0,'2026-12-01T00:39:49.251953952Z',NULL,NULL,0);
CREATE TABLE payloads (
    name      TEXT    PRIMARY KEY,
    stored_at INTEGER NOT NULL,
    bytes     BLOB    NOT NULL
);
INSERT INTO payloads VALUES('00000000-0000-0000-0000-000000000001.aa',1764500000000,X'7b7d');
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
INSERT INTO usage VALUES('broken','','gpt-4.1','','2026-12-01T00','dead',2,3,0,0,0,0);
INSERT INTO usage VALUES('night','simulator','gpt-4.1','','2026-12-01T00','succeeded',4,4,44,0,78,0);
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
INSERT INTO minutes VALUES('broken',29934759,3,0,49);
INSERT INTO minutes VALUES('night',29934759,4,122,29);
CREATE TABLE shares (
    instance   TEXT PRIMARY KEY,
    beat       INTEGER NOT NULL,
    -- JSON: by deployment, what the instance could use and what it claims of the quota.
    parts      TEXT    NOT NULL,
    about      TEXT    NOT NULL,
    -- Unix ms.
    updated_at INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO shares VALUES('2b6e0e7c-0000-4000-8000-000000000001',7,'{"a/gpt":{"demand":1.0,"claim":0.5}}','{"host":"東京"}',1764500000000);
CREATE TABLE notes (
    kind TEXT NOT NULL,
    id   TEXT NOT NULL,
    json TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
INSERT INTO notes VALUES('documents','summarise','{"open":[]}');
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('dead_letters',3);
CREATE INDEX queue_in_order ON queue (available_at, priority DESC, seq);
CREATE INDEX withdrawn_by_batch ON withdrawn (batch_id);
CREATE INDEX payloads_by_age ON payloads (stored_at);
COMMIT;
