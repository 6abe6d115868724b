//! The operator's two stop signals: SIGTERM and Ctrl-C. The first starts the drain, the second exits at once.

use std::io;

use tokio_util::sync::CancellationToken;

/// The exit code of a process that Ctrl-C ended, as a shell reports it (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// A token that the first SIGTERM or Ctrl-C cancels; a second one exits the process at once with code 130, for when a
/// drain takes too long.
///
/// From here on neither signal ends the process by itself. Call it once, inside a tokio runtime.
///
/// # Errors
/// When the system refuses to register a signal handler.
pub fn shutdown() -> io::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let name = signals.next().await;
        tracing::info!(signal = name, "shutting down; once more leaves at once");
        token.cancel();
        let name = signals.next().await;
        eprintln!("{name} again: leaving without finishing");
        std::process::exit(INTERRUPTED);
    });
    Ok(shutdown)
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "Ctrl-C",
        }
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn listen() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) -> &'static str {
        self.0.recv().await;
        "Ctrl-C"
    }
}
