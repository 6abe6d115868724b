//! A program of a system: started so that it never outlives the tool, stopped by its id.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a program may take to start. The slowest, RabbitMQ, takes some seconds.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long it may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How many lines of a log are shown.
const LOG_LINES: usize = 20;

/// When a program is ready.
#[derive(Debug, Clone, Copy)]
pub enum Ready {
    /// It accepts connections at this port.
    Accepts(u16),
    /// It answers `GET /readyz` with 200 at this port.
    Says(u16),
}

/// A running program. Dropping it kills it.
pub struct Child {
    name: &'static str,
    process: std::process::Child,
    stop_with: Signal,
    log: PathBuf,
}

impl Child {
    /// Starts it; its output goes to `NAME.log` in `dir`.
    pub fn start(
        name: &'static str,
        dir: &Path,
        command: &[&str],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let log = dir.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        // However the tool ends, the program ends with it.
        let mut program = Command::new("setpriv");
        program.args(["--pdeathsig", "KILL", "--"]).args(command);
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"NARU_") {
                program.env_remove(variable);
            }
        }
        program.envs(variables.iter().copied());
        program.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = program.spawn().with_context(|| format!("{name} can't be started"))?;
        Ok(Self { name, process, stop_with: Signal::TERM, log })
    }

    /// The same, stopped by another signal than SIGTERM.
    pub fn stop_with(mut self, signal: Signal) -> Self {
        self.stop_with = signal;
        self
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it is ready.
    pub fn wait(&mut self, ready: Ready) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !ready.is_so() {
            if let Some(status) = self.process.try_wait()? {
                bail!("{} has ended ({status}); the last of {}", self.name, self.last_of_log());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} is not ready after {START_TIMEOUT:?}; the last of {}",
                    self.name,
                    self.last_of_log()
                );
            }
            thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    /// Asks it to stop, and waits until it has. One that takes too long is killed.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.process.id().cast_signed()).context("a pid is not zero")?;
        if self.process.try_wait()?.is_none() {
            kill_process(pid, self.stop_with)?;
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.process.try_wait()?.is_none() && Instant::now() < deadline {
            thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    fn last_of_log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("{}:\n{}", self.log.display(), last.join("\n"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Ready {
    fn is_so(self) -> bool {
        match self {
            Self::Accepts(port) => TcpStream::connect(("127.0.0.1", port)).is_ok(),
            Self::Says(port) => is_ok(port).unwrap_or(false),
        }
    }
}

fn is_ok(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_says_why() {
        let dir = std::env::temp_dir().join(format!("naru-bench-{}", std::process::id()));
        let mut child = Child::start("program", &dir, &["sh", "-c", "echo no; exit 3"], &[]).expect("starts");
        let error = child.wait(Ready::Accepts(1)).expect_err("it ends").to_string();
        assert!(error.contains("(exit status: 3)") && error.ends_with("program.log:\nno"), "{error}");
        fs::remove_dir_all(&dir).expect("made above");
    }

    #[test]
    fn a_program_is_stopped_by_its_signal() {
        let dir = std::env::temp_dir().join(format!("naru-bench-stop-{}", std::process::id()));
        let child = Child::start("program", &dir, &["sleep", "600"], &[]).expect("starts");
        let process = format!("/proc/{}", child.pid());
        child.stop_with(Signal::INT).stop().expect("stops");
        assert!(!Path::new(&process).exists());
        fs::remove_dir_all(&dir).expect("made above");
    }
}
