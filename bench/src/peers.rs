//! The protocol of each system: the few frames that a load needs.

pub mod naru;
pub mod socketio;
pub mod xmpp;
