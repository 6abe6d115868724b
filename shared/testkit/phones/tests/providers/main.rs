//! The providers, seen by a client of another make: reqwest, with nothing of Naru's.

mod answers;
mod apns;
mod conduct;
mod fcm;
mod keys;
mod oauth;
mod record;
mod world;
