//! What Naru promises, tried on the whole of it. Read [`journey`] first.

mod api;
mod bad_input;
mod costs;
mod crash;
mod distributed;
mod faults;
mod interruption;
mod journey;
mod page;
mod parked;
mod phones;
mod programs;
mod proof;
mod resends;
mod scenarios;
mod support;
