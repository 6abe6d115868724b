//! How a whole provider behaves.

use std::time::Duration;

/// How a provider behaves towards all clients. It holds for open connections as well as for new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Normal.
    #[default]
    Usual,
    /// There is no listener: connections are refused, open ones are dropped.
    Refuse,
    /// Connections are accepted and closed at once, open ones are dropped.
    Closed,
    /// Requests are read and never answered, not even when the behaviour changes.
    Hang,
    /// Every answer comes this much later.
    Slow(Duration),
    /// Each connection gets a GOAWAY this long after it was opened, or after this was set: its accepted requests are
    /// finished, then it is closed.
    GoAway(Duration),
    /// A connection carries at most this many requests at once (`SETTINGS_MAX_CONCURRENT_STREAMS`). Open ones get a GOAWAY,
    /// so that new ones are opened.
    Streams(u32),
}

impl Behaviour {
    /// How many requests a connection carries at once. Usually 1,000, as APNs has been seen to announce.
    pub(crate) const fn max_streams(self) -> u32 {
        match self {
            Self::Streams(streams) => streams,
            _ => 1_000,
        }
    }

    /// When a connection gets its GOAWAY.
    pub(crate) const fn go_away(self) -> Option<Duration> {
        match self {
            Self::GoAway(after) => Some(after),
            _ => None,
        }
    }
}
