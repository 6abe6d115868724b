//! What a process prints: log lines and errors on stderr, its address on stdout. Printing never fails or blocks the task that
//! prints.
//!
//! Both streams are as a rule pipes to another process. That process may end (`naru 2>&1 | tee log`, then Ctrl-C): each write
//! then fails, and `println!` and `eprintln!` panic. Or it may stop reading: the pipe fills up, and each write blocks its
//! thread. A line that can't be written is lost here, and counted in `naru_log_lost_lines_total`.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

/// How long a full pipe may take to accept more: a reader that is only slow loses no line.
const WRITABLE_WITHIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// A pipe that polls as writable takes this much without blocking: a page.
const WITHOUT_BLOCKING: usize = 4096;

/// Lines that could not be written since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Whether the last line found a full pipe. The next one then waits for nothing.
static STALLED: AtomicBool = AtomicBool::new(false);

/// Prints a line on stdout.
pub fn line(text: impl std::fmt::Display) {
    print(&mut io::stdout().lock(), format!("{text}\n").as_bytes());
}

/// Prints a line on stderr, where the log is.
pub fn error_line(text: impl std::fmt::Display) {
    print(&mut io::stderr().lock(), format!("{text}\n").as_bytes());
}

/// Where the log goes. Each write is a whole line and succeeds, as far as the log is concerned.
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        print(&mut io::stderr().lock(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn print(stream: &mut (impl Write + AsFd), line: &[u8]) {
    if try_print(stream, line).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

fn try_print(stream: &mut (impl Write + AsFd), line: &[u8]) -> io::Result<()> {
    for part in line.chunks(WITHOUT_BLOCKING) {
        let wait = if STALLED.load(Ordering::Relaxed) { Timespec::default() } else { WRITABLE_WITHIN };
        let is_writable =
            retry_on_intr(|| poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&wait)))? > 0;
        STALLED.store(!is_writable, Ordering::Relaxed);
        if !is_writable {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        stream.write_all(part)?;
    }
    stream.flush()
}

/// The counter of lost lines.
#[derive(Debug)]
pub(crate) struct Lost;

impl Collector for Lost {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help =
            "Lines for stderr or stdout that could not be written, as when the reader of the pipe has ended.";
        let metric = encoder.encode_descriptor("naru_log_lost_lines", help, None, MetricType::Counter)?;
        ConstCounter::new(LOST.load(Ordering::Relaxed)).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, Instant};

    use super::*;

    /// One test, because the streams of a process share `STALLED`.
    #[test]
    fn a_line_is_lost_and_nothing_fails_or_blocks_when_the_reader_stops_or_ends() {
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        try_print(&mut writer, b"one\n").expect("it is read");

        // The reader stops: 64 KiB later the pipe is full.
        let line = [b'.'; 100_000];
        let begun = Instant::now();
        let full = try_print(&mut writer, &line).expect_err("nothing reads");
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(begun.elapsed() >= Duration::from_millis(100), "a slow reader has a moment");
        let begun = Instant::now();
        for _ in 0..100 {
            try_print(&mut writer, b"two\n").expect_err("nothing reads");
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "each line waited for the reader");

        // It reads again.
        let mut read = [0; 60_000];
        reader.read_exact(&mut read).expect("what was written");
        try_print(&mut writer, b"three\n").expect("there is space again");

        // It ends.
        drop(reader);
        let broken = try_print(&mut writer, b"four\n").expect_err("the pipe is broken");
        assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
        let before = LOST.load(Ordering::Relaxed);
        print(&mut writer, b"five\n");
        assert_eq!(LOST.load(Ordering::Relaxed), before + 1);
    }
}
