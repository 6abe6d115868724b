//! The providers, seen by a client of another make: reqwest, with nothing of Naru's.

mod admin;
mod answers;
mod apns;
mod conduct;
mod fcm;
mod kept;
mod oauth;
mod record;
mod world;
