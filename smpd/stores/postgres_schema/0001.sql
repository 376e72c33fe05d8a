-- Queues and what belongs to them, for any number of relays. Times are in seconds since 1970.
--
-- Whoever changes a queue, its messages or what else has its number holds the lock of its row in
-- queue_state meanwhile, and raises its version. So a version says whether what a relay
-- has in memory is still true.

CREATE SEQUENCE queue_number INCREMENT 100000;  -- a relay takes so many numbers at a time
CREATE SEQUENCE relay_number AS integer;      -- never used twice; 0 is none

CREATE TABLE queue (
    number bigint PRIMARY KEY,
    recipient_id bytea NOT NULL UNIQUE,
    sender_id bytea NOT NULL UNIQUE,
    recipient_keys bytea NOT NULL,  -- DER, each as a short string
    secret bytea NOT NULL,
    sender_key bytea,               -- DER
    mode text,                      -- M, C
    status text NOT NULL,           -- active, blocked, off
    blocked bytea,                  -- reason=..., as the protocol has it
    used_on bigint NOT NULL,
    service_id bytea,
    notifier_id bytea UNIQUE,
    notifier_key bytea,             -- DER
    notifier_secret bytea,
    notifier_service_id bytea
);

CREATE INDEX queue_notifier_service ON queue (notifier_service_id)
    WHERE notifier_service_id IS NOT NULL;

-- What changes with every message, apart from what is large: no index has any of it, and pages have
-- room, so that a change stays in its page.
CREATE TABLE queue_state (
    number bigint PRIMARY KEY,
    version bigint NOT NULL,
    messages integer NOT NULL,             -- how many wait, the quota marker included
    can_write boolean NOT NULL,            -- false after the quota was reached, until all are gone
    subscriber integer NOT NULL,           -- the relay that has, or had, the subscriber
    notifier_subscriber integer NOT NULL   -- and that of the notifier
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- Apart from queues, since it is large and changes seldom.
CREATE TABLE link (
    queue bigint PRIMARY KEY,
    link_id bytea NOT NULL UNIQUE,
    fixed bytea NOT NULL,
    "user" bytea NOT NULL
);

-- In the order of the primary key: first in, first out for each queue. The number is the version
-- that the queue got with it.
CREATE TABLE message (
    queue bigint NOT NULL,
    number bigint NOT NULL,
    msg_id bytea NOT NULL,
    timestamp bigint NOT NULL,
    notify boolean NOT NULL,
    body bytea,                     -- none: the quota marker
    PRIMARY KEY (queue, number)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000,
        toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_threshold = 1000);

-- Bodies are encrypted: nothing is gained by compressing them.
ALTER TABLE message ALTER body SET STORAGE EXTERNAL;

CREATE TABLE notification (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    notifier_id bytea NOT NULL,
    timestamp bigint NOT NULL,
    nonce bytea NOT NULL,
    meta bytea NOT NULL
);

CREATE INDEX notification_notifier ON notification (notifier_id);

CREATE TABLE service (
    service_id bytea PRIMARY KEY,
    fingerprint bytea NOT NULL UNIQUE,
    role text NOT NULL,             -- M, N, P
    chain bytea NOT NULL,           -- DER of each certificate, as a large string
    created_on bigint NOT NULL,
    subscriber integer NOT NULL     -- the relay that has, or had, its connection
);

-- The last transaction of each lane of each relay: whether one was committed whose
-- connection was lost meanwhile.
CREATE TABLE lane (
    relay integer NOT NULL,
    lane integer NOT NULL,
    batch bigint NOT NULL,
    PRIMARY KEY (relay, lane)
) WITH (fillfactor = 50);
