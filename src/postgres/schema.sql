-- What there is once in a schema.
CREATE TABLE meta (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    format   int     NOT NULL,          -- of these tables
    store    uuid    NOT NULL,          -- the store's ID
    shards   int     NOT NULL,          -- fixed for the store's life
    database uuid    NOT NULL,          -- the ID of this database of the store, which may have more
    moves    bigint  NOT NULL DEFAULT 0, -- shards that came to this database or left it
    barriers bigint  NOT NULL DEFAULT 0 -- commits that show that what is seen is on a quorum
) WITH (fillfactor = 10);

-- The sequencer of a shard. The lock on its row makes the order of its commits and of its IDs one.
CREATE TABLE shard (
    shard          int    PRIMARY KEY,
    last_id        uuid   NOT NULL,     -- no later event or change has a lower ID
    sessions       bigint NOT NULL,     -- rows of `session`
    events         bigint NOT NULL,     -- ever committed
    removals       bigint NOT NULL,     -- batches that removed something
    epoch          bigint NOT NULL,     -- barriers under the lock
    erased_through uuid   NOT NULL,     -- erased records have no higher ID
    retains        boolean NOT NULL,    -- whether a session was ever given a retention of its own
    format         int    NOT NULL,     -- as in `meta`: whoever has the lock on this row knows it
    here           boolean NOT NULL,    -- whether this database is the one that has the shard now
    move           uuid,                -- the move that copies it from here, brought it or took it away
    moved_to       uuid                 -- the database that has it since it left this one
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0.01);

-- A session that was ever begun, with its state.
CREATE TABLE session (
    session    bigint PRIMARY KEY,      -- shard << 40 | the how-many-th of the shard
    name       text   COLLATE "C" NOT NULL,
    active_id  uuid,                    -- its position by activity; none once it is deleted
    created_id uuid,                    -- its position by creation
    state      bytea  NOT NULL          -- as segments store it
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01);
CREATE UNIQUE INDEX session_name ON session (name);
CREATE INDEX session_active ON session (active_id);
CREATE INDEX session_created ON session (created_id);

-- One appended batch, as the journal stores it: head and body, with the body's checksum.
CREATE TABLE record (
    last_id    uuid   PRIMARY KEY,      -- the ID of its last event or change
    base_id    uuid   NOT NULL,         -- the ID of its first
    session    bigint NOT NULL,
    generation int    NOT NULL,
    first_seq  bigint NOT NULL,
    last_seq   bigint NOT NULL,         -- the one before first_seq without events
    key        bytea,                   -- a hash of its idempotency key
    record     bytea  NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02); -- so that what was erased leaves its pages
ALTER TABLE record ALTER record SET COMPRESSION lz4;
-- A seq is given once. A fault of ours is an error here, and never a second event.
CREATE UNIQUE INDEX record_place ON record (session, generation, first_seq) WHERE last_seq >= first_seq;
CREATE INDEX record_change ON record (session, generation, last_id) WHERE last_seq < first_seq;
-- Several rows have one key once it was used again: of batches that were trimmed, of generations.
CREATE INDEX record_key ON record (session, key, last_id) WHERE key IS NOT NULL;

-- The forks of each generation of a session, and of its forks.
CREATE TABLE fork (
    ancestor   text COLLATE "C" NOT NULL,
    generation int  NOT NULL,
    child      text COLLATE "C" NOT NULL,
    PRIMARY KEY (ancestor, generation, child)
);

-- Forks under way whose events are in this database, and whose session is in another. None of a
-- generation is erased before their tickets are taken away.
CREATE TABLE pin (
    ticket     uuid NOT NULL,
    ancestor   text COLLATE "C" NOT NULL,
    PRIMARY KEY (ticket, ancestor)
);
CREATE INDEX pin_ancestor ON pin (ancestor);

-- What a fork needs to be committed to this database, if events that it shares are in others.
CREATE TABLE ticket (
    ticket uuid PRIMARY KEY
);

-- Sessions with removed events that are not erased yet.
CREATE TABLE removal (
    name   text   COLLATE "C" NOT NULL,
    id     uuid   NOT NULL,             -- of the batch that removed
    at_ms  bigint NOT NULL,
    events bigint NOT NULL,
    PRIMARY KEY (name, id)
);
CREATE INDEX removal_due ON removal (at_ms, name);
