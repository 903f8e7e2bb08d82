//! # egressd: the map
//!
//! The tree reads in the order a send travels; imports point down only.
//!
//! | part | what it is |
//! |---|---|
//! | [`app`] | composition: builds every part, owns task lifetimes, drain, reload |
//! | [`config`] | the file as written → [`config::Config`], the file as trusted |
//! | [`telemetry`] | logs, the Prometheus recorder, buckets |
//! | **words** | values only: [`limits`], [`outcome`], [`send`], [`policy`], [`record`], [`redact`], [`publish`] |
//! | **deciding** | no I/O, no clock: [`hold`], [`schedule`], [`source`] |
//! | [`world`] | what judging and delivering share, and what a reload swaps |
//! | **remembering** | [`store`]: queued → started → finished, durable |
//! | **reaching out** | [`deadline`], [`dial`], [`deliver`], [`dispatch`], [`verify`] |
//! | **fronts** | [`intake`], [`api`], [`explain`], [`request_bin`] and [`cli`] |

pub mod api;
pub mod app;
pub mod backlog;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deadline;
pub mod deliver;
pub mod dial;
pub mod dispatch;
pub mod events;
pub mod explain;
pub mod hold;
pub mod intake;
pub mod ledger;
pub mod limits;
pub mod ops;
pub mod outcome;
pub mod policy;
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
pub mod verify;
pub mod world;
