//! What Naru promises, tried on the whole of it. Read [`journey`] first.

mod api;
mod authorisation;
mod bad_input;
mod costs;
mod crash;
mod distributed;
mod faults;
mod http;
mod identity;
mod interruption;
mod journey;
mod limits;
mod log;
mod output;
mod page;
mod parked;
mod phones;
mod programs;
mod proof;
mod resends;
mod scenarios;
mod security;
mod settings;
mod support;
mod users;
mod websocket;
