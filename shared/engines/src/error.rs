//! The errors of engines, by what they mean for the caller. They do not depend on HTTP or on clients.

/// The cause of a failure, as the driver gave it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

pub type EngineResult<T> = Result<T, EngineError>;

/// Whether a failed request may have had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It had no effect.
    No,
    /// It may have had it: only a retry with the same ids shows whether.
    Unknown,
}

/// A failure, sorted by what to do next.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine can't be reached or can't take more now, as on a full disk. The same request may succeed later, unchanged: when an
    /// operator has acted, if need be.
    #[error("{engine} is unavailable: {source}")]
    Unavailable {
        engine: &'static str,
        /// Whether the request may have had its effect.
        applied: Applied,
        source: BoxError,
    },
    /// The same request will fail again: a bug, a schema from the future.
    #[error("{engine} refused: {source}")]
    Permanent { engine: &'static str, source: BoxError },
    /// A stored or received value can't be read. Set it aside; don't retry it.
    #[error("{engine} holds something unreadable: {source}")]
    Poison { engine: &'static str, source: BoxError },
}

impl EngineError {
    /// The engine can't be reached; `applied`: whether the request may have had its effect.
    pub fn unavailable(engine: &'static str, applied: Applied, source: impl Into<BoxError>) -> Self {
        Self::Unavailable { engine, applied, source: source.into() }
    }

    /// The same request will fail again.
    pub fn permanent(engine: &'static str, source: impl Into<BoxError>) -> Self {
        Self::Permanent { engine, source: source.into() }
    }

    /// A stored or received value can't be read.
    pub fn poison(engine: &'static str, source: impl Into<BoxError>) -> Self {
        Self::Poison { engine, source: source.into() }
    }

    /// Whether a retry may help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
