//! What every Naru process needs and knows no chat.
pub mod backoff; pub mod config; pub mod signal; pub mod telemetry;
