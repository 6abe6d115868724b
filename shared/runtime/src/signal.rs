//! The operator's stop signals: SIGTERM, Ctrl-C and SIGHUP. The first starts the drain, a second SIGTERM or Ctrl-C exits at
//! once.

use std::io;

use tokio_util::sync::CancellationToken;

use crate::output;

/// The exit code of a process that Ctrl-C ended, as a shell reports it (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// A token that the first SIGTERM, Ctrl-C or SIGHUP cancels; another SIGTERM or Ctrl-C exits the process at once with code
/// 130, for when a drain takes too long. Another SIGHUP does nothing: a terminal that closes sends one, and its shell a
/// second. A process that was started to outlive its terminal (`nohup`) goes on ignoring it.
///
/// From here on no signal of these ends the process by itself. Call it once, inside a tokio runtime.
///
/// # Errors
/// When the system refuses to register a signal handler.
pub fn shutdown() -> io::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let name = signals.stop().await;
        token.cancel();
        tracing::info!(signal = name, "shutting down; SIGTERM or Ctrl-C once more leaves at once");
        let name = signals.leave().await;
        output::error_line(format_args!("{name} again: leaving without finishing"));
        std::process::exit(INTERRUPTED);
    });
    Ok(shutdown)
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// None: it was ignored when the process started.
    hangup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    async fn stop(&mut self) -> &'static str {
        let Self { terminate, interrupt, hangup } = self;
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "Ctrl-C",
            Some(_) = async { hangup.as_mut()?.recv().await } => "SIGHUP",
        }
    }

    async fn leave(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "Ctrl-C",
        }
    }
}

/// Whether SIGHUP is ignored, by proc_pid_status(5): `SigIgn` is a mask in hexadecimal digits, whose lowest bit is signal 1,
/// SIGHUP. Where it can't be read, as on another system, the signal is taken not to be ignored.
#[cfg(unix)]
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn listen() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn stop(&mut self) -> &'static str {
        self.0.recv().await;
        "Ctrl-C"
    }

    async fn leave(&mut self) -> &'static str {
        self.stop().await
    }
}
