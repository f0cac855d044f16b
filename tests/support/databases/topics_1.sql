CREATE TABLE log_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

CREATE TABLE topics (
    id INTEGER NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (name)
);

CREATE TABLE idempotency (
    topic_id INTEGER NOT NULL,
    "key" TEXT NOT NULL,
    partition INTEGER NOT NULL,
    "offset" BIGINT NOT NULL,
    PRIMARY KEY (topic_id, "key"),
    FOREIGN KEY(topic_id) REFERENCES topics (id)
);

CREATE TABLE partitions (
    topic_id INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    start_offset BIGINT NOT NULL,
    end_offset BIGINT NOT NULL,
    PRIMARY KEY (topic_id, partition),
    FOREIGN KEY(topic_id) REFERENCES topics (id)
);

CREATE TABLE messages (
    topic_id INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    "offset" BIGINT NOT NULL,
    timestamp FLOAT NOT NULL,
    headers TEXT NOT NULL,
    "key" BLOB,
    value BLOB,
    PRIMARY KEY (topic_id, partition, "offset"),
    FOREIGN KEY(topic_id, partition) REFERENCES partitions (topic_id, partition)
);
