//! How each system is spoken to: the few frames of its protocol that a load needs.

pub mod naru;
pub mod socketio;
pub mod xmpp;
