-- Version 1. Everything is named without its schema: the session's search_path says which.
-- Times of sends are nanoseconds since 1970 as nodes told them; leases and deaths are by the database's own clock.

CREATE TABLE tier (
    one bool PRIMARY KEY DEFAULT true CHECK (one),
    version int NOT NULL,
    key_check bytea NOT NULL,
    -- Grows with every suspension and lifting.
    suspensions bigint NOT NULL DEFAULT 1,
    digest bytea,
    sync_token bigint NOT NULL DEFAULT 0,
    first_start bigint,
    -- What is added to a transaction's number in the tail's places: more than nothing once the tables were brought over
    -- from a cluster that had counted further.
    tail_base bigint NOT NULL DEFAULT 0
);

-- The places of a transaction's ends begin here.
CREATE FUNCTION tail_now() RETURNS bigint LANGUAGE sql AS
    'SELECT (pg_current_xact_id()::text::bigint + tail_base) << 20 FROM tier';

-- One row an incarnation: a life of a node. It stays until nothing names it.
CREATE TABLE node (
    incarnation bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    version text COLLATE "C" NOT NULL,
    -- What it must have loaded to begin anything.
    suspensions bigint NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz NOT NULL,
    -- Since when its lease was never over.
    unbroken_since timestamptz NOT NULL DEFAULT clock_timestamp(),
    dead_at timestamptz,
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What it told of its load with its last renewal.
    queued bigint NOT NULL DEFAULT 0,
    in_flight bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX node_name ON node (name) WHERE dead_at IS NULL;

-- What was accepted: written once.
CREATE TABLE send (
    id uuid NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    workflow text COLLATE "C",
    execution text COLLATE "C",
    step text COLLATE "C",
    host text COLLATE "C",
    place int,
    created_at bigint NOT NULL,
    form bytea NOT NULL,
    sealed bytea,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX send_tenant ON send (tenant, id);
CREATE INDEX send_workflow ON send (workflow, id) WHERE workflow IS NOT NULL;
CREATE INDEX send_execution ON send (execution, tenant, place) WHERE execution IS NOT NULL;
-- The first ones of executions: those stand for them in their list.
CREATE INDEX send_first ON send (tenant, id) WHERE place = 0;
CREATE INDEX send_first_workflow ON send (workflow, id) WHERE place = 0;
CREATE INDEX send_step ON send (step, id) WHERE step IS NOT NULL;
CREATE INDEX send_host ON send (host, id);

-- How it ended: written once.
CREATE TABLE done (
    id uuid NOT NULL,
    seq bigint NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    outcome smallint NOT NULL,
    code smallint,
    status smallint,
    source text COLLATE "C",
    public text COLLATE "C",
    started_at bigint,
    finished_at bigint NOT NULL,
    -- Who wrote it.
    node text COLLATE "C" NOT NULL,
    form bytea NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX done_seq ON done (seq);
CREATE INDEX done_source ON done (source, id) WHERE source IS NOT NULL;
CREATE INDEX done_public ON done (public, id) WHERE public <> source;
CREATE INDEX done_outcome ON done (outcome, id) WHERE outcome <> 0;
CREATE INDEX done_code ON done (code, id) WHERE code IS NOT NULL;
CREATE INDEX done_status ON done (status, id) WHERE status <> 200;

-- Bodies, which may be kept for less time.
CREATE TABLE send_body (id uuid NOT NULL, bytes bytea NOT NULL, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE done_body (id uuid NOT NULL, bytes bytea NOT NULL, PRIMARY KEY (id)) PARTITION BY RANGE (id);

-- One narrow row for each send that is not done. No index has a column that a begin changes.
CREATE TABLE live (
    id uuid PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    -- Who has claimed or begun it.
    incarnation bigint,
    held bool NOT NULL,
    -- Of a held one.
    execution text COLLATE "C",
    destination bigint NOT NULL,
    created_at bigint NOT NULL,
    expires_in bigint NOT NULL,
    released_at bigint,
    began_at bigint,
    -- The wrapped key of what is sealed; gone with the row.
    slot bytea
) WITH (fillfactor = 70);
CREATE INDEX live_held ON live (tenant, execution) WHERE held;

-- What waits and is nobody's, in the order of release.
CREATE TABLE queue (
    tenant text COLLATE "C" NOT NULL,
    released_at bigint NOT NULL,
    id uuid NOT NULL,
    destination bigint NOT NULL,
    expires_at bigint NOT NULL,
    PRIMARY KEY (tenant, released_at, id)
);
CREATE INDEX queue_destination ON queue (tenant, destination, released_at, id);
CREATE INDEX queue_expiry ON queue (expires_at);

-- An execution's state: 0 open, 1 finished by a call, 2 released at the hold limit, 3 discarded.
CREATE TABLE execution (
    tenant text COLLATE "C" NOT NULL,
    execution text COLLATE "C" NOT NULL,
    state smallint NOT NULL DEFAULT 0,
    next int NOT NULL DEFAULT 0,
    -- When its first held send was accepted.
    opened_at bigint,
    ended_at bigint,
    ended bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, execution)
);
CREATE INDEX execution_open ON execution (opened_at) WHERE state = 0 AND opened_at IS NOT NULL;

CREATE TABLE idem (
    tenant text COLLATE "C" NOT NULL,
    path text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    at bigint NOT NULL,
    sends uuid[] NOT NULL,
    PRIMARY KEY (tenant, path, key)
);
CREATE INDEX idem_at ON idem USING brin (at);

-- How the counts of what waits have changed, by whom: added up now and then, and asked for by the other nodes.
CREATE TABLE tally (
    incarnation bigint NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    held bigint NOT NULL,
    queued bigint NOT NULL,
    unclaimed bigint NOT NULL
);

-- Ends by the minute, in the same way.
CREATE TABLE hour (minute bigint NOT NULL, tenant text COLLATE "C" NOT NULL, outcome smallint NOT NULL, n bigint NOT NULL);

-- Ends counted by five minutes and by hours (`seconds`), once, in the order of the tail: of a tenant, and ('') of all.
-- What they are told apart by: 0 the outcome's number, 1 the host, 2 the public address, 3 the tenant. `value` is '' for
-- those that are not told apart, `took` the place in the list of times.
CREATE TABLE stat (
    tenant text COLLATE "C" NOT NULL,
    told_by smallint NOT NULL,
    seconds int NOT NULL,
    slot bigint NOT NULL,
    value text COLLATE "C" NOT NULL,
    delivered bool NOT NULL,
    took smallint NOT NULL,
    n bigint NOT NULL,
    PRIMARY KEY (tenant, told_by, seconds, slot, value, delivered, took)
);
CREATE INDEX stat_slot ON stat USING brin (slot);

-- How far they are counted.
CREATE TABLE stat_place (seq bigint NOT NULL);
INSERT INTO stat_place VALUES (0);

CREATE TABLE suspension (
    id uuid PRIMARY KEY,
    tenant text COLLATE "C",
    workflow text COLLATE "C",
    host text COLLATE "C",
    reason text COLLATE "C" NOT NULL,
    made_by text COLLATE "C" NOT NULL,
    made_at bigint NOT NULL,
    lifted_at bigint,
    lifted_by text COLLATE "C"
);

-- Who sends from a public address.
CREATE TABLE source (
    address text COLLATE "C" PRIMARY KEY,
    incarnation bigint NOT NULL,
    name text COLLATE "C" NOT NULL
);

CREATE TABLE published (address text COLLATE "C" PRIMARY KEY, first_at bigint NOT NULL);

-- Joining and suspending take one lock, as a first statement: whoever joins has the newest version, or is bumped.
CREATE FUNCTION node_join(p_name text, p_version text, p_lease float8)
RETURNS TABLE (o_incarnation bigint, o_suspensions bigint) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(current_schema()), 1);
    UPDATE node SET dead_at = clock_timestamp() WHERE name = p_name AND dead_at IS NULL;
    RETURN QUERY INSERT INTO node (name, version, suspensions, lease_until)
        SELECT p_name, p_version, t.suspensions, clock_timestamp() + make_interval(secs => p_lease) FROM tier t
        RETURNING node.incarnation, node.suspensions;
END $$;

-- Waits for every accept and begin that is under way, and fences those that follow until their node has loaded it.
CREATE FUNCTION suspensions_changed() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE v_version bigint;
BEGIN
    UPDATE tier SET suspensions = suspensions + 1 RETURNING suspensions INTO v_version;
    UPDATE node SET suspensions = v_version WHERE dead_at IS NULL;
    RETURN v_version;
END $$;

CREATE FUNCTION suspend(p_id uuid, p_tenant text, p_workflow text, p_host text, p_reason text, p_by text, p_at bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(current_schema()), 1);
    INSERT INTO suspension (id, tenant, workflow, host, reason, made_by, made_at)
        VALUES (p_id, p_tenant, p_workflow, p_host, p_reason, p_by, p_at) ON CONFLICT DO NOTHING;
    RETURN suspensions_changed();
END $$;

CREATE FUNCTION lift(p_id uuid, p_at bigint, p_by text) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(current_schema()), 1);
    UPDATE suspension SET lifted_at = p_at, lifted_by = p_by WHERE id = p_id AND lifted_at IS NULL;
    IF NOT FOUND THEN RETURN false; END IF;
    PERFORM suspensions_changed();
    RETURN true;
END $$;

-- The lock comes first, so that what follows sees every node that took an address before. What a dead one had in flight
-- may leave from its addresses for so many more seconds; of one's own earlier life there is nothing to wait for.
CREATE FUNCTION hold_sources(p_incarnation bigint, p_addresses text[], p_grace float8)
RETURNS TABLE (o_address text, o_holder text) LANGUAGE plpgsql AS $$
DECLARE v_name text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(current_schema()), 3);
    SELECT name INTO v_name FROM node WHERE incarnation = p_incarnation AND dead_at IS NULL FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this session holds nothing' USING ERRCODE = 'EGFEN';
    END IF;
    DELETE FROM source s WHERE s.incarnation = p_incarnation AND s.address <> ALL (p_addresses);
    DELETE FROM source s WHERE s.address = ANY (p_addresses) AND s.incarnation <> p_incarnation
        AND (s.name = v_name OR NOT EXISTS (SELECT FROM node n WHERE n.incarnation = s.incarnation
            AND (n.dead_at IS NULL OR n.dead_at + make_interval(secs => p_grace) > clock_timestamp())));
    INSERT INTO source (address, incarnation, name)
        SELECT a, p_incarnation, v_name FROM unnest(p_addresses) a ORDER BY a ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT s.address, s.name FROM source s
        WHERE s.address = ANY (p_addresses) AND s.incarnation <> p_incarnation;
END $$;

CREATE FUNCTION publish(p_addresses text[], p_digest bytea, p_now bigint)
RETURNS TABLE (o_token bigint, o_first_start bigint) LANGUAGE plpgsql AS $$
DECLARE
    v_tier tier;
    v_is_first bool;
BEGIN
    SELECT * INTO v_tier FROM tier FOR UPDATE;
    v_is_first := NOT EXISTS (SELECT FROM published);
    IF v_is_first OR v_tier.first_start IS NULL THEN
        v_tier.first_start := p_now;
    END IF;
    IF p_digest IS NOT NULL AND p_digest IS DISTINCT FROM v_tier.digest THEN
        v_tier.digest := p_digest;
        v_tier.sync_token := greatest(p_now / 1000000000, v_tier.sync_token + 1);
    END IF;
    UPDATE tier SET first_start = v_tier.first_start, digest = v_tier.digest, sync_token = v_tier.sync_token
        WHERE (first_start, digest, sync_token) IS DISTINCT FROM (v_tier.first_start, v_tier.digest, v_tier.sync_token);
    -- The first start's instant is that of its own addresses alone, wherever a clock stands.
    INSERT INTO published (address, first_at)
        SELECT a, CASE WHEN v_is_first OR p_now <> v_tier.first_start THEN p_now ELSE p_now + 1 END
        FROM unnest(p_addresses) a ORDER BY a ON CONFLICT DO NOTHING;
    RETURN QUERY SELECT v_tier.sync_token, v_tier.first_start;
END $$;

-- A call with a key or with executions. Each step is a statement of its own, so that it sees what it has waited for:
-- the key, the executions in order, the node, and only then the sends. Refusals are errors, which undo all of it.
CREATE FUNCTION accept_call(
    p_incarnation bigint, p_suspensions bigint, p_tenant text,
    p_path text, p_key text, p_fingerprint bytea, p_now bigint, p_kept bigint,
    p_hold text, p_limit int,
    p_ids uuid[], p_workflows text[], p_executions text[], p_steps text[], p_hosts text[],
    p_forms bytea[], p_bodies bytea[], p_sealed bytea[], p_slots bytea[],
    p_courses smallint[], p_destinations bigint[], p_created bigint[], p_expires bigint[]
) RETURNS TABLE (o_verdict int, o_places int[], o_before uuid[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_known idem;
    v_execution text;
    v_row execution;
    v_count int;
    v_places int[] := array_fill(NULL::int, ARRAY[cardinality(p_ids)]);
    v_at int;
    v_again bool := false;
BEGIN
    IF p_key IS NOT NULL THEN
        INSERT INTO idem (tenant, path, key, fingerprint, at, sends)
            VALUES (p_tenant, p_path, p_key, p_fingerprint, p_now, p_ids) ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            SELECT * INTO v_known FROM idem WHERE tenant = p_tenant AND path = p_path AND key = p_key FOR UPDATE;
            IF v_known.sends = p_ids THEN
                -- The same call once more: its answer was lost.
                v_again := true;
            ELSIF greatest(p_now - v_known.at, 0) < p_kept THEN
                RETURN QUERY SELECT CASE WHEN v_known.fingerprint = p_fingerprint THEN 1 ELSE 2 END, NULL::int[], v_known.sends;
                RETURN;
            ELSE
                UPDATE idem SET fingerprint = p_fingerprint, at = p_now, sends = p_ids
                    WHERE tenant = p_tenant AND path = p_path AND key = p_key;
            END IF;
        END IF;
    END IF;
    FOR v_execution IN SELECT DISTINCT e COLLATE "C" FROM unnest(p_executions) e WHERE e IS NOT NULL ORDER BY 1 LOOP
        INSERT INTO execution (tenant, execution) VALUES (p_tenant, v_execution) ON CONFLICT DO NOTHING;
        SELECT * INTO v_row FROM execution WHERE tenant = p_tenant AND execution = v_execution FOR UPDATE;
        IF EXISTS (SELECT FROM send s WHERE s.id = p_ids[1]) THEN
            v_again := true;
            EXIT;
        END IF;
        SELECT count(*) INTO v_count FROM unnest(p_executions) e WHERE e = v_execution;
        IF p_hold IS NOT NULL AND v_row.state <> 0 THEN
            RAISE EXCEPTION 'the execution has ended' USING ERRCODE = 'EGEND', DETAIL = v_row.state::text;
        END IF;
        IF p_hold IS NOT NULL AND v_row.next + v_count > p_limit THEN
            RAISE EXCEPTION 'the execution is full' USING ERRCODE = 'EGFUL';
        END IF;
        UPDATE execution x SET next = x.next + v_count,
            opened_at = CASE WHEN p_hold IS NULL THEN x.opened_at ELSE coalesce(x.opened_at, p_now) END
            WHERE x.tenant = p_tenant AND x.execution = v_execution;
        FOR v_at IN 1 .. cardinality(p_ids) LOOP
            IF p_executions[v_at] = v_execution THEN
                v_places[v_at] := v_row.next;
                v_row.next := v_row.next + 1;
            END IF;
        END LOOP;
    END LOOP;
    IF v_again THEN
        RETURN QUERY SELECT 0, array_agg(s.place ORDER BY g.n), NULL::uuid[]
            FROM unnest(p_ids) WITH ORDINALITY g(id, n) JOIN send s ON s.id = g.id;
        RETURN;
    END IF;
    PERFORM FROM node WHERE incarnation = p_incarnation AND dead_at IS NULL AND suspensions = p_suspensions
        AND lease_until > clock_timestamp() FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this session begins nothing' USING ERRCODE = 'EGFEN';
    END IF;
    INSERT INTO send (id, tenant, workflow, execution, step, host, place, created_at, form, sealed)
        SELECT g.id, p_tenant, g.workflow, g.execution, g.step, g.host, g.place, g.created, g.form, g.sealed
        FROM unnest(p_ids, p_workflows, p_executions, p_steps, p_hosts, v_places, p_created, p_forms, p_sealed)
            AS g(id, workflow, execution, step, host, place, created, form, sealed);
    INSERT INTO send_body (id, bytes)
        SELECT g.id, g.body FROM unnest(p_ids, p_bodies) AS g(id, body) WHERE g.body IS NOT NULL;
    INSERT INTO live (id, tenant, incarnation, held, execution, destination, created_at, expires_in, released_at, began_at, slot)
        SELECT g.id, p_tenant, CASE WHEN g.course IN (1, 2) THEN p_incarnation END, g.course = 3,
            CASE WHEN g.course = 3 THEN g.execution END, g.destination, g.created, g.expires,
            CASE WHEN g.course <> 3 THEN g.created END, CASE WHEN g.course = 2 THEN g.created END, g.slot
        FROM unnest(p_ids, p_executions, p_courses, p_destinations, p_created, p_expires, p_slots)
            AS g(id, execution, course, destination, created, expires, slot);
    INSERT INTO queue (tenant, released_at, id, destination, expires_at)
        SELECT p_tenant, g.created, g.id, g.destination, g.created + least(g.expires, 9223372036854775807 - g.created)
        FROM unnest(p_ids, p_courses, p_destinations, p_created, p_expires) AS g(id, course, destination, created, expires)
        WHERE g.course = 0;
    INSERT INTO tally (incarnation, tenant, held, queued, unclaimed)
        SELECT p_incarnation, p_tenant, count(*) FILTER (WHERE c = 3), count(*) FILTER (WHERE c IN (0, 1)), count(*) FILTER (WHERE c = 0)
        FROM unnest(p_courses) c WHERE c <> 2 HAVING count(*) > 0;
    RETURN QUERY SELECT 0, v_places, NULL::uuid[];
END $$;

-- Locks the execution's row first, then looks: what is accepted into it at the same moment is either seen or refused.
CREATE FUNCTION end_execution(
    p_incarnation bigint, p_tenant text, p_execution text, p_state smallint, p_at bigint,
    p_outcome smallint, p_code smallint, p_node text, p_form bytea
) RETURNS TABLE (o_state smallint, o_first bool, o_count bigint, o_ended uuid[], o_seqs bigint[]) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_row execution;
    v_ids uuid[];
    v_seqs bigint[];
    v_count bigint;
BEGIN
    INSERT INTO execution (tenant, execution) VALUES (p_tenant, p_execution) ON CONFLICT DO NOTHING;
    SELECT * INTO v_row FROM execution WHERE tenant = p_tenant AND execution = p_execution FOR UPDATE;
    PERFORM FROM node WHERE incarnation = p_incarnation AND dead_at IS NULL AND lease_until > clock_timestamp() FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this session begins nothing' USING ERRCODE = 'EGFEN';
    END IF;
    IF v_row.state <> 0 THEN
        RETURN QUERY SELECT v_row.state, false, v_row.ended, NULL::uuid[], NULL::bigint[];
        RETURN;
    END IF;
    IF p_state = 3 THEN
        WITH gone AS (
            DELETE FROM live WHERE tenant = p_tenant AND execution = p_execution AND held RETURNING id
        ), numbered AS (
            SELECT id, (SELECT tail_now()) | (row_number() OVER (ORDER BY id)) AS seq FROM gone
        ), ends AS (
            INSERT INTO done (id, seq, tenant, outcome, code, finished_at, node, form)
            SELECT id, seq, p_tenant, p_outcome, p_code, p_at, p_node, p_form FROM numbered RETURNING id, seq
        )
        SELECT array_agg(id ORDER BY seq), array_agg(seq ORDER BY seq), count(*) INTO v_ids, v_seqs, v_count FROM ends;
        IF v_count > 0 THEN
            INSERT INTO hour (minute, tenant, outcome, n) VALUES (p_at / 60000000000, p_tenant, p_outcome, v_count);
        END IF;
    ELSE
        WITH free AS (
            UPDATE live SET held = false, released_at = greatest(p_at, created_at)
            WHERE tenant = p_tenant AND execution = p_execution AND held
            RETURNING id, destination, released_at, expires_in
        ), waits AS (
            INSERT INTO queue (tenant, released_at, id, destination, expires_at)
            SELECT p_tenant, released_at, id, destination, released_at + least(expires_in, 9223372036854775807 - released_at)
            FROM free RETURNING id
        )
        SELECT count(*) INTO v_count FROM waits;
    END IF;
    UPDATE execution SET state = p_state, ended_at = p_at, ended = v_count WHERE tenant = p_tenant AND execution = p_execution;
    IF v_count > 0 THEN
        INSERT INTO tally (incarnation, tenant, held, queued, unclaimed)
            VALUES (p_incarnation, p_tenant, -v_count, CASE WHEN p_state = 3 THEN 0 ELSE v_count END, CASE WHEN p_state = 3 THEN 0 ELSE v_count END);
    END IF;
    RETURN QUERY SELECT p_state, true, v_count, v_ids, v_seqs;
END $$;
