-- Queues and what belongs to them. Bodies of messages are in files beside the database.
--
-- Every number comes from one sequence, that of changes: a queue, a message and a notification
-- have the number of the change that made them. Times are in seconds since 1970.

CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    noted INTEGER NOT NULL,   -- no number of the sequence that is in use is higher
    queues INTEGER NOT NULL   -- how many there are
) STRICT;

INSERT INTO state VALUES (1, 0, 0);

CREATE TABLE queue (
    number INTEGER PRIMARY KEY,
    recipient_id BLOB NOT NULL UNIQUE,
    sender_id BLOB NOT NULL UNIQUE,
    recipient_keys BLOB NOT NULL,   -- DER, each as a short string
    secret BLOB NOT NULL,
    sender_key BLOB,                -- DER
    mode TEXT,                      -- M, C
    status TEXT NOT NULL,           -- active, blocked, off
    blocked BLOB,                   -- reason=..., as the protocol has it
    used_on INTEGER NOT NULL,
    service_id BLOB,
    notifier_id BLOB,
    notifier_key BLOB,              -- DER
    notifier_secret BLOB,
    notifier_service_id BLOB
) STRICT;

CREATE UNIQUE INDEX queue_notifier ON queue (notifier_id) WHERE notifier_id IS NOT NULL;

-- Apart from queues, since it is large and changes seldom.
CREATE TABLE link (
    queue INTEGER PRIMARY KEY,
    link_id BLOB NOT NULL UNIQUE,
    fixed BLOB NOT NULL,
    user BLOB NOT NULL
) STRICT;

-- In the order of the primary key: first in, first out for each queue.
CREATE TABLE message (
    queue INTEGER NOT NULL,
    number INTEGER NOT NULL,
    msg_id BLOB NOT NULL,
    timestamp INTEGER NOT NULL,
    notify INTEGER NOT NULL,
    file INTEGER,                   -- where the body is; the quota marker has none
    offset INTEGER,
    size INTEGER,
    PRIMARY KEY (queue, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE notification (
    number INTEGER PRIMARY KEY,
    notifier_id BLOB NOT NULL,
    timestamp INTEGER NOT NULL,
    nonce BLOB NOT NULL,
    meta BLOB NOT NULL
) STRICT;

CREATE TABLE service (
    service_id BLOB NOT NULL UNIQUE,
    fingerprint BLOB NOT NULL UNIQUE,
    role TEXT NOT NULL,             -- M, N, P
    chain BLOB NOT NULL,            -- DER of each certificate, as a large string
    created_on INTEGER NOT NULL,
    notifiers INTEGER NOT NULL      -- how many are associated with it
) STRICT;

CREATE TABLE body_file (
    number INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,          -- what is behind it belongs to no message
    live INTEGER NOT NULL           -- bodies in it that are not wiped yet
) STRICT;

-- Places of removed messages that are to be wiped: file, offset and size of each.
CREATE TABLE wipe (
    number INTEGER PRIMARY KEY,
    places BLOB NOT NULL
) STRICT;
