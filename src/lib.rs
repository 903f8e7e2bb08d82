//! # egressd: the map
//!
//! Workflow nodes hand egressd *sends*; it makes each once, from a published source address, within one deadline, if the
//! acceptable-use policy allows it, and keeps a record. A send goes to one destination: a URL, or what the operator has set
//! up beside them (mail, S3, SQL). What the outside sees is in the README and in `/openapi.json`; this is the inside. The tree reads
//! in the order a send travels.
//!
//! | floor | modules |
//! |---|---|
//! | composition | [`app`] builds every part and owns lifetimes, drain and reload; [`cli`] is one file a command; [`telemetry`] |
//! | fronts | [`api`] and [`intake`] (the way in), [`explain`], [`ops`] (`/metrics`, `/readyz`) and [`publish::front`] behind their [`doors`], [`proxy`] (tunnels for code that needs its answer), [`request_bin`] |
//! | reaching out | [`dispatch`] does what the flow decides, [`batcher`] closes and carries batches of events, [`backlog`] is the flow behind its lock, [`deliver`] makes one request on what [`dial`] opens, all under one [`deadline`], within what [`files`] allow; [`ledger`] writes ends; [`trace`] tells of them where somebody collects traces; [`world`] is what a reload swaps; [`verify`] asks reflectors |
//! | remembering | [`store`]: queued → started → finished, durable; [`publication`]: the list in force; [`events`]: who waits for an end |
//! | deciding | [`flow`] (when each send starts; [`schedule`] is its fair choice), [`gather`] (which events go together), [`source`]: `now` is an argument |
//! | words | values only: [`limits`], [`outcome`], [`send`], [`policy`], [`record`], [`redact`], [`publish`], [`config`]; [`clock`] is the one place that reads one |
//!
//! ## A send's life
//!
//! ```text
//! Held ─finish→ Queued ─claim→ in the window ─begin (durable)→ Started ─deliver→ Finished (durable)
//!   └ discard → Finished                          └ the process dies → Finished (interrupted) at the next start
//! ```
//!
//! 1. [`api`] reads a call with all of its problems at once ([`send::parse`]); [`intake`] checks suspensions and room
//!    and lets the store accept it, with execution and idempotency key, in one durable write. Where a slot is free that
//!    record marks the start as well. Only then is it held, queued or begun, and answered.
//! 2. What waits is the store's: released or discarded with its execution, expired and suspended there. [`flow`] holds
//!    a window over it, claims more as that empties, and says what is next; [`dispatch`] lets the store mark its start:
//!    the only way to a [`store::Started`], which [`deliver`] takes by value.
//! 3. [`deliver`] judges the URL, lets [`dial`] resolve, judge the answer, choose a source, connect and shake hands,
//!    then writes one request and reads one response, each phase timed and spending from one [`deadline`]. Deliveries
//!    are worked on in turns ([`deliver::turns`]), and what a peer can make long on threads of its own
//!    ([`deliver::apart`]): what floods one of them delays no other's deadline.
//! 4. [`dispatch`] redacts what came of it, gives the slot back, and [`ledger`] writes the end until it is durable.
//!
//! ## Another destination
//!
//! A variant of [`send::Kind`] and one of [`send::To`], with its own form in records ([`record::ShownTo`]); from there the
//! compiler leads: [`redact`] (how it is shown), the stores' forms (a number in `store::wire`, and what stands in its place
//! for a node of the version before), [`config`] (its table, its deadline), [`policy::Purpose`] (how its endpoint is
//! judged), [`deliver`] (a module beside [`deliver::email`] that takes what a delivery has and gives a status or a failure),
//! [`outcome::words`] (its rows), [`trace`], and of [`api`] the record's view, resend, HAR and the description. By hand
//! alone: the key that names it in [`send::parse`], the inspector's `words.js`, [`cli`]'s line of a record, and the workflow
//! node's sender. Scheduling, caps, fairness, suspensions, executions, keys, both stores, drain and crash know a send by
//! [`send::SendSpec::destination`] and [`send::SendSpec::body`], and nothing of its kind.
//!
//! A destination whose sends go together is a [`send::Place`] in a [`send::Event`] instead: [`gather`] and the stores know
//! events by that alone, [`deliver::batch`] says what is carried, what comes of a try, and who carries it
//! ([`deliver::s3`], [`deliver::sql`]). Events are claimed and never begun, so there is no [`store::Started`] of one; [`batcher`] alone repeats
//! a try, and takes none. What stands in the place of a start is [`store::Batches::may_carry`]: a closed batch is one session's.
//!
//! ## What must not be
//!
//! - Imports do not point up a floor; words and deciding modules do no I/O, spawn nothing and read no clock; domain
//!   types have no serde form of their own (files, wire and store each have theirs).
//! - No socket towards a destination is made but in [`dial::connect`], which wants a [`source::Source`] and a
//!   [`policy::CheckedAddr`]; no destination is looked up but in [`dial::resolve`].
//! - Nothing that waits is decided from an image in memory of more than the window; nothing under the flow's lock or on
//!   a tick is linear in what waits.
//! - What is taken of the flow (a slot, room, a claim) is a value that comes back when it is dropped.
//! - Nothing retries a started send. (A batch is none: [`batcher`].) The one second try there is: another address or source, or a new connection
//!   for an idle one that was handed the request and took no byte of it. A node without any source of a destination's
//!   family takes the start back as it hands the send to one that has, before anything was connected to.
//! - No [`outcome::Failure`] is made but by a row of the one table, [`outcome::words`], or read back from a store.
//! - No module but [`app::stores`] knows which store is in use.
//! - No module but [`app`] and [`cli`] knows [`proxy`]: sends are what they are without it. It runs on threads of its own,
//!   its lookups wait for each other alone, and it leaves a share of each source's ports to deliveries.
//! - No secret leaves [`redact`] or a sealed part of the store, and none of the configuration a [`config::Secret`] but
//!   towards whom it is for.
//! - What the operator has configured as an endpoint (a relay, a reflector) is dialled from the configuration in force:
//!   nothing that a send holds has a part in where it leads, or in who receives a message.
//!
//! The suite's `house` test and the bans in `.clippy.toml` hold the code to these.

pub mod api;
pub mod app;
pub mod backlog;
pub mod batcher;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deadline;
pub mod deliver;
pub mod dial;
pub mod dispatch;
pub mod doors;
pub mod events;
pub mod explain;
pub mod files;
pub mod flow;
pub mod gather;
pub mod intake;
pub mod ledger;
pub mod limits;
pub mod ops;
pub mod outcome;
pub mod policy;
pub mod proxy;
pub mod publication;
pub mod publish;
pub mod record;
pub mod redact;
pub mod request_bin;
pub mod schedule;
pub mod send;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod trace;
pub mod verify;
pub mod world;
