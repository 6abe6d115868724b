//! The store on a real server: the conformance suite, and what is special about this engine.
//!
//! One process, so that all share one server (`naru_services`); each test has a database of its own in it.

mod between_steps;
mod causal;
mod conformance;
mod costs;
mod fixtures;
mod opening;
mod outages;
mod restored;
mod rooms_of_another;
mod shapes;
