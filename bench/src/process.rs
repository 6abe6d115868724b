//! What the kernel says about a process: its memory and its processor time, from `/proc` (see proc(5)).

use std::{fs, io, time::Duration};

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Resident memory now, in KiB.
pub fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    status_kib(pid, "VmRSS:")
}

/// The most resident memory the process ever had, in KiB.
pub fn peak_resident_kib(pid: u32) -> anyhow::Result<u64> {
    status_kib(pid, "VmHWM:")
}

/// Processor time used so far, by the program and by the kernel for it.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = read(pid, "stat")?;
    // The second field is the program's name in parentheses, which may hold anything; `utime` and `stime` are the
    // 14th and 15th.
    let (_, after_name) = stat.rsplit_once(')').context("a stat line has a name")?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks =
        || fields.next().context("a stat line has 15 fields")?.parse::<u64>().map_err(anyhow::Error::from);
    let ticks = ticks()? + ticks()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The program's name, cut to 15 bytes by the kernel.
pub fn name(pid: u32) -> anyhow::Result<String> {
    Ok(read(pid, "comm")?.trim_end().to_owned())
}

/// Lets this process open as many files as the system allows it: a connection is one.
pub fn raise_open_files_limit() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(())
}

fn status_kib(pid: u32, key: &str) -> anyhow::Result<u64> {
    let status = read(pid, "status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(key)).context("the process has ended")?;
    Ok(value.trim_end_matches("kB").trim().parse()?)
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("there is no process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let pid = std::process::id();
        assert!(peak_resident_kib(pid).expect("alive") >= resident_kib(pid).expect("alive"));
        let before = cpu_time(pid).expect("alive");
        while cpu_time(pid).expect("alive") == before {}
    }
}
