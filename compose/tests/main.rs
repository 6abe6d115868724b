//! What Naru promises, tried on the whole of it. Read [`journey`] first.

mod api;
mod bad_input;
mod costs;
mod crash;
mod disk;
mod distributed;
mod faults;
mod http;
mod identity;
mod interruption;
mod journey;
mod limits;
mod output;
mod page;
mod parked;
mod phones;
mod programs;
mod proof;
mod removal;
mod resends;
mod restore;
mod scenarios;
mod settings;
mod support;
mod users;
mod websocket;
