//! All of Naru in one process.
//!
//! [`Pipeline`] puts the four workers on one set of engines; the binary `naru` runs it, the tests drive it. The workers
//! are the same that run as services of their own; only what they stand on differs.

mod address;
pub mod demo;
pub mod parked;
pub mod phones;
pub mod pipeline;
pub mod secret;
pub mod token;

use naru_runtime::Door;

pub use crate::pipeline::Pipeline;

/// The all-in-one's door.
pub const DOOR: Door = Door {
    name: "naru",
    about: "Carries chat messages from one phone to another and never loses one: all of Naru in one process.",
    overrides: &[("engine", "embedded")],
};
