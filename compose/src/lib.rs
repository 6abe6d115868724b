//! The programs: they combine workers and engines.
//!
//! [`Pipeline`] runs the four workers on one set of engines in one process: the program `naru`, which the tests drive, too.
//! [`service`] is the `main` that the programs `gateway`, `persister`, `fanout` and `notifier` share; each runs one worker
//! on MongoDB, RabbitMQ and Redis ([`distributed`]).

mod address;
pub mod demo;
pub mod distributed;
pub mod epoch;
pub mod parked;
pub mod phones;
pub mod pipeline;
pub mod secret;
pub mod service;
pub mod token;

use naru_runtime::Program;

pub use crate::pipeline::Pipeline;

/// The program with all of Naru in one process.
pub const PROGRAM: Program = Program {
    name: "naru",
    about: "Carries chat messages from one phone to another and never loses one: all of Naru in one process.",
    overrides: &[("engine", "embedded")],
};
