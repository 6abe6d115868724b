//! A real server as a child process that a test starts, drains or kills.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, copy, sink},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::TEST_TIMEOUT;

const READY: &str = "listening on ";

/// A running server. Dropping it kills the process and, in a failing test, prints its log.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    pid: Pid,
    url: String,
    log: PathBuf,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program could not be started.
    #[error("cannot start {binary}")]
    Spawn {
        binary: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The program ended, or timed out, before it printed its address.
    #[error("{binary} did not say `{READY}…` ({outcome}); its log:\n{log}")]
    NotReady {
        binary: PathBuf,
        /// Its exit status, or that it still runs.
        outcome: String,
        /// Its stderr.
        log: String,
    },
}

impl ServerProcess {
    /// Starts `binary` on `data_dir` and waits until it prints its address.
    ///
    /// It gets the variables of this process without any `NARU_*`, then `NARU_LISTEN=127.0.0.1:0` and `NARU_DATA_DIR`,
    /// then `variables`, which take precedence. Its stderr is appended to `stderr.log` in `data_dir`, so that a server
    /// started again on the same directory continues the log.
    pub async fn start(
        binary: impl AsRef<Path>,
        data_dir: impl AsRef<Path>,
        variables: &[(&str, &str)],
    ) -> Result<Self, StartError> {
        let (binary, data_dir) = (binary.as_ref(), data_dir.as_ref());
        let log = data_dir.join("stderr.log");
        let spawn_error = |source| StartError::Spawn { binary: binary.to_owned(), source };
        let mut child = fs::create_dir_all(data_dir)
            .and_then(|()| File::options().create(true).append(true).open(&log))
            .and_then(|stderr| command(binary, data_dir, variables).stderr(stderr).spawn())
            .map_err(spawn_error)?;

        let pid =
            child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("a process not yet waited for");
        let stdout = child.stdout.take().expect("stdout is piped");
        match timeout(TEST_TIMEOUT, ready(stdout)).await {
            Ok(Some(url)) => Ok(Self { child, pid, url, log }),
            ended_or_silent => {
                let outcome = match ended_or_silent {
                    Ok(_) => {
                        child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
                    }
                    Err(_) => format!("still running after {TEST_TIMEOUT:?}"),
                };
                Err(StartError::NotReady { binary: binary.to_owned(), outcome, log: read_log(&log) })
            }
        }
    }

    /// `http://address:port`, as the server printed it.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Its stderr so far.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// Sends SIGKILL; returns when the process has ended.
    pub async fn kill9(&mut self) {
        self.child.kill().await.expect("our own child can be killed");
    }

    /// Sends SIGTERM, on which the server drains. Does nothing if the process has ended.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Makes it hang: it keeps its connections and does nothing (SIGSTOP). Returns when all its threads have stopped. Does
    /// nothing if the process has ended.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        // It fails when the process has ended.
        let _stopped = waitid(WaitId::Pid(self.pid), WaitIdOptions::STOPPED);
    }

    /// Lets it go on after [`ServerProcess::freeze`]. Does nothing if the process has ended.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        // A child that was waited for has no id: its number may belong to another process by now.
        if self.child.id().is_some() {
            kill_process(self.pid, signal).expect("our own child can be signalled");
        }
    }

    /// Waits until the process has ended by itself.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        match timeout(deadline, self.child.wait()).await {
            Ok(status) => status.expect("our own child can be waited for"),
            Err(_) => panic!("the server was still running after {deadline:?}"),
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // The child itself is killed by `kill_on_drop`.
        if std::thread::panicking() {
            eprintln!("--- log of the server at {}\n{}--- end of log", self.url, self.log());
        }
    }
}

fn command(binary: &Path, data_dir: &Path, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"NARU_") {
            command.env_remove(name);
        }
    }
    command
        .env("NARU_LISTEN", "127.0.0.1:0")
        .env("NARU_DATA_DIR", data_dir)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The URL from the line with [`READY`]; `None` when stdout ends before it. The rest of stdout is read and discarded,
/// because a full pipe would block the server.
async fn ready(stdout: ChildStdout) -> Option<String> {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(url) = line.strip_prefix(READY) {
            let url = url.trim().to_owned();
            tokio::spawn(async move { copy(&mut lines.into_inner(), &mut sink()).await });
            return Some(url);
        }
    }
    None
}

fn read_log(path: &Path) -> String {
    fs::read(path)
        .map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const FAKE_SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/process/fake-server.sh");

    #[tokio::test]
    async fn a_server_starts_drains_and_dies() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let data = directory.path().join("data");
        let variables = [("NARU_JWT_SECRET", "secret")];

        let mut server = ServerProcess::start(FAKE_SERVER, &data, &variables).await.expect("starts");
        assert_eq!(server.url(), "http://127.0.0.1:4242");
        assert!(Path::new(&format!("/proc/{}", server.pid())).exists());
        server.terminate();
        assert_eq!(server.wait_exit(TEST_TIMEOUT).await.signal(), Some(15));
        server.terminate();

        let mut server = ServerProcess::start(FAKE_SERVER, &data, &variables).await.expect("starts again");
        server.kill9().await;
        assert_eq!(server.wait_exit(TEST_TIMEOUT).await.signal(), Some(9));
        assert_eq!(server.log(), "127.0.0.1:0 secret\n127.0.0.1:0 secret\n");
    }

    #[tokio::test]
    async fn a_server_that_refuses_to_start_says_why() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let error = ServerProcess::start(FAKE_SERVER, directory.path(), &[]).await.expect_err("it ends");
        assert!(error.to_string().ends_with("(exit status: 3); its log:\n127.0.0.1:0 \n"), "{error}");
    }
}
