//! A small client of Naru's wire contract, for tests and load tools.
//!
//! It is an independent reading of the contract: it depends on no other crate of Naru, so a test that talks through it
//! fails when the server and the contract drift apart, instead of drifting with them.
//!
//! - [`mod@token`]: tokens as an app's backend would sign them, and every kind of bad one.
//! - [`Client`]: one WebSocket session, with [`Connect`] for the unusual ways to open one.
//! - [`Http`]: the HTTP API.
//! - [`ServerProcess`]: a real server as a child process that can be killed.
//! - [`Webhook`]: an app's main backend that takes pushes, or refuses them by script.
//!
//! These are tools for tests: what waits, waits at most [`PATIENCE`] and then **panics**, naming what it waited for
//! and what came instead. Only opening a session and starting a server return errors, because being refused is a
//! result that tests look at.

mod client;
mod connect;
mod http;
mod process;
pub mod token;
pub mod webhook;

use std::time::Duration;

pub use client::{Client, Incoming, Reading};
pub use connect::{Connect, ConnectError};
pub use http::Http;
pub use process::{ServerProcess, StartError};
pub use token::{Claims, token};
pub use webhook::{Answer, Post, Webhook};

/// How long anything here is waited for. Far above what a healthy server needs, so that only a real fault meets it.
pub const PATIENCE: Duration = Duration::from_secs(10);
