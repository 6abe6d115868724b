//! The providers, seen by a client of another make: reqwest, with nothing of Naru's.

mod answers;
mod apns;
mod behaviour;
mod fcm;
mod fixture;
mod keys;
mod oauth;
mod record;
