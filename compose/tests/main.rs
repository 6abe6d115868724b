//! What Naru promises, tried on the whole of it. Read [`journey`] first.

mod journey;
mod scenarios;
mod support;
