-- Version 7. Batches of events.
--
-- An event is a send that is never begun by itself. A node of the version before knows none, and touches none: `incarnation`
-- is NULL in all of them, and none is in `queue`. Whose one is stands in `batcher` until its batch is closed; from then on
-- that is the batch's to say, in one row for all of them.
ALTER TABLE live
    -- The number of what it is for. NULL: it goes by itself.
    ADD COLUMN gathers smallint,
    -- Bytes of its payload.
    ADD COLUMN weight bigint,
    -- Who gathers it. NULL: nobody yet, or its batch is closed.
    ADD COLUMN batcher bigint,
    -- The closed batch that it is in.
    ADD COLUMN batch bytea;

-- Those that gather or are nobody's. `destination` is that of their place.
CREATE INDEX live_gathers ON live (batcher, tenant, destination) WHERE gathers IS NOT NULL AND batch IS NULL AND NOT held;

-- Batches that gather: nothing is decided by these, they tell the other nodes which batch an event is in.
CREATE TABLE gathering (
    incarnation bigint NOT NULL,
    id bytea NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    kind smallint NOT NULL,
    place text COLLATE "C" NOT NULL,
    destination bigint NOT NULL,
    opened_at bigint NOT NULL,
    closes_at bigint NOT NULL,
    PRIMARY KEY (incarnation, tenant, destination, id)
);
CREATE INDEX gathering_id ON gathering (id);

-- Closed ones.
CREATE TABLE batch (
    id bytea PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    kind smallint NOT NULL,
    -- Who carries it, and alone says what becomes of it. NULL: nobody, and nothing of it is on the wire.
    incarnation bigint,
    -- It knows that.
    taken bool NOT NULL,
    -- Its end is known: that of its sends.
    ended bool NOT NULL DEFAULT false,
    -- All of these have it.
    done bool NOT NULL DEFAULT false,
    -- How long after a death a try may still be on the wire, in milliseconds.
    grace bigint NOT NULL,
    closes_at bigint NOT NULL,
    -- In the order of their lines. Written once; what changes is in `form`.
    sends uuid[] NOT NULL,
    form bytea NOT NULL
);
CREATE INDEX batch_open ON batch (incarnation) WHERE NOT done;
CREATE INDEX batch_done ON batch (closes_at) WHERE done;

-- Those of these events that are still this session's are in the batch from now on, behind those that are, and in no other.
-- What comes back is all of it; nothing, where there is none. Made again after a lost answer it waits for the old backend, and
-- changes nothing where that has committed.
CREATE FUNCTION close_batch(
    p_incarnation bigint, p_suspensions bigint, p_id bytea, p_tenant text, p_kind smallint, p_ids uuid[],
    p_closes_at bigint, p_grace bigint, p_form bytea
) RETURNS TABLE (o_sends uuid[]) LANGUAGE plpgsql AS $$
DECLARE v_sends uuid[];
BEGIN
    PERFORM FROM node WHERE incarnation = p_incarnation AND dead_at IS NULL AND suspensions = p_suspensions
        AND lease_until > clock_timestamp() FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this session closes nothing' USING ERRCODE = 'EGFEN';
    END IF;
    -- By their keys, whatever the database believes to be rare: joined with a list, each row was compared with all of it.
    WITH mine AS (
        UPDATE live l SET batcher = NULL, batch = p_id WHERE l.id = ANY (p_ids) AND l.batcher = p_incarnation
            AND l.batch IS NULL AND l.began_at IS NULL AND NOT l.held RETURNING l.id
    )
    SELECT array_agg(mine.id) INTO v_sends FROM mine;
    -- In their order.
    IF cardinality(v_sends) = cardinality(p_ids) THEN
        v_sends := p_ids;
    ELSE
        SELECT array_agg(g.id ORDER BY g.n) INTO v_sends FROM unnest(p_ids) WITH ORDINALITY AS g(id, n)
            WHERE g.id = ANY (v_sends);
    END IF;
    DELETE FROM gathering WHERE incarnation = p_incarnation AND id = p_id;
    IF v_sends IS NULL THEN
        RETURN QUERY SELECT b.sends FROM batch b WHERE b.id = p_id;
        RETURN;
    END IF;
    RETURN QUERY INSERT INTO batch AS b (id, tenant, kind, incarnation, taken, grace, closes_at, sends, form)
        VALUES (p_id, p_tenant, p_kind, p_incarnation, true, p_grace, p_closes_at, v_sends, p_form)
        ON CONFLICT (id) DO UPDATE SET sends = b.sends || excluded.sends
            WHERE b.incarnation = p_incarnation AND NOT b.ended AND NOT b.done
        RETURNING b.sends;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this batch is not one of this session' USING ERRCODE = 'EGFEN';
    END IF;
END $$;

-- As `end_execution`, with how many of the released are in the queue: events gather.
CREATE FUNCTION close_execution(
    p_incarnation bigint, p_tenant text, p_execution text, p_state smallint, p_at bigint,
    p_outcome smallint, p_code smallint, p_node text, p_form bytea
) RETURNS TABLE (o_state smallint, o_first bool, o_count bigint, o_ended uuid[], o_seqs bigint[], o_unclaimed bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_row execution;
    v_ids uuid[];
    v_seqs bigint[];
    v_count bigint;
    v_unclaimed bigint := 0;
BEGIN
    INSERT INTO execution (tenant, execution) VALUES (p_tenant, p_execution) ON CONFLICT DO NOTHING;
    SELECT * INTO v_row FROM execution WHERE tenant = p_tenant AND execution = p_execution FOR UPDATE;
    PERFORM FROM node WHERE incarnation = p_incarnation AND dead_at IS NULL AND lease_until > clock_timestamp() FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'this session begins nothing' USING ERRCODE = 'EGFEN';
    END IF;
    IF v_row.state <> 0 THEN
        RETURN QUERY SELECT v_row.state, false, v_row.ended, NULL::uuid[], NULL::bigint[], 0::bigint;
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
            RETURNING id, destination, released_at, expires_in, gathers
        ), waits AS (
            INSERT INTO queue (tenant, released_at, id, destination, expires_at)
            SELECT p_tenant, released_at, id, destination, released_at + least(expires_in, 9223372036854775807 - released_at)
            FROM free WHERE gathers IS NULL RETURNING id
        )
        SELECT (SELECT count(*) FROM free), (SELECT count(*) FROM waits) INTO v_count, v_unclaimed;
    END IF;
    UPDATE execution SET state = p_state, ended_at = p_at, ended = v_count WHERE tenant = p_tenant AND execution = p_execution;
    IF v_count > 0 THEN
        INSERT INTO tally (incarnation, tenant, held, queued, unclaimed)
            VALUES (p_incarnation, p_tenant, -v_count, CASE WHEN p_state = 3 THEN 0 ELSE v_count END, v_unclaimed);
    END IF;
    RETURN QUERY SELECT p_state, true, v_count, v_ids, v_seqs, v_unclaimed;
END $$;

CREATE OR REPLACE FUNCTION end_execution(
    p_incarnation bigint, p_tenant text, p_execution text, p_state smallint, p_at bigint,
    p_outcome smallint, p_code smallint, p_node text, p_form bytea
) RETURNS TABLE (o_state smallint, o_first bool, o_count bigint, o_ended uuid[], o_seqs bigint[]) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT c.o_state, c.o_first, c.o_count, c.o_ended, c.o_seqs FROM close_execution(p_incarnation, p_tenant,
        p_execution, p_state, p_at, p_outcome, p_code, p_node, p_form) c;
END $$;

-- As `accept_call`, with what each send gathers for, and its weight.
CREATE FUNCTION accept_sends(
    p_incarnation bigint, p_suspensions bigint, p_tenant text,
    p_path text, p_key text, p_fingerprint bytea, p_now bigint, p_kept bigint,
    p_hold text, p_limit int,
    p_ids uuid[], p_workflows text[], p_executions text[], p_steps text[], p_hosts text[],
    p_forms bytea[], p_bodies bytea[], p_sealed bytea[], p_slots bytea[],
    p_courses smallint[], p_destinations bigint[], p_created bigint[], p_expires bigint[],
    p_gathers smallint[], p_weights bigint[]
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
    INSERT INTO live (id, tenant, incarnation, held, execution, destination, created_at, expires_in, released_at, began_at, slot,
            gathers, weight, batcher)
        SELECT g.id, p_tenant, CASE WHEN g.course IN (1, 2) AND g.gathers IS NULL THEN p_incarnation END, g.course = 3,
            CASE WHEN g.course = 3 THEN g.execution END, g.destination, g.created, g.expires,
            CASE WHEN g.course <> 3 THEN g.created END, CASE WHEN g.course = 2 THEN g.created END, g.slot,
            g.gathers, g.weight, CASE WHEN g.course = 1 AND g.gathers IS NOT NULL THEN p_incarnation END
        FROM unnest(p_ids, p_executions, p_courses, p_destinations, p_created, p_expires, p_slots, p_gathers, p_weights)
            AS g(id, execution, course, destination, created, expires, slot, gathers, weight);
    INSERT INTO queue (tenant, released_at, id, destination, expires_at)
        SELECT p_tenant, g.created, g.id, g.destination, g.created + least(g.expires, 9223372036854775807 - g.created)
        FROM unnest(p_ids, p_courses, p_destinations, p_created, p_expires, p_gathers)
            AS g(id, course, destination, created, expires, gathers)
        WHERE g.course = 0 AND g.gathers IS NULL;
    INSERT INTO tally (incarnation, tenant, held, queued, unclaimed)
        SELECT p_incarnation, p_tenant, count(*) FILTER (WHERE c = 3), count(*) FILTER (WHERE c IN (0, 1)),
            count(*) FILTER (WHERE c = 0 AND gathers IS NULL)
        FROM unnest(p_courses, p_gathers) AS g(c, gathers) WHERE c <> 2 HAVING count(*) > 0;
    RETURN QUERY SELECT 0, v_places, NULL::uuid[];
END $$;
