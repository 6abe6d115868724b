//! What an engine's failure means for its caller. It does not know HTTP or clients.

/// The cause of a failure, as the driver gave it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// What engines answer with.
pub type EngineResult<T> = Result<T, EngineError>;

/// Whether a failed request may have had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It certainly had none.
    No,
    /// It may have had it: only asking again, with the same ids, can tell.
    Unknown,
}

/// A failure, sorted by what to do next.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine can't be reached or can't take more now. The same request may succeed later.
    #[error("{engine} is unavailable: {source}")]
    Unavailable {
        engine: &'static str,
        /// Whether the request may have had its effect.
        applied: Applied,
        source: BoxError,
    },
    /// The same request will fail again: a bug, a full disk, a schema from the future.
    #[error("{engine} refused: {source}")]
    Permanent { engine: &'static str, source: BoxError },
    /// What is stored or was received can't be read. Set it aside; don't try again.
    #[error("{engine} holds something unreadable: {source}")]
    Poison { engine: &'static str, source: BoxError },
}

impl EngineError {
    /// The engine can't be reached; whether the request had its effect is open.
    pub fn unavailable(engine: &'static str, applied: Applied, source: impl Into<BoxError>) -> Self {
        Self::Unavailable { engine, applied, source: source.into() }
    }

    /// The same request will fail again.
    pub fn permanent(engine: &'static str, source: impl Into<BoxError>) -> Self {
        Self::Permanent { engine, source: source.into() }
    }

    /// Something stored or received can't be read.
    pub fn poison(engine: &'static str, source: impl Into<BoxError>) -> Self {
        Self::Poison { engine, source: source.into() }
    }

    /// Whether asking again may help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
