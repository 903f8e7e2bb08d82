//! The real process from outside: its commands, its signals, its death, and what Prometheus sees of it.

#![allow(clippy::disallowed_methods, reason = "tests are the outside: they read clocks and make plain connections")]

mod bodies;
mod bucket;
mod clocks;
mod commands;
mod crash;
mod disk;
mod executions;
mod fairness;
mod files;
mod greetings;
#[path = "../suite/support/hostile.rs"]
mod harm;
mod hostile;
mod journal;
mod load;
mod mail;
#[allow(dead_code, reason = "the suite uses more of it")]
#[path = "../suite/support/name_server.rs"]
mod name_server;
mod neighbours;
mod node;
mod old_store;
mod operators;
mod pipes;
mod prometheus;
mod proxy;
mod publish;
mod refused_rows;
mod restored;
mod s3;
mod secrets;
mod signals;
#[allow(dead_code, reason = "the suite uses more of it")]
#[path = "../suite/support/smtp.rs"]
mod smtp;
mod sql;
mod starts;
mod strangers;
mod suspensions;
mod tail;
mod tier;
#[allow(dead_code, reason = "the suite uses more of it")]
#[path = "../suite/support/tls.rs"]
mod tls;
mod traces;
mod waits;
