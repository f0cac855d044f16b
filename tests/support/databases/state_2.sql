CREATE TABLE classes (
    stream TEXT NOT NULL,
    id INTEGER NOT NULL,
    label TEXT NOT NULL,
    state TEXT NOT NULL,
    first_seen FLOAT NOT NULL,
    PRIMARY KEY (stream, id),
    UNIQUE (stream, label)
);

CREATE TABLE commands (
    stream TEXT NOT NULL,
    id TEXT NOT NULL,
    taken_at FLOAT NOT NULL,
    PRIMARY KEY (stream, id)
);

CREATE TABLE decisions (
    seq INTEGER NOT NULL,
    stream TEXT NOT NULL,
    at FLOAT NOT NULL,
    kind TEXT NOT NULL,
    policy TEXT NOT NULL,
    fired BOOLEAN NOT NULL,
    reason TEXT NOT NULL,
    facts JSON NOT NULL,
    PRIMARY KEY (seq)
);

CREATE INDEX ix_decisions_stream ON decisions (stream);

CREATE TABLE generations (
    stream TEXT NOT NULL,
    number INTEGER NOT NULL,
    digest TEXT NOT NULL,
    session INTEGER NOT NULL,
    created_at FLOAT NOT NULL,
    accuracy FLOAT,
    PRIMARY KEY (stream, number),
    UNIQUE (stream, digest)
);

CREATE TABLE offsets (
    stream TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset BIGINT NOT NULL,
    PRIMARY KEY (stream, topic, partition)
);

CREATE TABLE outbox (
    seq INTEGER NOT NULL,
    stream TEXT NOT NULL,
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    at FLOAT NOT NULL,
    data JSON NOT NULL,
    PRIMARY KEY (seq)
);

CREATE INDEX ix_outbox_stream ON outbox (stream);

CREATE TABLE owner (
    id INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    epoch BIGINT NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE sessions (
    stream TEXT NOT NULL,
    id INTEGER NOT NULL,
    new_classes JSON NOT NULL,
    outcome TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    started_at FLOAT NOT NULL,
    ended_at FLOAT,
    parent TEXT,
    generation TEXT,
    seed BIGINT NOT NULL,
    method TEXT NOT NULL,
    settings JSON NOT NULL,
    detail JSON NOT NULL,
    PRIMARY KEY (stream, id)
);

CREATE TABLE totals (
    stream TEXT NOT NULL,
    stored BIGINT NOT NULL,
    duplicate BIGINT NOT NULL,
    dead_lettered BIGINT NOT NULL,
    PRIMARY KEY (stream)
);

CREATE TABLE live (
    stream TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (stream),
    FOREIGN KEY(stream, number) REFERENCES generations (stream, number)
);

CREATE TABLE samples (
    seq INTEGER NOT NULL,
    stream TEXT NOT NULL,
    id TEXT NOT NULL,
    class_id INTEGER NOT NULL,
    holdout BOOLEAN NOT NULL,
    session INTEGER,
    arrived_at FLOAT NOT NULL,
    timestamp FLOAT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    "offset" BIGINT NOT NULL,
    position INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (seq),
    UNIQUE (stream, id),
    FOREIGN KEY(stream, class_id) REFERENCES classes (stream, id)
);

CREATE INDEX samples_buffers ON samples (stream, holdout, session, class_id, arrived_at);
