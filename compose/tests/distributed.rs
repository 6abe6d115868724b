//! The same promises with each worker a process of its own, on real services: MongoDB's protocol, RabbitMQ, Redis.
//!
//! Read [`journey`] first: it is [`crate::journey`] once more. Each test has a [`Cluster`]: a database, a virtual host and a
//! Redis that no other test uses.

mod cluster;
pub mod costs;
mod delivery_tracker;
mod erase;
mod forward;
mod journey;
mod kills;
mod lapses;
mod meter;
mod outages;
mod pushes;
mod restore;
mod scale;
mod traffic;
mod unreadable;
