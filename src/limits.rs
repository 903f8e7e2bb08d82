//! Every bound that is not a configuration key, in one place, and how they relate.
//!
//! A bound that an operator may move lives in [`crate::config::Limits`]; its default stands here too, so
//! that the relations between them are checked when the crate is compiled.

use std::time::Duration;

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
pub const GIB: u64 = 1024 * MIB;
pub const TIB: u64 = 1024 * GIB;

/// Longest URL a send may name, in bytes, as written and again with its `params` applied.
pub const URL_BYTES_MAX: usize = 8 * 1024;
/// Longest host name, in bytes of its text without the trailing dot (RFC 1035 section 2.3.4: 255 octets on the wire).
pub const HOST_NAME_BYTES_MAX: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035 section 2.3.4).
pub const HOST_LABEL_BYTES_MAX: usize = 63;
/// How long a destination that a tenant tried counts towards `policy.distinct_destinations_per_minute`.
pub const SCAN_WINDOW: Duration = Duration::from_secs(60);
/// Most header lines of one send.
pub const REQUEST_HEADERS_MAX: usize = 100;
/// Most bytes of one send's header names and values together.
pub const REQUEST_HEADER_BYTES_MAX: usize = 32 * 1024;
/// Longest `expires_in` of a send: a year, far beyond any retention.
pub const EXPIRES_IN_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Most problems that one answer lists.
pub const PROBLEMS_MAX: usize = 10_000;
/// Most characters of a caller's own words that a message or a JSON pointer repeats.
pub const ECHO_CHARS_MAX: usize = 256;
/// Longest `context` value and execution id, in characters.
pub const CONTEXT_CHARS_MAX: usize = 256;
/// Longest subject of a message, in characters.
pub const SUBJECT_CHARS_MAX: usize = 500;
/// Longest line of an SMTP reply, in bytes with its end (RFC 5321 section 4.5.3.1.5 has 512), and the most lines of one.
pub const SMTP_LINE_BYTES_MAX: usize = 2048;
pub const SMTP_REPLY_LINES_MAX: usize = 64;
/// Most addresses that one message goes to.
pub const MAIL_RECIPIENTS_MAX: usize = 50;
/// Longest prefix of an event's place in a bucket, in bytes; longest name of a bucket, and of an object with all that is
/// added to the prefix.
pub const PREFIX_BYTES_MAX: usize = 512;
pub const BUCKET_CHARS_MAX: usize = 63;
pub const OBJECT_KEY_BYTES_MAX: usize = 1024;
/// Longest name of a table or a schema, in bytes: what PostgreSQL has room for.
pub const SQL_NAME_BYTES_MAX: usize = 63;
/// What PostgreSQL's jsonb takes is more: how deep values may be in each other, and how long a number and its exponent are.
pub const SQL_JSON_DEPTH_MAX: usize = 500;
pub const SQL_NUMBER_BYTES_MAX: usize = 400;
pub const SQL_EXPONENT_MAX: u32 = 300;
/// Most batches that are made up and carried at once: each takes the memory of its content, compressed.
pub const BATCHES_CARRIED: usize = 16;
/// And of one tenant.
pub const BATCHES_CARRIED_OF_ONE: usize = 4;
/// And of its of one kind: where one store hangs, another is brought its batches.
pub const BATCHES_CARRIED_OF_KIND: usize = 3;
/// One that finds no place asks again after so long, and so much more for each batch that is closed.
pub const BATCH_CARRIED_AGAIN: Duration = Duration::from_millis(50);
pub const BATCH_CARRIED_AGAIN_EACH: Duration = Duration::from_micros(100);
/// All that a database may say in one transaction.
pub const SQL_ANSWER_BYTES_MAX: usize = 8 * MIB as usize;
/// Statements that are refused until the rows that are to blame are no longer looked for one by one, and how many are refused
/// together from then on. Of what is said to each, so many characters are kept.
pub const SQL_REFUSED_SOUGHT: usize = 5000;
pub const SQL_REFUSED_TOGETHER: usize = 100;
pub const SQL_REFUSED_SAID: usize = 200;
/// Tries of a batch that are remembered: so many, of which so many are its first, and of each answer so many bytes of headers
/// and of its body. All of them are written at each try.
pub const BATCH_ATTEMPTS_KEPT: usize = 10;
pub const BATCH_FIRST_ATTEMPTS_KEPT: usize = 2;
pub const BATCH_ANSWER_KEPT: usize = 4 * 1024;
/// Bytes of an answer to a batch that each of its sends shows.
pub const BATCH_ANSWER_OF_SEND: usize = 512;
/// How long a batch waits after its first try, and at most after each: twice as long each time.
pub const BATCH_FIRST_PAUSE: Duration = Duration::from_secs(1);
pub const BATCH_LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Largest file of credentials, in bytes.
pub const CREDENTIALS_BYTES_MAX: u64 = 16 * KIB;
/// Longest tenant id, in characters.
pub const TENANT_CHARS_MAX: usize = 128;
/// Longest `Idempotency-Key`, in characters.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most query parameters of an API call that are looked at.
pub const QUERY_PARAMETERS_MAX: usize = 100;
/// Most suspensions in force: in all, and of one tenant that operators of that tenant alone made.
pub const SUSPENSIONS: usize = 10_000;
pub const SUSPENSIONS_OF_TENANT: usize = 256;
/// Longest reason of a suspension, in characters.
pub const REASON_CHARS_MAX: usize = 1024;
/// Most connections to one listener that wait to be taken in (the kernel's `net.core.somaxconn` may allow fewer): more
/// than come at once in the time for which its threads may be busy.
pub const LISTEN_BACKLOG: u32 = 4096;
/// Most connections to the API at once.
pub const API_CONNECTIONS: usize = 4096;
/// Of them, those of strangers: callers who have not shown a valid token yet.
pub const API_STRANGERS: usize = 1024;
/// Of these, those of one IPv4 address or one IPv6 network of /64.
pub const API_STRANGERS_OF_NETWORK: usize = 512;
/// Longest time for which a stranger may stay without a call under way, from its first byte to its first call included.
pub const API_STRANGER_IDLE: Duration = Duration::from_secs(5);
/// Longest time for which a caller may stay a stranger.
pub const API_STRANGER_LIFE: Duration = Duration::from_secs(10);
/// Longest time for which a client's connection may stay without a call.
pub const API_IDLE: Duration = Duration::from_secs(60);
/// How long a connection that is to end may take over it.
pub const API_FINISH: Duration = Duration::from_secs(2);
/// Most calls at once on one HTTP/2 connection to the API.
pub const API_STREAMS_PER_CONNECTION: u32 = 100;
/// Most bytes of an API call's head.
pub const API_HEAD_BYTES: usize = 32 * 1024;
/// Longest time for an API call's head, and for a client's connection over HTTP/1.1 to stay idle.
pub const API_HEAD_TIME: Duration = Duration::from_secs(30);
/// Longest time for which a caller may take no byte of what is written to it (over HTTP/2: no frame of an answer),
/// before its connection is closed.
pub const API_WRITE_STALL: Duration = Duration::from_secs(20);
/// Longest time for an API call's body to arrive.
pub const API_BODY_TIME: Duration = Duration::from_secs(20);
/// Longest time for what is left of a small body, when its call is answered before it has come.
pub const API_REST_TIME: Duration = Duration::from_secs(1);
/// Bytes that a caller over HTTP/2 may send of one body, and on one connection, before they were looked at.
pub const API_STREAM_WINDOW: u32 = 64 * KIB as u32;
pub const API_CONNECTION_WINDOW: u32 = 128 * KIB as u32;
/// Bytes of one answer that a connection over HTTP/2 has at hand.
pub const API_SEND_BUFFER: usize = 64 * KIB as usize;
/// Bytes of all that callers make us hold: heads, bodies, what is made of them, waits and answers not taken.
pub const API_BYTES: u64 = GIB;
/// Of them, what only callers with the scope `operate` can take.
pub const API_BYTES_RESERVE: u64 = 128 * MIB;
/// No tenant holds more than one in so many of these bytes; a client that may name any tenant, twice as much.
pub const API_HOLDERS_MIN: usize = 4;
/// What a call counts for beside its head, from its head to the last byte of its answer: its place in a connection,
/// its wait, and this much of its body and of its answer, of each.
pub const API_CALL_BYTES: usize = 16 * KIB as usize;
pub const API_CALL_INCLUDED: usize = 4 * KIB as usize;
/// What a body that comes in pieces counts for beside its bytes: the buffers that it grew and came in. A call of 16 KiB
/// was seen to take 41 so, of 64 KiB 104, of 128 KiB 158.
pub const API_PIECES_BYTES: usize = 16 * KIB as usize;
/// Most answers about records that are read and built at once: in all, for callers with the scope `operate` beside
/// them, and for one tenant (twice as many for a client that may name any).
pub const API_ANSWERS_BUILT: usize = 8;
pub const API_ANSWERS_BUILT_RESERVE: usize = 4;
pub const API_ANSWERS_BUILT_FOR_ONE: usize = 2;
/// Most searches in bodies at once, beside these: each takes up to [`TEXT_TIME`] and a processor.
pub const API_SEARCHES: usize = 2;
/// Of one tenant (twice as many for a client that may name any).
pub const API_SEARCHES_OF_ONE: usize = 1;
/// Longest time for which a call waits for its turn.
pub const API_ANSWER_WAIT: Duration = Duration::from_secs(2);
/// What grows with more bytes than this (reading, redacting and answering a call, a record) is done apart from the
/// threads that deliver: as many as this take a fraction of a millisecond, whatever stands in them.
pub const INLINE_BYTES: usize = 32 * KIB as usize;
/// Most members of one object, and elements of one array, that are read of a call: a byte or two of it each take many
/// times as much.
pub const MEMBERS_MAX: usize = 100_000;
/// Most items that one look into the store gives the tail.
pub const TAIL_ITEMS: usize = 50;
/// A tail looks into the store at most this often.
pub const TAIL_PAUSE: Duration = Duration::from_millis(50);
/// A tail with nothing to tell says so this often, so that a dead connection is noticed.
pub const TAIL_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Most tails at once.
pub const TAILS: usize = 256;
/// Of them, those that only callers with the scope `operate` can open.
pub const TAILS_RESERVE: usize = 32;
/// Most tails of one tenant; a client that may name any has twice as many.
pub const TAILS_OF_ONE: usize = 64;
/// Most items in one page of a list.
pub const PAGE_ITEMS_MAX: usize = 200;
/// Sends that are looked at for one page, whatever it asks for: a filter that finds little costs its caller more pages,
/// and nobody else anything.
pub const LIST_LOOKED_AT_MAX: usize = if cfg!(test) { 250 } else { 20_000 };
/// Of a text that bodies are searched for.
pub const TEXT_CHARS_MAX: usize = 256;
/// Sends and bytes of bodies that are searched for one page, and for how long at most: whoever wants more asks for the
/// next.
pub const TEXT_SENDS_MAX: u64 = 5_000;
pub const TEXT_BYTES_MAX: u64 = 32 << 20;
pub const TEXT_TIME: Duration = Duration::from_secs(2);
/// Hosts of one tenant that statistics tell apart within five minutes; what goes to others is nobody's there.
pub const STATS_HOSTS_OF_SLOT: usize = 1_000;
/// What the hosts of one segment take with their counts and names, beside a few MiB while the tenants that have most of it
/// give some back: 16 MiB in all.
pub const STATS_HOSTS_BYTES_MAX: usize = if cfg!(test) { 512 << 10 } else { 10 << 20 };
/// Most buckets of time in one answer of statistics.
pub const STATS_BUCKETS_MAX: i64 = 750;
/// Groups of such an answer: those with most sends, and beside them those of which most were not delivered. All others
/// are one.
pub const STATS_GROUPS_BY_COUNT: usize = 20;
pub const STATS_GROUPS_BY_LOSS: usize = 10;
/// Items of a page when the caller names no limit.
pub const PAGE_ITEMS_DEFAULT: usize = 50;
/// Longest `?wait=` of `GET /v1/sends/{id}`.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// Most addresses of one DNS answer that are looked at.
pub const DNS_ADDRESSES_MAX: usize = 16;
/// Most CNAMEs of one DNS answer that are followed.
pub const DNS_CNAMES_MAX: usize = 8;
/// Longest time an answer is used, whatever its TTL says.
pub const DNS_TTL_MAX: Duration = Duration::from_secs(60);
/// Most lookups at once for one tenant.
pub const DNS_LOOKUPS_PER_TENANT: usize = 64;
/// Most lookups at once for one registrable domain of one tenant.
pub const DNS_LOOKUPS_PER_DOMAIN: usize = 16;

/// What is read of one DNS message; the rest of a longer one is not. Addresses and aliases that are looked at fit in
/// many times over.
pub const DNS_MESSAGE_BYTES_MAX: usize = 16 * KIB as usize;
/// Most records of one DNS answer that are passed through, and most labels of their names: reading the worst of answers
/// takes microseconds. Whoever holds the asked name writes what stands in them.
pub const DNS_RECORDS_MAX: usize = 128;
pub const DNS_LABELS_MAX: usize = 4096;
/// Memory for found addresses: for one tenant, and in all. A name with its addresses takes about half a KiB.
pub const DNS_CACHE_BYTES_PER_TENANT: usize = MIB as usize;
pub const DNS_CACHE_BYTES: usize = 16 * MIB as usize;
/// How often what is out of date in it is looked for, unless room is needed.
pub const DNS_CACHE_SWEPT_EVERY: Duration = Duration::from_secs(5);
/// How long the second family is waited for once the first has answered with addresses.
pub const DNS_FAMILY_GRACE: Duration = Duration::from_millis(500);
/// Most name servers that one lookup asks: those not known to be dead come first.
pub const DNS_SERVERS_MAX: usize = 3;
/// How long one server is waited for before the next is asked as well; the first question is then still open.
pub const DNS_PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer may take before the question is sent once more, without EDNS: it, or the answer, may be lost, or
/// something on the way may drop what it does not know.
pub const DNS_RESENT_AFTER: Duration = Duration::from_millis(750);
/// How long after every server has failed a lookup is made once more: resolvers remember a failure for at least a
/// second (RFC 9520 section 3.2). Less where the whole delivery has little time.
pub const DNS_ASKED_AGAIN_AFTER: Duration = Duration::from_millis(1100);
pub const DNS_ASKED_AGAIN_SHARE: u32 = 4;
/// How long a name server has to answer a question of our own before it counts as dead, and how long until it is asked
/// again whether it still is.
pub const DNS_PROBE_TIME: Duration = Duration::from_secs(1);
pub const DNS_PROBED_EVERY: Duration = Duration::from_secs(15);
/// How long a name server that answered only without EDNS is asked without.
pub const DNS_PLAIN_FOR: Duration = Duration::from_secs(300);
/// Most datagrams that are not the answer before it is asked for over TCP.
pub const DNS_STRAY_DATAGRAMS_MAX: usize = 32;

/// RFC 8305 section 5: time between the starts of two connection attempts.
pub const CONNECT_STAGGER: Duration = Duration::from_millis(250);
/// A source that had no port left towards a peer is tried again after so many times as long as the kernel took to say so.
pub const EXHAUSTED_ASKED_AGAIN: u32 = 20;
/// And after this long at most.
pub const EXHAUSTED_KEPT_MAX: Duration = Duration::from_millis(250);
/// A connection must have stayed open this long while idle before its destination's are reused.
pub const REUSE_PROVEN_AFTER: Duration = Duration::from_millis(250);
/// After a reused connection turned out stale, its destination's are not reused for this long.
pub const REUSE_OFF_AFTER_STALE: Duration = Duration::from_secs(600);

/// How often idle connections and what is remembered of destinations are looked at.
pub const TEND_EVERY: Duration = Duration::from_millis(250);
/// Most idle connections kept towards one destination of one tenant.
pub const IDLE_PER_DESTINATION: usize = 256;
/// Most idle connections kept in all.
pub const IDLE_TOTAL: usize = 2_048;
/// Most destinations of tenants for which it is remembered whether connections may be reused.
pub const REUSE_MEMORY_MAX: usize = 16_384;
/// A connection is not reused once it is this old: its address was judged on an answer no older than that.
pub const CONNECTION_AGE_MAX: Duration = DNS_TTL_MAX;
/// Most certificates that a peer may show, its own among them: public chains have two to four.
pub const TLS_CERTIFICATES_MAX: usize = 10;
/// Most bytes of one of them: one that names a thousand hosts takes about that.
pub const TLS_CERTIFICATE_BYTES_MAX: usize = 16 * KIB as usize;
/// And of all of them.
pub const TLS_CHAIN_BYTES_MAX: usize = 32 * KIB as usize;
/// Most of them, beside its own, that may be of one authority: one that was signed by another as well has two, and
/// every order of them is a path that is tried.
pub const TLS_CERTIFICATES_OF_ONE_SUBJECT: usize = 2;
/// Most names of one that a record and a message repeat, and most characters of each, of its subject and its issuer.
pub const CERTIFICATE_NAMES_MAX: usize = 10;
pub const CERTIFICATE_TEXT_CHARS_MAX: usize = 256;
/// How long a destination that asked for HTTP/1.1 is offered nothing else.
pub const HTTP1_ONLY_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Most such destinations that are remembered of one tenant, and of how many tenants: the rest is found out anew.
pub const HTTP1_ONLY_PER_TENANT: usize = 64;
pub const HTTP1_ONLY_TENANTS_MAX: usize = 1_024;
/// Most TLS sessions that are kept to be resumed: in all, of one tenant, and of one server of it, which gives two at a
/// time as a rule. One takes some KiB, and at most its ticket (64 KiB, RFC 8446 section 4.6.1) and the chain that was
/// shown: 192 MiB in all, 6 MiB for a tenant. What is known of a server's key exchange counts as one.
pub const TLS_SESSIONS: usize = 2_048;
pub const TLS_SESSIONS_PER_TENANT: usize = 64;
pub const TLS_SESSIONS_PER_SERVER: usize = 8;

/// Most bytes of a line that frames chunks, its extensions and CRLF among them; trailers may have four times as much.
pub const CHUNK_LINE_BYTES_MAX: usize = 8 * KIB as usize;
/// Most 1xx answers before the final one.
pub const INFORMATIONAL_RESPONSES_MAX: usize = 32;

/// Most bytes of any kind before an answer's head is whole, beside twice what its headers may be.
pub const BYTES_BEFORE_ANSWER_MAX: u64 = 256 * KIB;

/// Most deliveries that are worked on before timers and sockets are looked at again.
pub const TURNS_PER_ROUND: usize = 64;
/// Fewest that a round has, however long they take.
pub const TURNS_PER_ROUND_MIN: usize = 2;
/// How long they are worked on, all of them together, before no other begins and timers and sockets are looked at
/// again: next to nothing of a deadline, and a thousand times what that looking costs.
pub const ROUND_TIME: Duration = Duration::from_millis(2);
/// Bytes that one connection is read without a turn for the others.
pub const READ_TURN_BYTES: usize = 64 * KIB as usize;
/// Pieces of one body that are taken without a turn for the others: a piece may be a single byte.
pub const READ_TURN_PIECES: u32 = 64;
/// Most pieces of a response's body, beside one for each [`RESPONSE_PIECE_BYTES_MIN`] of it: past that the delivery fails,
/// for each piece costs what many bytes do.
pub const RESPONSE_PIECES_MAX: u64 = 8 * KIB;
pub const RESPONSE_PIECE_BYTES_MIN: u64 = 64;

/// A delivery in flight this much longer than its deadline counts as overdue.
pub const OVERDUE_GRACE: Duration = Duration::from_millis(250);
/// The dispatcher's loop must turn at least this often, or `/readyz` says it has stalled.
pub const DISPATCH_STALLED_AFTER: Duration = Duration::from_secs(5);

/// Most sends that wait in memory, whatever may be in flight: the rest waits in the store.
pub const WINDOW_MAX: u64 = 32 * KIB;

/// Bytes of finished sends' records that are on their way to the disk at once, so that what is accepted and begun
/// meanwhile does not wait for all of them.
pub const ENDS_BYTES: usize = 8 * MIB as usize;
/// Bytes of accepted sends kept in memory so that their delivery need not read the disk.
pub const HOT_BYTES_MAX: u64 = 64 * MIB;

/// Most values that are hidden one by one in one body.
pub const HIDDEN_VALUES_MAX: usize = 4_096;

/// Most log lines of one kind in a minute that name one tenant or client, and of those that name none: a line a second
/// is what a person can follow, and what a failing disk says of every send fits a journal.
pub const LOG_LINES_OF_ONE: u32 = 60;
pub const LOG_LINES: u32 = 1_000;
/// Most whose lines of one kind are counted apart in a minute; those of the rest share what names nobody has.
pub const LOG_NAMES_MAX: usize = 1_024;

/// Most bytes of log lines that wait for whoever reads stderr, and how long the end of the process waits for that.
pub const LOG_BYTES_WAITING: usize = 4 * MIB as usize;
pub const LOG_FLUSH: Duration = Duration::from_secs(2);

/// Longest error message of a record, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// A source whose address was not on this host is tried anew after this long, or when the address is seen to be back.
pub const SOURCE_RETRIED_AFTER: Duration = Duration::from_secs(10);

/// The first delivery of a process waits at most so long for what the reflectors say of the sources.
pub const VERIFY_FIRST_ROUND: Duration = Duration::from_secs(2);
/// The only reflector is asked again so long after it named another address for a source.
pub const VERIFY_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// A source that was taken out is asked about again at most so long after: nobody waits for `every` to have it back.
pub const VERIFY_OUT_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How often sources that are due to be verified are looked for.
pub const VERIFY_TICK: Duration = Duration::from_secs(1);
/// Most sources that are verified at once.
pub const VERIFY_AT_ONCE: usize = 16;

/// Largest file that the configuration is read from, itself or named in it, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 4 * MIB;
/// Longest name of a node, an API client or a pool, in characters.
pub const NAME_CHARS_MAX: usize = 128;
/// Most name servers that may be named.
pub const NAME_SERVERS_MAX: usize = 8;
/// Most reflectors that are asked.
pub const REFLECTORS_MAX: usize = 8;
/// The most that `[delivery] deadline` may be set to.
pub const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// The most that the `in_flight` keys may be set to.
pub const IN_FLIGHT_MAX: u32 = 1_000_000;
/// The most that the `queued` keys may be set to.
pub const QUEUED_MAX: u64 = 100_000_000;

/// How long a retired address stays in the published list: a reader of yesterday's list still knows it.
pub const LISTED_AFTER_RETIREMENT: Duration = Duration::from_secs(24 * 3600);

/// Sends that wait to be told to a collector of traces; beyond that they are left out.
pub const TRACE_QUEUE: usize = 4096;
/// Of how many it is told at once, how long the first of them waits for others, how long it may take to answer, and how
/// much of its answer is read.
pub const TRACE_BATCH: usize = 256;
pub const TRACE_EVERY: Duration = Duration::from_secs(1);
pub const TRACE_TIME: Duration = Duration::from_secs(5);
pub const TRACE_ANSWER_BYTES: usize = 64 * KIB as usize;
/// Most pieces of news in the feed of changes, the newest, but for what is still to come: each address has four at most.
pub const FEED_ENTRIES_MAX: usize = 100;
/// The most that the `tunnels` keys of `[proxy]` may be set to.
pub const TUNNELS_MAX: u32 = 1_000_000;
/// Connections to the proxy that are no tunnel: those whose request has not come, or is looked at.
pub const PROXY_CONNECTIONS: usize = 2048;
/// Of them, those of strangers, and of these those of one IPv4 address or one IPv6 network of /64.
pub const PROXY_STRANGERS: usize = 1024;
pub const PROXY_STRANGERS_OF_NETWORK: usize = 512;
/// Bytes that a client over HTTP/2 may send on one connection, in all of its tunnels, before they were looked at.
pub const PROXY_CONNECTION_WINDOW: u32 = MIB as u32;
/// Most bytes of a tunnel that wait in one direction for whoever takes them. One that is idle has none.
pub const TUNNEL_BUFFER: usize = 32 * KIB as usize;
/// What is read of a connection's first bytes at once, and again once somebody was slow to take what was read.
pub const TUNNEL_BUFFER_FIRST: usize = 4 * KIB as usize;
/// Most bytes of a tunnel's ClientHello, its records' framing among them: a whole record's, and some more. One with
/// post-quantum keys has about 2 KiB.
pub const CLIENT_HELLO_BYTES_MAX: usize = 17 * KIB as usize;
/// The head of an answer to a forwarded request may have `[limits] response_headers`, and never less than this.
pub const FORWARD_HEAD_BYTES_MIN: usize = 8 * KIB as usize;
/// Of a source's ports towards one peer, one in so many is for sends alone.
pub const PORTS_LEFT_ONE_IN: u32 = 4;
/// How much a caller may still send that was refused, and for how long, so that the refusal is not lost to a reset.
pub const LINGER_BYTES: usize = 256 * KIB as usize;
pub const LINGER_TIME: Duration = Duration::from_secs(1);
/// How often it is asked whether the last bytes of a tunnel have arrived, before it is ended by a reset.
pub const ACKNOWLEDGED_ASKED_EVERY: Duration = Duration::from_millis(10);
/// How long the end of a tunnel may take, when the process ends.
pub const TUNNEL_END: Duration = Duration::from_secs(2);
/// How often what is new of tunnels is written: a crash loses no more than that. While more than so many wait for it,
/// none is opened.
pub const TUNNELS_NOTED_EVERY: Duration = Duration::from_millis(250);
pub const TUNNELS_UNNOTED_MAX: usize = if cfg!(test) { 100 } else { 20_000 };
/// Of them so many are written at once: less than the room of the smallest store.
pub const TUNNELS_NOTED_AT_ONCE: usize = if cfg!(test) { 7 } else { 500 };
/// How often it is remembered of a tenant that it met a cap of tunnels.
pub const TUNNEL_CAPPED_NOTED_EVERY: Duration = Duration::from_secs(1);
/// After a cap was met, a tunnel is worth another try after so many seconds.
pub const TUNNEL_RETRY_SECONDS: u64 = 1;
/// Most connections at once to the `[publish]` listener.
pub const PUBLISH_CONNECTIONS_MAX: usize = 512;
/// Most of them from one IPv4 address or one IPv6 network of /64.
pub const PUBLISH_CONNECTIONS_PER_NETWORK: usize = 32;
/// Most connections at once to the metrics listener.
pub const OPS_CONNECTIONS: usize = 64;
/// How long the threads that deliver have to take up a task before `/healthz` says that they do not: shorter than
/// what asks waits for its answer.
pub const HEALTH_WITHIN: Duration = Duration::from_secs(4);
/// How long a caller of one of these two keeps its place when all are taken and another comes.
pub const DOORS_PLACE_TIME: Duration = Duration::from_secs(1);
/// How long a caller there has for the head of a request, and how long a connection may idle between two.
pub const DOORS_HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a connection there may last at all.
pub const DOORS_CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// Largest head of a request there, in bytes, and its most header lines.
pub const DOORS_HEAD_BYTES_MAX: usize = 8 * 1024;
pub const DOORS_HEADERS_MAX: usize = 64;

pub const PROXY_CONNECT_DEADLINE: Duration = Duration::from_secs(5);
pub const PROXY_IDLE: Duration = Duration::from_secs(60);
pub const PROXY_LIFETIME: Duration = Duration::from_secs(3600);
pub const TUNNELS: u32 = 5_000;
pub const TUNNELS_PER_TENANT: u32 = 1_000;
pub const TUNNELS_PER_TENANT_DESTINATION: u32 = 200;
pub const DEADLINE: Duration = Duration::from_secs(5);
/// Of a message, everything in it.
pub const MAIL_DEADLINE: Duration = Duration::from_secs(15);
/// Of batches: when they close, and what one upload and all of its tries may take.
pub const BATCH_EVERY: Duration = Duration::from_secs(60);
pub const BATCH_BYTES: u64 = 32 * MIB;
pub const BATCH_BYTES_MAX: u64 = 256 * MIB;
pub const BATCH_SENDS: u32 = 50_000;
pub const BATCH_SENDS_MAX: u32 = 500_000;
pub const BATCH_DEADLINE: Duration = Duration::from_secs(30);
pub const BATCH_GIVE_UP: Duration = Duration::from_secs(3600);
/// What was accepted for a batch is there until it is given up.
pub const BATCH_GIVE_UP_MAX: Duration = Duration::from_secs(24 * 3600);
pub const DRAIN: Duration = Duration::from_secs(10);
pub const KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// How much sooner than it says a receiver's idle connection is given up: its end may be on the way.
pub const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);
pub const IN_FLIGHT: u32 = 10_000;
pub const IN_FLIGHT_PER_TENANT: u32 = 2_000;
pub const IN_FLIGHT_PER_TENANT_DESTINATION: u32 = 200;
pub const QUEUED: u64 = 1_000_000;
pub const QUEUED_PER_TENANT: u64 = 100_000;
pub const HOLD_LIMIT: Duration = Duration::from_secs(15 * 60);
pub const EXPIRES_IN: Duration = Duration::from_secs(24 * 3600);
pub const NOTICE: Duration = Duration::from_secs(7 * 24 * 3600);
pub const VERIFY_EVERY: Duration = Duration::from_secs(15 * 60);
pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
pub const BODY_RETENTION: Duration = Duration::from_secs(3 * 24 * 3600);
pub const STORE_BYTES: u64 = 50 * GIB;
pub const STORE_BODY_BYTES: u64 = 40 * GIB;
/// Connections of one node to the tier's database: seven have a work of their own, and calls and lists have the others.
pub const POSTGRES_CONNECTIONS: u32 = 10;
pub const POSTGRES_CONNECTIONS_MIN: u32 = 9;
pub const POSTGRES_CONNECTIONS_MAX: u32 = 64;
/// How long a call that submits waits for the tier's database before it is refused.
pub const STORE_ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// How long one statement may take in the tier's database before that gives it up, so that nobody's backend is busy with
/// what nobody waits for. What works takes milliseconds; a large call's has three times as long.
pub const STORE_STATEMENT_WITHIN: Duration = Duration::from_secs(10);
/// How long a node is not taken for dead after it was last heard of, and how many deadlines that is at least.
pub const LEASE: Duration = Duration::from_secs(15);
pub const LEASE_DEADLINES: u32 = 3;
pub const LEASE_MAX: Duration = Duration::from_secs(600);
/// How long after a node was declared dead what it had begun may still be on the wire, beside its deadline.
pub const DEAD_GRACE: Duration = Duration::from_secs(1);
pub const REQUEST_BODY: u64 = MIB;
pub const API_REQUEST: u64 = 16 * MIB;
/// The most that `[limits] api_request` may be set to.
pub const API_REQUEST_MAX: u64 = 64 * MIB;
pub const SENDS_PER_REQUEST: u32 = 1_000;
pub const SENDS_PER_EXECUTION: u32 = 10_000;
pub const RESPONSE_BODY_STORED: u64 = 64 * KIB;
pub const RESPONSE_BODY_READ: u64 = MIB;
pub const RESPONSE_HEADERS: u64 = 64 * KIB;
pub const RESPONSE_HEADER_LINES: u32 = 256;
/// Each line that is kept costs some memory beside its bytes.
pub const RESPONSE_HEADER_LINES_MAX: u32 = 4096;
pub const DISTINCT_DESTINATIONS_PER_MINUTE: u32 = 1_000;

const _: () = assert!(DRAIN.as_millis() >= DEADLINE.as_millis(), "a drain lets every delivery reach its deadline");
const _: () = assert!(LEASE.as_millis() >= LEASE_DEADLINES as u128 * DEADLINE.as_millis());
const _: () = assert!(LEASE_MAX.as_millis() >= LEASE_DEADLINES as u128 * DEADLINE_MAX.as_millis());
const _: () = assert!(POSTGRES_CONNECTIONS_MIN <= POSTGRES_CONNECTIONS);
const _: () = assert!(IN_FLIGHT_PER_TENANT <= IN_FLIGHT);
const _: () = assert!(IN_FLIGHT_PER_TENANT_DESTINATION <= IN_FLIGHT_PER_TENANT);
const _: () = assert!(QUEUED_PER_TENANT <= QUEUED);
const _: () = assert!(REQUEST_BODY < API_REQUEST, "one send with its base64 overhead fits into a call");
const _: () = assert!(3 * API_REQUEST_MAX <= API_BYTES / API_HOLDERS_MIN as u64, "a call and its answer fit a share");
const _: () = assert!(API_REQUEST <= API_REQUEST_MAX);
const _: () = assert!(API_BYTES_RESERVE < API_BYTES / API_HOLDERS_MIN as u64);
const _: () = assert!(2 * API_CALL_INCLUDED < API_CALL_BYTES);
const _: () = assert!(2 * API_ANSWERS_BUILT_FOR_ONE <= API_ANSWERS_BUILT);
const _: () = assert!(API_STRANGERS_OF_NETWORK < API_STRANGERS && API_STRANGERS < API_CONNECTIONS);
const _: () = assert!(API_STRANGER_IDLE.as_millis() < API_STRANGER_LIFE.as_millis());
const _: () = assert!(API_HEAD_TIME.as_millis() < API_IDLE.as_millis());
const _: () = assert!(BATCHES_CARRIED_OF_KIND < BATCHES_CARRIED_OF_ONE && BATCHES_CARRIED_OF_ONE < BATCHES_CARRIED);
const _: () = assert!(2 * TAILS_OF_ONE <= TAILS - TAILS_RESERVE);
const _: () = assert!(API_ANSWER_WAIT.as_millis() < API_WRITE_STALL.as_millis());
const _: () = assert!(TAILS < API_CONNECTIONS);
const _: () = assert!(PROXY_STRANGERS_OF_NETWORK < PROXY_STRANGERS && PROXY_STRANGERS < PROXY_CONNECTIONS);
const _: () = assert!(TUNNELS_PER_TENANT_DESTINATION <= TUNNELS_PER_TENANT && TUNNELS_PER_TENANT <= TUNNELS);
const _: () = assert!(TUNNELS <= TUNNELS_MAX);
const _: () = assert!(TUNNEL_BUFFER_FIRST <= TUNNEL_BUFFER && TUNNEL_BUFFER <= READ_TURN_BYTES);
const _: () = assert!(PROXY_CONNECT_DEADLINE.as_millis() <= DEADLINE_MAX.as_millis());
const _: () = assert!(SUSPENSIONS_OF_TENANT < SUSPENSIONS);
const _: () = assert!(RESPONSE_BODY_STORED <= RESPONSE_BODY_READ);
const _: () = assert!(KEEP_ALIVE.as_millis() < DEADLINE.as_millis());
const _: () = assert!(TEND_EVERY.as_millis() <= REUSE_PROVEN_AFTER.as_millis());
const _: () = assert!(REUSE_PROVEN_AFTER.as_millis() < KEEP_ALIVE.as_millis());
const _: () = assert!(IDLE_PER_DESTINATION <= IDLE_TOTAL);
const _: () = assert!(SENDS_PER_REQUEST as u64 <= QUEUED_PER_TENANT);
const _: () = assert!(DEADLINE.as_millis() <= DEADLINE_MAX.as_millis());
const _: () = assert!(MAIL_DEADLINE.as_millis() <= DEADLINE_MAX.as_millis());
const _: () = assert!(BATCH_DEADLINE.as_millis() <= DEADLINE_MAX.as_millis());
const _: () = assert!(BATCH_BYTES <= BATCH_BYTES_MAX && BATCH_SENDS <= BATCH_SENDS_MAX);
const _: () = assert!(REQUEST_BODY <= BATCH_BYTES);
// A key is the prefix, and what is added: the hour's folders, the second, 64 digits and `.gz`.
const _: () = assert!(PREFIX_BYTES_MAX + 128 <= OBJECT_KEY_BYTES_MAX);
const _: () = assert!(BATCH_FIRST_ATTEMPTS_KEPT < BATCH_ATTEMPTS_KEPT && BATCH_ANSWER_OF_SEND <= BATCH_ANSWER_KEPT);
const _: () = assert!(BATCH_FIRST_PAUSE.as_millis() <= BATCH_LONGEST_PAUSE.as_millis());
const _: () = assert!(IN_FLIGHT <= IN_FLIGHT_MAX && QUEUED <= QUEUED_MAX);
const _: () = assert!(IDEMPOTENCY_KEPT.as_millis() <= RETENTION.as_millis());
const _: () = assert!(BODY_RETENTION.as_millis() <= RETENTION.as_millis());
const _: () = assert!(STORE_BODY_BYTES <= STORE_BYTES);
const _: () = assert!(PUBLISH_CONNECTIONS_PER_NETWORK < PUBLISH_CONNECTIONS_MAX);
const _: () = assert!(HEALTH_WITHIN.as_millis() < DOORS_CONNECTION_LIFE.as_millis());
const _: () = assert!(DOORS_PLACE_TIME.as_millis() < DOORS_HEAD_TIME.as_millis());
const _: () = assert!(DOORS_HEAD_TIME.as_millis() < DOORS_CONNECTION_LIFE.as_millis());
const _: () = assert!(VERIFY_FIRST_ROUND.as_millis() < DISPATCH_STALLED_AFTER.as_millis());
const _: () = assert!(DNS_LOOKUPS_PER_DOMAIN <= DNS_LOOKUPS_PER_TENANT);
const _: () = assert!(DNS_CNAMES_MAX + DNS_ADDRESSES_MAX <= DNS_RECORDS_MAX);
const _: () = assert!(DNS_CACHE_BYTES_PER_TENANT * 16 <= DNS_CACHE_BYTES, "no tenant alone pushes others out");
const _: () = assert!(DNS_SERVERS_MAX <= NAME_SERVERS_MAX);
const _: () = assert!(TLS_SESSIONS_PER_SERVER < TLS_SESSIONS_PER_TENANT);
const _: () = assert!(TLS_SESSIONS_PER_TENANT * 16 <= TLS_SESSIONS, "no tenant alone pushes others out");
const _: () = assert!(TLS_SESSIONS as u64 * (64 * KIB + TLS_CHAIN_BYTES_MAX as u64) <= 192 * MIB);
