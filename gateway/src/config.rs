//! The keys of the configuration that a gateway reads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use naru_runtime::config::{Span, optional};
use serde::Deserialize;

use crate::client_address::{Network, ProxyHeader};
use crate::origin::AllowedOrigins;
use crate::proof_requests::DeliveryProof;

/// Which callers make rooms and add members to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoomCreation {
    /// The members, too.
    Members,
    /// Those with the scope `service` only.
    Service,
}

/// See `defaults.toml`, which explains each key.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    pub listen: SocketAddr,
    #[serde(deserialize_with = "optional")]
    pub admin_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "optional")]
    pub tls_certificate: Option<PathBuf>,
    #[serde(deserialize_with = "optional")]
    pub tls_key: Option<PathBuf>,
    pub trusted_proxies: Vec<Network>,
    pub proxy_header: ProxyHeader,
    pub allowed_origins: AllowedOrigins,
    pub max_content_bytes: usize,
    pub max_frame_bytes: usize,
    pub max_room_members: usize,
    pub room_creation: RoomCreation,
    pub max_rooms_per_user: usize,
    pub max_connections: usize,
    pub max_pending_sends: usize,
    pub session_queue: usize,
    pub session_queue_bytes: usize,
    pub max_queued_bytes: usize,
    pub max_sessions_per_user: usize,
    pub max_devices_per_user: usize,
    pub rate_messages_per_second: u32,
    pub rate_burst: u32,
    pub rate_frames_per_second: u32,
    pub rate_frames_burst: u32,
    pub rate_calls_per_second: u32,
    pub rate_calls_burst: u32,
    pub rate_connects_per_second: u32,
    pub rate_connects_per_address: u32,
    pub http_keep_alive: Span,
    pub ping_interval: Span,
    pub delivery_grace: Span,
    pub delivery_proof: DeliveryProof,
    pub push_ttl: Span,
    pub drain_deadline: Span,
    /// How long after the end of a user's sessions an erasure may complete: no key, but another one in tests.
    #[serde(skip, default = "crate::erase::delay")]
    pub erase_delay: Duration,
}
