//! A small client of Naru's wire contract, for tests and load tools.
//!
//! It implements the contract independently: it depends on no other crate of Naru, so a test that uses it fails when
//! the server departs from the contract, instead of departing with it.
//!
//! - [`mod@token`]: tokens as an app's backend signs them, and invalid tokens of every kind.
//! - [`Client`]: one WebSocket session, with [`Connect`] for the unusual ways to open one.
//! - [`Http`]: the HTTP API.
//! - [`ServerProcess`]: a real server as a child process that can be killed.
//! - [`Webhook`]: an app's main backend that takes pushes, or refuses them by script.
//!
//! These are tools for tests: a call that waits does so for at most [`TEST_TIMEOUT`] and then **panics**, naming what it
//! waited for and what came instead. Only opening a session and starting a server return errors, because tests check
//! refusals.

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

/// The longest wait of any call here, far above what a healthy server needs, so that only a real fault exceeds it.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(10);
