//! What the integration tests share.
#![allow(dead_code, reason = "not every test uses every helper")]

pub mod ground;
pub mod hostile;
pub mod name_server;
pub mod network;
pub mod receiver;
pub mod smtp;
pub mod tls;
