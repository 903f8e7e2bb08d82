//! Every statement that the store makes, but for lists, whose text depends on their filter. Schemas are beside this
//! (`schema_1.sql` …).
//!
//! The session is at READ COMMITTED, and each statement is a transaction. What decides is in the `WHERE` of the very
//! row that is locked or changed: a test in another row's subquery is made on a snapshot from before the wait.

/// The node's own row, which stays as it is until the statement has committed. Zero rows: fenced, its lease is over by
/// the database's clock, or a suspension was made that it has not loaded (`$2`).
macro_rules! me {
    () => {
        "me AS MATERIALIZED (SELECT incarnation FROM node WHERE incarnation = $1::bigint AND dead_at IS NULL \
         AND suspensions = $2::bigint AND lease_until > clock_timestamp() FOR SHARE)"
    };
}

/// The same whatever it has loaded.
macro_rules! in_force {
    () => {
        "me AS MATERIALIZED (SELECT incarnation FROM node WHERE incarnation = $1::bigint AND dead_at IS NULL \
         AND lease_until > clock_timestamp() FOR SHARE)"
    };
}

/// When something that is released then expires, without running over.
macro_rules! expires_at {
    () => {
        "released_at + least(expires_in, 9223372036854775807 - released_at)"
    };
}

/// What follows once it is known which are to be claimed. With what is to be sent, where that is no longer than 16 KiB: a
/// claim of 512 such sends is 8 MiB until the window takes what it has room for.
macro_rules! claim_end {
    () => {
        "gone AS (DELETE FROM queue q USING picked p WHERE q.tenant = p.tenant AND q.released_at = p.released_at \
         AND q.id = p.id RETURNING p.n, q.id), \
         mine AS (UPDATE live l SET incarnation = $1 FROM gone WHERE l.id = gone.id AND l.incarnation IS NULL \
         AND l.began_at IS NULL AND NOT l.held RETURNING gone.n, l.id, l.tenant, l.created_at, l.released_at, \
         l.expires_in, l.slot), \
         counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
         SELECT $1, tenant, 0, 0, -count(*) FROM mine GROUP BY tenant) \
         SELECT mine.id, tenant, created_at, released_at, expires_in, form, sealed, slot, body, \
         coalesce(s.is_long, false) OR coalesce(b.is_long, false) FROM mine \
         LEFT JOIN LATERAL (SELECT s.form, CASE WHEN octet_length(s.sealed) <= 16384 THEN s.sealed END AS sealed, \
         octet_length(s.sealed) > 16384 AS is_long FROM send s WHERE s.id = mine.id OFFSET 0) s ON true \
         LEFT JOIN LATERAL (SELECT CASE WHEN octet_length(b.bytes) <= 16384 THEN b.bytes END AS body, \
         octet_length(b.bytes) > 16384 AS is_long FROM send_body b WHERE b.id = mine.id OFFSET 0) b ON true \
         ORDER BY n, released_at, mine.id"
    };
}

/// Calls without key and execution, many in one. Again after a lost answer it waits for the old backend, and changes
/// nothing where that has committed.
pub const ACCEPT: &str = concat!(
    "WITH ",
    me!(),
    ", given AS (SELECT g.*, me.incarnation FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], \
     $8::bytea[], $9::bytea[], $10::bytea[], $11::bytea[], $12::smallint[], $13::bigint[], $14::bigint[], \
     $15::bigint[], $16::smallint[], $17::bigint[]) AS g(id, tenant, workflow, step, host, form, body, sealed, slot, course, \
     destination, created_at, expires_in, gathers, weight), me), \
     made AS (INSERT INTO send (id, tenant, workflow, step, host, created_at, form, sealed) \
     SELECT id, tenant, workflow, step, host, created_at, form, sealed FROM given ON CONFLICT (id) DO NOTHING \
     RETURNING id), \
     bodies AS (INSERT INTO send_body (id, bytes) SELECT id, body FROM given JOIN made USING (id) \
     WHERE body IS NOT NULL), \
     lives AS (INSERT INTO live (id, tenant, incarnation, held, destination, created_at, expires_in, released_at, \
     began_at, slot, gathers, weight, batcher) SELECT id, tenant, CASE WHEN course <> 0 AND gathers IS NULL THEN incarnation END, \
     false, destination, created_at, expires_in, created_at, CASE WHEN course = 2 THEN created_at END, slot, gathers, weight, \
     CASE WHEN course = 1 AND gathers IS NOT NULL THEN incarnation END FROM given JOIN made USING (id)), \
     waits AS (INSERT INTO queue (tenant, released_at, id, destination, expires_at) \
     SELECT tenant, created_at, id, destination, \
     created_at + least(expires_in, 9223372036854775807 - created_at) \
     FROM given JOIN made USING (id) WHERE course = 0 AND gathers IS NULL), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT incarnation, tenant, 0, count(*), count(*) FILTER (WHERE course = 0 AND gathers IS NULL) FROM given JOIN made USING (id) \
     WHERE course <> 2 GROUP BY incarnation, tenant), \
     kept AS (INSERT INTO kept_since (tenant, day, records, bodies) SELECT tenant, created_at / 86400000000000, \
     sum(512 + octet_length(form) + coalesce(octet_length(sealed), 0)), coalesce(sum(octet_length(body)), 0) \
     FROM given JOIN made USING (id) GROUP BY 1, 2) \
     SELECT count(*) FROM me"
);

/// What the statements that accept count for each send beside its bytes.
pub const KEPT_OF_SEND: u64 = 512;

/// Which of these were accepted: asked where the answer to [`ACCEPT`] was lost, and it cannot be made again.
pub const ACCEPTED: &str = "SELECT id FROM send WHERE id = ANY($1::uuid[]) LIMIT 1";

/// Ends what nobody is there to deliver: whoever has claimed it by now finds it gone, and of what is begun this session's
/// alone is taken. Whether this session is in force or not: that nothing is made is always safe.
pub const UNDO: &str = "WITH given AS MATERIALIZED (SELECT * FROM unnest($2::uuid[], $3::text[], $4::bigint[], \
     $5::bigint[], $6::bytea[]) WITH ORDINALITY AS g(id, tenant, released_at, began_at, form, n)), \
     unqueued AS (DELETE FROM queue q USING given g WHERE q.tenant = g.tenant AND q.released_at = g.released_at \
     AND q.id = g.id RETURNING q.id), \
     gone AS (DELETE FROM live l USING given g WHERE l.id = g.id AND l.batch IS NULL AND (l.began_at IS NULL \
     OR l.incarnation = $1::bigint AND l.began_at = g.began_at) AND (SELECT count(*) FROM unqueued) >= 0 \
     RETURNING l.id, l.held, l.began_at, l.incarnation, l.gathers), \
     ended AS (SELECT g.id, g.tenant, g.form, gone.began_at, gone.held::int::bigint AS held, \
     (NOT gone.held AND gone.began_at IS NULL)::int::bigint AS queued, \
     (NOT gone.held AND gone.began_at IS NULL AND gone.incarnation IS NULL AND gone.gathers IS NULL)::int::bigint \
     AS unclaimed, \
     (SELECT tail_now()) | (row_number() OVER (ORDER BY g.n)) AS seq FROM given g JOIN gone USING (id)), \
     ends AS (INSERT INTO done (id, seq, tenant, outcome, code, started_at, finished_at, node, form) \
     SELECT id, seq, tenant, $7::smallint, $8::smallint, began_at, $9::bigint, $10::text, form FROM ended), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT $1, tenant, -sum(held), -sum(queued), -sum(unclaimed) FROM ended GROUP BY tenant), \
     minutes AS (INSERT INTO hour (minute, tenant, outcome, n) \
     SELECT $9::bigint / 60000000000, tenant, $7::smallint, count(*) FROM ended GROUP BY tenant) \
     SELECT id, seq, tenant, held, queued, unclaimed FROM ended ORDER BY seq";

pub const ACCEPT_CALL: &str = "WITH called AS MATERIALIZED (SELECT o_verdict, o_places, o_before FROM accept_sends($1, $2, \
     $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)), \
     kept AS (INSERT INTO kept_since (tenant, day, records, bodies) SELECT $3, g.created_at / 86400000000000, \
     sum(512 + octet_length(g.form) + coalesce(octet_length(g.sealed), 0)), coalesce(sum(octet_length(g.body)), 0) \
     FROM called, unnest($16::bytea[], $17::bytea[], $18::bytea[], $22::bigint[]) AS g(form, body, sealed, created_at) \
     WHERE called.o_verdict = 0 GROUP BY 2) \
     SELECT o_verdict, o_places, o_before FROM called";

pub const BEGIN: &str = concat!(
    "WITH ",
    me!(),
    ", begun AS (UPDATE live l SET began_at = g.at FROM unnest($3::uuid[], $4::text[], $5::bigint[]) \
     AS g(id, tenant, at), me WHERE l.id = g.id AND l.tenant = g.tenant AND l.incarnation = me.incarnation \
     AND l.began_at IS NULL RETURNING l.id, l.tenant), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT $1, tenant, 0, -count(*), 0 FROM begun GROUP BY tenant) \
     SELECT (SELECT count(*) FROM me), (SELECT array_agg(id) FROM begun)"
);

/// Which of these this session has begun at these very times: asked where the answer to [`BEGIN`] was lost.
pub const BEGUN: &str = "SELECT l.id FROM live l JOIN unnest($2::uuid[], $3::bigint[]) AS g(id, at) ON l.id = g.id \
     WHERE l.incarnation = $1 AND l.began_at = g.at";

/// What a delivery needs and memory no longer has.
pub const SPECS: &str = "SELECT g.id, (SELECT s.form FROM send s WHERE s.id = g.id), \
     (SELECT s.sealed FROM send s WHERE s.id = g.id), (SELECT l.slot FROM live l WHERE l.id = g.id), \
     (SELECT b.bytes FROM send_body b WHERE b.id = g.id) FROM unnest($1::uuid[]) AS g(id)";

/// Of the tenants `$13` the form of `$14` is kept, where there is one, and no body.
///
/// A begun one's end is taken from whoever began it, in force or not; one that was only claimed or gathered from who is. Of a
/// closed batch's whoever writes it, once the batch has its own: it is the same. Before that, from who carries it and is in
/// force.
pub const FINISH: &str = concat!(
    "WITH ",
    in_force!(),
    ", given AS (SELECT * FROM unnest($2::uuid[], $3::smallint[], $4::smallint[], $5::smallint[], $6::text[], \
     $7::text[], $8::bigint[], $9::bigint[], $10::bytea[], $11::bytea[], $14::bytea[]) WITH ORDINALITY AS g(id, outcome, code, \
     status, source, public, started_at, finished_at, whole, body, bare, n)), \
     gone AS (DELETE FROM live l USING given g WHERE l.id = g.id AND CASE WHEN l.gathers IS NULL \
     THEN l.incarnation = $1 AND (l.began_at IS NOT NULL OR EXISTS (SELECT FROM me)) \
     WHEN l.batch IS NULL THEN l.batcher = $1 AND EXISTS (SELECT FROM me) \
     ELSE EXISTS (SELECT FROM batch b WHERE b.id = l.batch AND (b.ended OR b.incarnation = $1 AND EXISTS (SELECT FROM me))) END \
     RETURNING l.id, l.tenant, l.began_at, l.created_at), \
     ended AS (SELECT g.*, gone.tenant, gone.began_at, gone.created_at, \
     g.bare IS NOT NULL AND gone.tenant = ANY ($13::text[]) AS is_bare, \
     CASE WHEN gone.tenant = ANY ($13) THEN coalesce(g.bare, g.whole) ELSE g.whole END AS form, \
     (SELECT tail_now()) | (row_number() OVER (ORDER BY g.n)) AS seq \
     FROM given g JOIN gone USING (id)), \
     ends AS (INSERT INTO done (id, seq, tenant, outcome, code, status, source, public, started_at, finished_at, node, \
     form) SELECT id, seq, tenant, outcome, code, status, source, public, started_at, finished_at, $12::text, form \
     FROM ended), \
     bodies AS (INSERT INTO done_body (id, bytes) SELECT id, body FROM ended WHERE body IS NOT NULL \
     AND NOT is_bare), \
     kept AS (INSERT INTO kept_since (tenant, day, records, bodies) SELECT tenant, created_at / 86400000000000, \
     sum(octet_length(form)), coalesce(sum(octet_length(body)) FILTER (WHERE NOT is_bare), 0) FROM ended \
     GROUP BY 1, 2), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT $1, tenant, 0, -count(*), 0 FROM ended WHERE began_at IS NULL GROUP BY tenant), \
     minutes AS (INSERT INTO hour (minute, tenant, outcome, n) \
     SELECT finished_at / 60000000000, tenant, outcome, count(*) FROM ended GROUP BY 1, 2, 3) \
     SELECT id, seq, tenant, began_at IS NULL FROM ended"
);

/// How those that had no end from [`FINISH`] stand.
pub const WHY_NOT_FINISHED: &str = "SELECT g.id, l.incarnation = $2::bigint AND l.began_at IS NULL OR l.batcher = $2 \
     OR EXISTS (SELECT FROM batch b WHERE b.id = l.batch AND b.incarnation = $2), d.seq, d.form FROM unnest($1::uuid[]) AS g(id) \
     LEFT JOIN live l ON l.id = g.id LEFT JOIN LATERAL (SELECT seq, form FROM done WHERE done.id = g.id) d ON true";

/// Ends that the store gives to what waits and is nobody's: `$3` tells the queue's key, NULL a held one's.
pub const END_WAITING: &str = concat!(
    "WITH ",
    in_force!(),
    ", given AS (SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::bytea[]) WITH ORDINALITY \
     AS g(id, released_at, tenant, form, n), me), \
     unqueued AS (DELETE FROM queue q USING given g WHERE q.tenant = g.tenant AND q.released_at = g.released_at \
     AND q.id = g.id RETURNING q.id), \
     gone AS (DELETE FROM live l USING given g WHERE l.id = g.id AND l.began_at IS NULL AND l.incarnation IS NULL \
     AND l.batcher IS NULL AND l.batch IS NULL AND (l.held AND g.released_at IS NULL \
     OR NOT l.held AND (l.gathers IS NOT NULL OR EXISTS (SELECT FROM unqueued u WHERE u.id = l.id))) \
     RETURNING l.id, l.held, l.gathers), \
     ended AS (SELECT g.*, gone.held, gone.gathers IS NOT NULL AS gathers, (SELECT tail_now()) | (row_number() OVER (ORDER BY g.n)) \
     AS seq FROM given g JOIN gone USING (id)), \
     ends AS (INSERT INTO done (id, seq, tenant, outcome, code, finished_at, node, form) \
     SELECT id, seq, tenant, $6::smallint, $7::smallint, $8::bigint, $9::text, form FROM ended), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT $1, tenant, -count(*) FILTER (WHERE held), -count(*) FILTER (WHERE NOT held), \
     -count(*) FILTER (WHERE NOT held AND NOT gathers) FROM ended GROUP BY tenant), \
     minutes AS (INSERT INTO hour (minute, tenant, outcome, n) \
     SELECT $8::bigint / 60000000000, tenant, $6::smallint, count(*) FROM ended GROUP BY tenant) \
     SELECT id, seq, tenant, held, gathers FROM ended ORDER BY seq"
);

/// Those of these that a sweep of this node ended at this time: asked where the answer to [`END_WAITING`] was lost.
pub const ENDED_BY: &str =
    "SELECT id, seq, tenant FROM done WHERE id = ANY($1::uuid[]) AND node = $2::text AND finished_at = $3::bigint";

/// What a dead incarnation had begun, once nothing of it can be on the wire any more.
pub const INTERRUPTED: &str = "SELECT l.id, l.incarnation, l.created_at, l.released_at, l.began_at FROM live l \
     WHERE l.began_at IS NOT NULL AND l.incarnation IN (SELECT incarnation FROM node WHERE dead_at IS NOT NULL \
     AND dead_at + make_interval(secs => $1::float8) <= clock_timestamp()) ORDER BY l.id LIMIT $2::bigint";

pub const END_INTERRUPTED: &str = "WITH given AS (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], \
     $4::bytea[]) WITH ORDINALITY AS g(id, incarnation, started_at, form, n)), \
     gone AS (DELETE FROM live l USING given g WHERE l.id = g.id AND l.incarnation = g.incarnation \
     AND l.began_at IS NOT NULL RETURNING l.id, l.tenant), \
     ended AS (SELECT g.*, gone.tenant, (SELECT tail_now()) | \
     (row_number() OVER (ORDER BY g.n)) AS seq FROM given g JOIN gone USING (id)), \
     ends AS (INSERT INTO done (id, seq, tenant, outcome, code, started_at, finished_at, node, form) \
     SELECT id, seq, tenant, $5::smallint, $6::smallint, started_at, $7::bigint, \
     (SELECT name FROM node WHERE node.incarnation = ended.incarnation), form FROM ended), \
     minutes AS (INSERT INTO hour (minute, tenant, outcome, n) \
     SELECT $7::bigint / 60000000000, tenant, $5::smallint, count(*) FROM ended GROUP BY tenant) \
     SELECT id, seq, tenant FROM ended ORDER BY seq";

/// Where no destination is full: in the order of release.
pub const CLAIM: &str = concat!(
    "WITH ",
    in_force!(),
    ", picked AS MATERIALIZED (SELECT w.n, p.tenant, p.released_at, p.id \
     FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS w(tenant, room, n), me, \
     LATERAL (SELECT q.tenant, q.released_at, q.id FROM queue q WHERE q.tenant = w.tenant \
     ORDER BY q.released_at, q.id LIMIT w.room FOR UPDATE OF q SKIP LOCKED) p LIMIT $4::bigint), ",
    claim_end!()
);

/// Where some are: `$4` and `$5` say which. From so many of the others as there are, or as are found from `$6` on; each
/// costs one probe of an index, however much waits for it or for a full one.
pub const CLAIM_AROUND: &str = concat!(
    "WITH RECURSIVE ",
    in_force!(),
    ", wants AS MATERIALIZED (SELECT w.n, w.tenant, w.room, (SELECT coalesce(array_agg(f.destination), '{}') \
     FROM unnest($4::bigint[], $5::bigint[]) AS f(n, destination) WHERE f.n = w.n) AS full_ones \
     FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS w(tenant, room, n), me), \
     steps AS (SELECT w.n, w.tenant, w.full_ones, 64 + cardinality(w.full_ones) AS left, $6::bigint AS place, \
     false AS is_one, false AS wrapped FROM wants w \
     UNION ALL SELECT s.n, s.tenant, s.full_ones, s.left - 1, coalesce(next.place, -9223372036854775808), \
     next.place IS NOT NULL, s.wrapped OR next.place IS NULL FROM steps s, LATERAL (SELECT (SELECT q.destination \
     FROM queue q WHERE q.tenant = s.tenant AND q.destination > s.place ORDER BY q.destination LIMIT 1) AS place) AS next \
     WHERE s.left > 0 AND NOT (s.wrapped AND (next.place IS NULL OR next.place > $6::bigint))), \
     free AS MATERIALIZED (SELECT s.n, s.place AS destination, count(*) OVER (PARTITION BY s.n) AS others \
     FROM steps s WHERE s.is_one AND s.place <> ALL (s.full_ones)), \
     candidates AS MATERIALIZED (SELECT w.n, p.tenant, p.released_at, p.id FROM wants w JOIN free ON free.n = w.n, \
     LATERAL (SELECT q.tenant, q.released_at, q.id FROM queue q WHERE q.tenant = w.tenant \
     AND q.destination = free.destination ORDER BY q.released_at, q.id \
     LIMIT least(2 * w.room, greatest(2 * w.room / free.others, 64))) p), \
     picked AS MATERIALIZED (SELECT w.n, p.tenant, p.released_at, p.id FROM wants w, LATERAL (SELECT q.tenant, \
     q.released_at, q.id FROM candidates c JOIN queue q ON q.tenant = c.tenant AND q.released_at = c.released_at \
     AND q.id = c.id WHERE c.n = w.n ORDER BY c.released_at, c.id LIMIT w.room FOR UPDATE OF q SKIP LOCKED) p \
     LIMIT $7::bigint), ",
    claim_end!()
);

pub const GIVE_BACK: &str = concat!(
    "WITH ",
    in_force!(),
    ", back AS (UPDATE live l SET incarnation = NULL FROM me WHERE l.id = ANY($2::uuid[]) \
     AND l.incarnation = me.incarnation AND l.began_at IS NULL \
     RETURNING l.id, l.tenant, l.released_at, l.destination, l.expires_in), \
     let_go AS (UPDATE live l SET batcher = NULL FROM me WHERE l.id = ANY($2) AND l.batcher = me.incarnation \
     AND l.batch IS NULL), \
     waits AS (INSERT INTO queue (tenant, released_at, id, destination, expires_at) \
     SELECT tenant, released_at, id, destination, ",
    expires_at!(),
    " FROM back), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT $1, tenant, 0, 0, count(*) FROM back GROUP BY tenant) \
     SELECT (SELECT count(*) FROM me), (SELECT array_agg(tenant) FROM back)"
);

/// What this session has claimed, or begun and sent nothing of, is claimed by `$2` from now on, where that one is in force:
/// it finds that out by `handed`, and where it dies before it is adopted as what is its own.
pub const HAND_OVER: &str = concat!(
    "WITH ",
    in_force!(),
    ", mine AS MATERIALIZED (SELECT l.id, l.began_at IS NOT NULL AS was_begun FROM live l, me \
     WHERE l.id = ANY($3::uuid[]) AND l.incarnation = me.incarnation AND EXISTS (SELECT FROM node n \
     WHERE n.incarnation = $2::bigint AND n.dead_at IS NULL) ORDER BY l.id FOR UPDATE OF l), \
     moved AS (UPDATE live l SET incarnation = $2, began_at = NULL FROM mine WHERE l.id = mine.id \
     AND l.incarnation = $1 RETURNING l.id, l.tenant, mine.was_begun), \
     told AS (INSERT INTO handed (incarnation, id) SELECT $2, id FROM moved), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT $1, tenant, 0, count(*), 0 FROM moved WHERE was_begun GROUP BY tenant) \
     SELECT id, tenant, was_begun FROM moved"
);

/// Those of these that are this session's: asked where the answer to [`HAND_OVER`] was lost.
pub const MINE_AMONG: &str = "SELECT id FROM live WHERE id = ANY($2::uuid[]) AND incarnation = $1::bigint";

/// What others have claimed for this session.
pub const TAKE_HANDED: &str = "WITH gone AS (DELETE FROM handed WHERE incarnation = $1::bigint RETURNING id) \
     SELECT DISTINCT ON (l.id) l.id, l.tenant, l.created_at, l.released_at, l.expires_in, \
     (SELECT s.form FROM send s WHERE s.id = l.id) FROM gone JOIN live l ON l.id = gone.id \
     WHERE l.incarnation = $1 AND l.began_at IS NULL ORDER BY l.id";

/// For who is not there to come for it.
pub const FORGET_HANDED: &str = "DELETE FROM handed h WHERE NOT EXISTS (SELECT FROM node n \
     WHERE n.incarnation = h.incarnation AND n.dead_at IS NULL)";

/// What this session has claimed and not begun, or gathers.
pub const CLAIMED: &str = "SELECT id FROM live WHERE incarnation = $1::bigint AND began_at IS NULL \
     UNION ALL SELECT id FROM live WHERE batcher = $1 AND gathers IS NOT NULL AND batch IS NULL AND NOT held";

/// What this session began before that.
pub const BEGUN_BEFORE: &str = "SELECT id, tenant, created_at, released_at, began_at FROM live \
     WHERE incarnation = $1::bigint AND began_at < $2::bigint";

/// What the dead had claimed is nobody's again. A later statement than the one that declares them dead, and repeated:
/// what another adopter holds is passed over, and comes back where that one dies.
pub const ADOPT: &str = concat!(
    "WITH theirs AS MATERIALIZED (SELECT l.id FROM live l WHERE l.began_at IS NULL AND l.incarnation IN \
     (SELECT incarnation FROM node WHERE dead_at IS NOT NULL) ORDER BY l.id LIMIT $1::bigint \
     FOR UPDATE OF l SKIP LOCKED), \
     back AS (UPDATE live l SET incarnation = NULL FROM theirs WHERE l.id = theirs.id AND l.began_at IS NULL \
     AND l.incarnation IS NOT NULL RETURNING l.id, l.tenant, l.released_at, l.destination, l.expires_in), \
     waits AS (INSERT INTO queue (tenant, released_at, id, destination, expires_at) \
     SELECT tenant, released_at, id, destination, ",
    expires_at!(),
    " FROM back), \
     counted AS (INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) \
     SELECT $2::bigint, tenant, 0, 0, count(*) FROM back GROUP BY tenant) \
     SELECT tenant, count(*) FROM back GROUP BY tenant"
);

/// Those whose lease is over, by one whose own has been unbroken for a whole lease.
pub const DECLARE_DEAD: &str = "UPDATE node SET dead_at = clock_timestamp() WHERE dead_at IS NULL \
     AND lease_until < clock_timestamp() AND incarnation <> $1::bigint AND EXISTS (SELECT FROM node m \
     WHERE m.incarnation = $1 AND m.dead_at IS NULL AND m.lease_until > clock_timestamp() \
     AND m.unbroken_since <= clock_timestamp() - make_interval(secs => $2::float8)) \
     RETURNING name, incarnation";

/// Dead ones that something still names, or may: an hour later nothing new does.
pub const FORGET_DEAD: &str = "DELETE FROM node n WHERE n.dead_at < clock_timestamp() - interval '1 hour' \
     AND NOT EXISTS (SELECT FROM live l WHERE l.incarnation = n.incarnation) \
     AND NOT EXISTS (SELECT FROM live l WHERE l.batcher = n.incarnation AND l.gathers IS NOT NULL AND l.batch IS NULL \
     AND NOT l.held) AND NOT EXISTS (SELECT FROM batch b WHERE b.incarnation = n.incarnation AND NOT b.done)";

/// Whether there is a dead one, what this one has to have loaded, and whether something was handed to it.
pub const LOOK: &str = "SELECT EXISTS (SELECT FROM node WHERE dead_at IS NOT NULL), \
     (SELECT suspensions FROM node WHERE incarnation = $1::bigint AND dead_at IS NULL), \
     EXISTS (SELECT FROM handed WHERE incarnation = $1)";

/// Of the oldest transaction other roles' are seen by who may (`pg_monitor`).
pub const MEASURES: &str = "SELECT (SELECT count(*) FROM node WHERE dead_at IS NULL), \
     (SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = current_schema() \
     AND relname IN ('live', 'queue', 'tally', 'hour', 'node')), \
     (SELECT coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity)";

pub const RENEW: &str = "UPDATE node SET unbroken_since = CASE WHEN lease_until < clock_timestamp() \
     THEN clock_timestamp() ELSE unbroken_since END, lease_until = clock_timestamp() + make_interval(secs => $2::float8), \
     renewed_at = clock_timestamp(), queued = $3::bigint, in_flight = $4::bigint \
     WHERE incarnation = $1::bigint AND dead_at IS NULL RETURNING suspensions";

/// What it carries is nobody's, as nothing of it is on the wire.
pub const LEAVE_BATCHES: &str =
    "UPDATE batch SET incarnation = NULL, taken = false WHERE incarnation = $1::bigint AND NOT done";

/// It leaves by itself.
pub const LEAVE: &str =
    "UPDATE node SET dead_at = clock_timestamp() WHERE incarnation = $1::bigint AND dead_at IS NULL";

pub const STANDING: &str = "SELECT suspensions, lease_until > clock_timestamp() FROM node \
     WHERE incarnation = $1::bigint AND dead_at IS NULL";

/// Held by the connection of a process that lives: a second one of the same name is told, and a dead one's is free.
pub const TAKE_NAME: &str = "SELECT pg_try_advisory_lock(hashtext(current_schema()), hashtext('node ' || $1::text)), \
     EXISTS (SELECT FROM node WHERE name = $1 AND dead_at IS NULL AND lease_until > clock_timestamp())";

/// The database's clock, in microseconds since 1970. Nothing is waited for.
pub const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

pub const JOIN: &str = "SELECT o_incarnation, o_suspensions FROM node_join($1::text, $2::text, $3::float8)";

pub const END_EXECUTION: &str = "SELECT o_state, o_first, o_count, o_ended, o_seqs, o_unclaimed FROM close_execution($1, $2, $3, $4, $5, $6, $7, $8, $9)";

pub const OVERDUE: &str = "SELECT tenant, execution FROM execution WHERE state = 0 AND opened_at < $1::bigint \
     ORDER BY opened_at, tenant, execution LIMIT $2::bigint";

/// Of what is in the queue, and of events that nobody gathers.
pub const EXPIRED: &str = "(SELECT q.id, q.tenant, q.released_at, \
     (SELECT l.created_at FROM live l WHERE l.id = q.id) FROM queue q WHERE q.expires_at <= $1::bigint \
     ORDER BY q.expires_at LIMIT $2::bigint) \
     UNION ALL (SELECT l.id, l.tenant, l.released_at, l.created_at FROM live l WHERE l.batcher IS NULL \
     AND l.gathers IS NOT NULL AND l.batch IS NULL AND NOT l.held AND l.released_at <= $1 - l.expires_in LIMIT $2) LIMIT $2";

/// What waits and is nobody's, a page at a time.
pub const WAITING: &str = "SELECT l.id, l.tenant, l.created_at, l.released_at, \
     (SELECT s.workflow FROM send s WHERE s.id = l.id), (SELECT s.form FROM send s WHERE s.id = l.id) \
     FROM live l WHERE l.id > $1::uuid AND l.began_at IS NULL AND l.incarnation IS NULL AND l.batcher IS NULL \
     AND l.batch IS NULL ORDER BY l.id LIMIT $2::bigint";

pub const REPLAY: &str =
    "SELECT fingerprint, at, sends FROM idem WHERE tenant = $1::text AND path = $2::text AND key = $3::text";

// Counts.

pub const TALLY: &str = "SELECT tenant, sum(held)::bigint, sum(queued)::bigint, sum(unclaimed)::bigint FROM tally \
     WHERE incarnation <> $1::bigint GROUP BY tenant";

pub const TALLY_OF: &str = "SELECT tenant, sum(held)::bigint, sum(queued)::bigint, sum(unclaimed)::bigint FROM tally \
     WHERE incarnation = $1::bigint GROUP BY tenant";

pub const OLDEST: &str = "SELECT t.tenant, (SELECT q.released_at FROM queue q WHERE q.tenant = t.tenant \
     ORDER BY q.released_at, q.id LIMIT 1) FROM unnest($1::text[]) AS t(tenant)";

pub const COMPACT_TALLY: &str = "WITH gone AS (DELETE FROM tally RETURNING incarnation, tenant, held, queued, \
     unclaimed) INSERT INTO tally (incarnation, tenant, held, queued, unclaimed) SELECT incarnation, tenant, sum(held), \
     sum(queued), sum(unclaimed) FROM gone GROUP BY incarnation, tenant \
     HAVING (sum(held), sum(queued), sum(unclaimed)) <> (0, 0, 0)";

pub const COMPACT_KEPT: &str = "WITH gone AS (DELETE FROM kept_since RETURNING tenant, day, records, bodies) \
     INSERT INTO kept AS known (tenant, day, records, bodies) SELECT tenant, day, sum(records), sum(bodies) FROM gone \
     GROUP BY 1, 2 ORDER BY 1, 2 ON CONFLICT (tenant, day) DO UPDATE SET records = known.records + excluded.records, \
     bodies = known.bodies + excluded.bodies";

/// Who keeps more than so much.
pub const KEPT: &str = "SELECT tenant, sum(records + bodies)::bigint FROM kept GROUP BY tenant \
     HAVING sum(records + bodies) > $1::bigint";

/// Of the days before these their records and their bodies are dropped.
pub const FORGET_KEPT: [&str; 2] =
    ["DELETE FROM kept WHERE day < $1::bigint", "UPDATE kept SET bodies = 0 WHERE day < $1::bigint AND bodies <> 0"];

pub const COMPACT_HOUR: &str = "WITH newest AS MATERIALIZED (SELECT max(minute) AS minute FROM hour), \
     gone AS (DELETE FROM hour RETURNING minute, tenant, outcome, n) \
     INSERT INTO hour (minute, tenant, outcome, n) SELECT g.minute, tenant, outcome, sum(n) FROM gone g, newest \
     WHERE g.minute > newest.minute - 120 GROUP BY g.minute, tenant, outcome";

pub const HOUR: &str =
    "SELECT tenant, outcome, sum(n)::bigint FROM hour WHERE minute > $1::bigint GROUP BY tenant, outcome";

/// Counts ends that came since, `$1` at most. `$2` are the times in nanoseconds, `$3` how many hosts of a tenant are told apart, `$4` the
/// outcome of those that nobody saw end: they have no time. `$5` are the numbers of
/// the times, of what is beyond them, and of no time.
macro_rules! count_stats {
    ($lock:literal) => {
        concat!(
            "WITH at AS MATERIALIZED (SELECT seq FROM stat_place FOR UPDATE",
            $lock,
            "), \
     bound AS MATERIALIZED (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + tail_base) << 20 AS seq \
     FROM tier), \
     ends AS MATERIALIZED (SELECT d.seq, d.tenant, d.outcome, d.public, d.finished_at / 300000000000 AS slot, \
     (SELECT s.host FROM send s WHERE s.id = d.id) AS host, d.outcome = 0 AS delivered, \
     CASE WHEN d.started_at IS NULL OR d.outcome = $4::smallint THEN ($5::smallint[])[cardinality($2::bigint[]) + 2] \
     ELSE ($5::smallint[])[width_bucket(d.finished_at - d.started_at - 1, $2::bigint[]) + 1] END AS took \
     FROM at, bound, LATERAL (SELECT id, seq, tenant, outcome, public, started_at, finished_at FROM done WHERE done.seq > at.seq AND done.seq < bound.seq \
     ORDER BY done.seq LIMIT $1::bigint) d), \
     hosts AS (SELECT slot, tenant, host, row_number() OVER (PARTITION BY slot, tenant ORDER BY count(*) DESC, host) AS n \
     FROM ends WHERE host IS NOT NULL GROUP BY 1, 2, 3), \
     told AS (SELECT v.tenant, v.told_by, w.seconds, e.slot / (w.seconds / 300) AS slot, v.value, e.delivered, e.took \
     FROM ends e LEFT JOIN hosts h ON h.slot = e.slot AND h.tenant = e.tenant AND h.host = e.host AND h.n <= $3::bigint, \
     LATERAL (VALUES (300), (3600)) AS w(seconds), \
     LATERAL (VALUES (e.tenant, 0, e.outcome::text), ('', 0, e.outcome::text), (e.tenant, 1, coalesce(h.host, '')), \
     ('', 1, coalesce(h.host, '')), (e.tenant, 2, coalesce(e.public, '')), ('', 2, coalesce(e.public, '')), \
     (e.tenant, 3, e.tenant), ('', 3, e.tenant)) AS v(tenant, told_by, value)), \
     put AS (INSERT INTO stat AS known (tenant, told_by, seconds, slot, value, delivered, took, n) \
     SELECT tenant, told_by, seconds, slot, value, delivered, took, count(*) FROM told GROUP BY 1, 2, 3, 4, 5, 6, 7 \
     ORDER BY 1, 2, 3, 4, 5, 6, 7 ON CONFLICT (tenant, told_by, seconds, slot, value, delivered, took) \
     DO UPDATE SET n = known.n + excluded.n), \
     counted AS (UPDATE stat_place SET seq = newest.seq FROM (SELECT max(seq) AS seq FROM ends) AS newest \
     WHERE newest.seq IS NOT NULL) \
     SELECT count(*) FROM ends"
        )
    };
}

/// Behind whoever is at it.
pub const COUNT_STATS: &str = count_stats!("");
/// Nothing, where somebody is at it.
pub const COUNT_STATS_IF_FREE: &str = count_stats!(" SKIP LOCKED");

/// What is counted of a tenant (or of all) under each value.
pub const STATS_CHOOSING: &str = "SELECT value, delivered, sum(n)::bigint FROM stat WHERE tenant = $1::text \
     AND told_by = $2::smallint AND seconds = $3::int AND slot >= $4::bigint AND slot < $5::bigint GROUP BY 1, 2";

/// The same in buckets of `$6` slots, with those values that are not among `$7` as one.
pub const STATS: &str = "SELECT CASE WHEN value = ANY ($7::text[]) THEN value ELSE '' END, slot / $6::bigint, delivered, \
     took, sum(n)::bigint FROM stat WHERE tenant = $1::text AND told_by = $2::smallint AND seconds = $3::int \
     AND slot >= $4::bigint AND slot < $5::bigint GROUP BY 1, 2, 3, 4";

pub const FORGET_STATS: &str = "DELETE FROM stat WHERE seconds * slot < $1::bigint";

pub const FORGET_KEYS: &str = "DELETE FROM idem WHERE at < $1::bigint";

// Records.

pub const SENDS: &str = "SELECT id, form, place, created_at FROM send WHERE id = ANY($1::uuid[])";
/// With the batch of each that is in one: while two of its place are there, one of them is being closed, and which of them it
/// is in is told a moment later.
pub const LIVES: &str = "SELECT l.id, l.held, l.released_at, l.began_at, coalesce(b.id, g.id), coalesce(b.closes_at, g.closes_at) \
     FROM live l LEFT JOIN batch b ON b.id = l.batch LEFT JOIN LATERAL (SELECT (array_agg(g.id))[1] AS id, min(g.closes_at) AS closes_at \
     FROM gathering g WHERE l.batch IS NULL AND l.batcher IS NOT NULL AND g.incarnation = l.batcher AND g.tenant = l.tenant \
     AND g.destination = l.destination HAVING count(*) = 1) g ON true WHERE l.id = ANY($1::uuid[])";
pub const DONE_AMONG: &str = "SELECT id FROM done WHERE id = ANY($1::uuid[])";
pub const DONES: &str = "SELECT id, form, node FROM done WHERE id = ANY($1::uuid[])";
pub const SEND_BODIES: &str = "SELECT id, bytes FROM send_body WHERE id = ANY($1::uuid[])";
pub const DONE_BODIES: &str = "SELECT id, bytes FROM done_body WHERE id = ANY($1::uuid[])";

pub const EXECUTION: &str = "SELECT state, next FROM execution WHERE tenant = $1::text AND execution = $2::text";
pub const MEMBERS: &str = "SELECT id, place FROM send WHERE tenant = $1::text AND execution = $2::text AND place >= $3::int \
     ORDER BY place LIMIT $4::bigint";
/// How many of each of these executions' sends are left, are done, and were delivered.
pub const SENDS_OF_EXECUTIONS: &str = "SELECT e.sends, e.done, e.delivered \
     FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS g(tenant, execution, n), \
     LATERAL (SELECT count(*) AS sends, count(d.id) AS done, count(*) FILTER (WHERE d.outcome = 0) AS delivered \
     FROM send s LEFT JOIN done d ON d.id = s.id WHERE s.tenant = g.tenant AND s.execution = g.execution) e ORDER BY g.n";

/// Before sends go, those between `$1` and `$2`: of the executions that have others from `$3` on, the oldest of these is
/// noted. Whose sends are all here, as most are, is seen by their number.
pub const STAND_FOR_EXECUTIONS: &str = "WITH going AS MATERIALIZED (SELECT tenant, execution, max(place) AS place \
     FROM send WHERE id >= $1::uuid AND id < $2::uuid AND execution IS NOT NULL GROUP BY 1, 2), \
     on_and_on AS MATERIALIZED (SELECT g.tenant, g.execution FROM going g JOIN execution x \
     ON x.tenant = g.tenant AND x.execution = g.execution WHERE x.next > g.place + 1), \
     standing AS MATERIALIZED (SELECT o.tenant, o.execution, (SELECT s.id FROM send s WHERE s.tenant = o.tenant \
     AND s.execution = o.execution AND s.id >= $3::uuid ORDER BY s.place LIMIT 1) AS id FROM on_and_on o) \
     UPDATE execution x SET oldest = s.id FROM standing s \
     WHERE x.tenant = s.tenant AND x.execution = s.execution AND x.oldest IS DISTINCT FROM s.id";

/// Ends below the oldest transaction that is still open, which none can come before any more. The last column tells
/// whether there are ends beyond it.
pub const TAIL: &str = "WITH bound AS MATERIALIZED (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint \
     + tail_base) << 20 AS seq FROM tier) SELECT d.id, d.seq, bound.seq FROM bound, LATERAL (SELECT id, seq FROM done WHERE done.seq > $1::bigint \
     AND done.seq < bound.seq ORDER BY done.seq LIMIT $2::bigint) d";

/// The newest end that is there, and the bound below which the tail is told.
pub const NEWEST: &str = "SELECT (SELECT seq FROM done ORDER BY seq DESC LIMIT 1), \
     (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + tail_base) << 20 FROM tier)";

/// The newest end below this bound.
pub const NEWEST_BELOW: &str = "SELECT seq FROM done WHERE seq < $1::bigint ORDER BY seq DESC LIMIT 1";

/// Where the newest end is from a cluster whose transactions were counted further than this one's: the tail's places go
/// on after it. All that this statement sees was made by transactions before its snapshot's bound.
pub const TAIL_GOES_ON: &str = "UPDATE tier SET tail_base = newest.number + 1 \
     - pg_snapshot_xmax(pg_current_snapshot())::text::bigint FROM (SELECT max(seq) >> 20 AS number FROM done) AS newest \
     WHERE newest.number >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint + tail_base";

/// The database is a copy of an earlier moment: what waits in it may have been made since. It ends as what was begun by
/// a node that is long dead.
pub const CALL_OFF: [&str; 6] = [
    "UPDATE node SET dead_at = clock_timestamp() WHERE dead_at IS NULL",
    "WITH past AS (INSERT INTO node (name, version, suspensions, lease_until, dead_at) \
     VALUES ('restored', '', 0, '-infinity', '-infinity') RETURNING incarnation) \
     UPDATE live SET incarnation = past.incarnation, held = false, began_at = -1, gathers = NULL, batcher = NULL, \
     batch = NULL FROM past WHERE began_at IS NULL",
    // Whoever takes one finds none of its sends.
    "UPDATE batch SET incarnation = NULL, taken = false WHERE NOT done",
    "DELETE FROM gathering",
    "DELETE FROM queue",
    "DELETE FROM tally",
];

/// The oldest that is not done: its day stays.
pub const OLDEST_LIVE: &str = "SELECT id FROM live ORDER BY id LIMIT 1";

pub const BYTES: &str = "SELECT coalesce(sum(pg_table_size(c.oid) + pg_indexes_size(c.oid)), 0)::bigint FROM pg_class c \
     WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'";

// The registry.

pub const SUSPEND: &str = "SELECT suspend($1::uuid, $2::text, $3::text, $4::text, $5::text, $6::text, $7::bigint)";
/// What this session has in force by now.
pub const LOADED: &str =
    "UPDATE node SET loaded = $2::bigint WHERE incarnation = $1::bigint AND loaded < $2 AND dead_at IS NULL";
pub const NEWEST_SUSPENSIONS: &str = "SELECT suspensions FROM node WHERE incarnation = $1::bigint AND dead_at IS NULL";
/// The others that have an older version in force. One whose lease is over lets nothing out.
pub const NOT_LOADED: &str = "SELECT name FROM node WHERE dead_at IS NULL AND lease_until > clock_timestamp() \
     AND incarnation <> $1::bigint AND loaded < $2::bigint ORDER BY name";
pub const LIFT: &str = "SELECT lift($1::uuid, $2::bigint, $3::text)";
/// With the version that they are of, in one snapshot.
pub const SUSPENSIONS: &str = "SELECT t.suspensions, s.id, s.tenant, s.workflow, s.host, s.reason, s.made_by, s.made_at, \
     s.lifted_at, s.lifted_by FROM tier t LEFT JOIN suspension s ON true ORDER BY s.id DESC";
pub const PUBLISH: &str = "SELECT o_token, o_first_start FROM publish($1::text[], $2::bytea, $3::bigint)";
/// Those that live, with the addresses that each holds.
pub const NODES: &str = "SELECT name, version, extract(epoch FROM clock_timestamp() - renewed_at)::float8, \
     extract(epoch FROM lease_until - renewed_at)::float8, \
     ARRAY(SELECT s.address FROM source s WHERE s.incarnation = node.incarnation ORDER BY s.address), queued, in_flight \
     FROM node WHERE dead_at IS NULL ORDER BY name";
pub const HOLD_SOURCES: &str = "SELECT o_address, o_holder FROM hold_sources($1::bigint, $2::text[], $3::float8)";
pub const TELL_SOURCES: &str = "UPDATE source s SET pool = g.pool, v6 = g.v6, usable = g.usable \
     FROM unnest($2::text[], $3::text[], $4::bool[], $5::bool[]) AS g(address, pool, v6, usable) \
     WHERE s.address = g.address AND s.incarnation = $1::bigint \
     AND (s.pool, s.v6, s.usable) IS DISTINCT FROM (g.pool, g.v6, g.usable)";
/// The others, each with what it can send from.
pub const NEIGHBOURS: &str = "SELECT n.name, n.incarnation, s.pool, s.v6 FROM node n LEFT JOIN source s \
     ON s.incarnation = n.incarnation AND s.usable WHERE n.dead_at IS NULL AND n.incarnation <> $1::bigint \
     AND n.lease_until > clock_timestamp() ORDER BY n.name";
pub const PUBLISHED: &str = "SELECT address, first_at FROM published";

// Tunnels.

/// An end stays as it was told first; but where others took its node for dead ($12), and it was not, its own word counts.
pub const NOTE_TUNNELS: &str = "INSERT INTO tunnel AS t (id, tenant, node, host, source, public, begun_at, ended_at, \
     outcome, code, form) SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], \
     $7::bigint[], $8::bigint[], $9::smallint[], $10::smallint[], $11::bytea[]) \
     ON CONFLICT (id) DO UPDATE SET source = excluded.source, public = excluded.public, ended_at = excluded.ended_at, \
     outcome = excluded.outcome, code = excluded.code, form = excluded.form WHERE t.ended_at IS NULL \
     OR t.code = $12::smallint AND excluded.code IS DISTINCT FROM $12 AND excluded.ended_at IS NOT NULL";
/// The newest first, of one tenant or of all.
pub const TUNNELS: &str = "SELECT id, form FROM tunnel WHERE id < $1::uuid AND ($2::text IS NULL OR tenant = $2) \
     ORDER BY id DESC LIMIT $3::bigint";
pub const TUNNELS_LEFT_OPEN: &str = "SELECT id, form FROM tunnel WHERE node = $1::text AND ended_at IS NULL";
/// Of nodes of which no session lives, nor has within a minute: one that lost its session comes back with another.
pub const TUNNELS_OF_THE_DEAD: &str = "SELECT id, form FROM tunnel t WHERE ended_at IS NULL AND id > $1::uuid \
     AND NOT EXISTS (SELECT FROM node n WHERE n.name = t.node \
     AND (n.dead_at IS NULL OR n.dead_at > clock_timestamp() - interval '1 minute')) ORDER BY id LIMIT $2::bigint";
pub const FORGET_TUNNELS: &str = "DELETE FROM tunnel WHERE id IN (SELECT id FROM tunnel WHERE ended_at < $1::bigint \
     ORDER BY ended_at LIMIT $2::bigint) RETURNING id";

// Batches.

/// Batches that this session has opened.
pub const NOTE_GATHERING: &str = concat!(
    "WITH ",
    in_force!(),
    " INSERT INTO gathering (incarnation, id, tenant, kind, place, destination, opened_at, closes_at) \
     SELECT me.incarnation, g.* FROM me, unnest($2::bytea[], $3::text[], $4::smallint[], $5::text[], $6::bigint[], \
     $7::bigint[], $8::bigint[]) AS g ON CONFLICT DO NOTHING"
);
pub const FORGET_GATHERING: &str = "DELETE FROM gathering WHERE incarnation = $1::bigint AND id = ANY ($2::bytea[])";
/// Of who is gone: whoever takes their events gathers them anew.
pub const FORGET_GATHERING_OF_THE_DEAD: &str = "DELETE FROM gathering g WHERE NOT EXISTS (SELECT FROM node n \
     WHERE n.incarnation = g.incarnation AND n.dead_at IS NULL)";
/// With how many events and bytes there are by now.
pub const GATHERING: &str = "SELECT g.tenant, g.kind, g.place, g.opened_at, g.closes_at, n.sends, n.bytes FROM gathering g, \
     LATERAL (SELECT count(*) AS sends, coalesce(sum(l.weight), 0)::bigint AS bytes FROM live l WHERE l.batcher = g.incarnation \
     AND l.tenant = g.tenant AND l.destination = g.destination AND l.gathers IS NOT NULL AND l.batch IS NULL AND NOT l.held) n \
     WHERE g.id = $1::bytea AND EXISTS (SELECT FROM node m WHERE m.incarnation = g.incarnation AND m.dead_at IS NULL)";

pub const CLOSE_BATCH: &str = "SELECT o_sends FROM close_batch($1, $2, $3, $4, $5, $6, $7, $8, $9)";

/// Only to one that lives: where that one dies it is adopted as what is its own.
pub const HAND_BATCH: &str = concat!(
    "WITH ",
    in_force!(),
    " UPDATE batch b SET incarnation = $2::bigint, taken = false FROM me WHERE b.id = $3::bytea \
     AND b.incarnation = me.incarnation AND NOT b.ended AND NOT b.done AND EXISTS (SELECT FROM node n \
     WHERE n.incarnation = $2 AND n.dead_at IS NULL) RETURNING b.id"
);

/// By who carries it alone, in force or not: what it says is true until another has taken it over. The first end stays.
pub const PUT_BATCH: &str = "UPDATE batch SET form = $3::bytea, ended = ended OR $4::bool, done = done OR $5::bool \
     WHERE id = $1::bytea AND incarnation = $2::bigint AND NOT done AND (NOT ended OR $4) RETURNING id";
/// Why it was not put.
pub const BATCH_STANDS: &str =
    "SELECT incarnation IS NOT DISTINCT FROM $2::bigint, done FROM batch WHERE id = $1::bytea";

/// Nobody else carries it, it has no end, and no suspension was made that is not loaded.
pub const MAY_CARRY: &str = concat!(
    "WITH ",
    me!(),
    " SELECT (SELECT count(*) FROM me), EXISTS (SELECT FROM batch WHERE id = $3::bytea AND incarnation = $1 AND NOT ended)"
);

pub const BATCH: &str = "SELECT form, sends FROM batch WHERE id = $1::bytea";
pub const BATCHES_OF: &str = "SELECT form, sends FROM batch WHERE incarnation = $1::bigint AND NOT done ORDER BY id";

/// Events that are nobody's, and those of a gatherer that is gone, of the kinds `$2`: this session's from now on.
pub const TAKE_EVENTS: &str = concat!(
    "WITH RECURSIVE ",
    in_force!(),
    ", owners AS (SELECT (SELECT l.batcher FROM live l WHERE l.gathers IS NOT NULL AND l.batch IS NULL AND NOT l.held \
     AND l.batcher IS NOT NULL ORDER BY l.batcher LIMIT 1) AS batcher \
     UNION ALL SELECT (SELECT l.batcher FROM live l WHERE l.gathers IS NOT NULL AND l.batch IS NULL AND NOT l.held \
     AND l.batcher > o.batcher ORDER BY l.batcher LIMIT 1) FROM owners o WHERE o.batcher IS NOT NULL), \
     gone AS MATERIALIZED (SELECT o.batcher FROM owners o WHERE o.batcher IS NOT NULL AND NOT EXISTS (SELECT FROM node n \
     WHERE n.incarnation = o.batcher AND n.dead_at IS NULL)), \
     nobodys AS MATERIALIZED (SELECT l.id FROM live l WHERE l.batcher IS NULL AND l.gathers IS NOT NULL AND l.batch IS NULL \
     AND NOT l.held AND l.gathers = ANY ($2::smallint[]) AND EXISTS (SELECT FROM me) LIMIT $3::bigint FOR UPDATE SKIP LOCKED), \
     theirs AS MATERIALIZED (SELECT l.id FROM gone, live l WHERE l.batcher = gone.batcher AND l.gathers IS NOT NULL \
     AND l.batch IS NULL AND NOT l.held AND l.gathers = ANY ($2) AND EXISTS (SELECT FROM me) LIMIT $3 \
     FOR UPDATE OF l SKIP LOCKED), \
     mine AS (UPDATE live l SET batcher = $1 WHERE l.id = ANY (ARRAY(SELECT id FROM nobodys UNION ALL SELECT id FROM theirs)) \
     AND l.batch IS NULL AND l.began_at IS NULL RETURNING l.id, l.tenant, l.created_at, l.released_at, \
     l.expires_in) \
     SELECT m.id, m.tenant, m.created_at, m.released_at, m.expires_in, (SELECT s.form FROM send s WHERE s.id = m.id) \
     FROM mine m ORDER BY m.released_at, m.id"
);

/// Batches that are nobody's, and those of who is gone, once nothing of them can be on the wire any more. Of the kinds `$2`; past
/// `$3` of any kind, as nobody has come for them.
pub const ADOPT_BATCHES: &str = concat!(
    "WITH ",
    in_force!(),
    ", theirs AS MATERIALIZED (SELECT b.id FROM batch b WHERE NOT b.done AND (b.kind = ANY ($2::smallint[]) \
     OR b.closes_at < $3::bigint) AND EXISTS (SELECT FROM me) AND (b.incarnation IS NULL OR b.incarnation <> $1 \
     AND NOT EXISTS (SELECT FROM node n WHERE n.incarnation = b.incarnation AND (n.dead_at IS NULL OR n.dead_at \
     + make_interval(secs => b.grace / 1000.0) > clock_timestamp()))) \
     LIMIT $4::bigint FOR UPDATE OF b SKIP LOCKED) \
     UPDATE batch b SET incarnation = $1, taken = false FROM theirs WHERE b.id = theirs.id RETURNING b.id"
);

/// Those of this session that it may not know of yet, however they came.
pub const NOT_TAKEN: &str = "SELECT id, form, sends FROM batch WHERE incarnation = $1::bigint AND NOT done AND NOT taken \
     LIMIT $2::bigint";
pub const TAKEN: &str = "UPDATE batch SET taken = true WHERE id = ANY ($2::bytea[]) AND incarnation = $1::bigint";

/// Those of these sends that have no end, in this batch.
pub const MEMBERS_OF_BATCH: &str = "SELECT l.id, l.tenant, l.created_at, l.released_at, l.expires_in, \
     (SELECT s.form FROM send s WHERE s.id = l.id) FROM live l WHERE l.id = ANY ($2::uuid[]) \
     AND l.batch = $1::bytea";

/// As [`SPECS`], of those that have no end.
pub const SPECS_ALIVE: &str = "SELECT g.id, (SELECT s.form FROM send s WHERE s.id = g.id), \
     (SELECT s.sealed FROM send s WHERE s.id = g.id), l.slot, (SELECT b.bytes FROM send_body b WHERE b.id = g.id) \
     FROM unnest($1::uuid[]) AS g(id) JOIN live l ON l.id = g.id";

pub const FORGET_BATCHES: &str = "DELETE FROM batch WHERE id IN (SELECT id FROM batch WHERE done AND closes_at < $1::bigint \
     ORDER BY closes_at LIMIT $2::bigint) RETURNING id";
