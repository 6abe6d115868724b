//! A process's memory and processor time, as the kernel reports them in `/proc` (see proc(5)).

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
    Ok(Stat::of(pid)?.own)
}

/// Processor time of the whole machine since it was started.
pub fn machine_cpu_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().context("the first line is of all processors")?;
    // user nice system idle iowait irq softirq steal; later fields are in these already.
    let ticks = all.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok(ticks_to_time(ticks.iter().sum::<u64>() - idle))
}

fn ticks_to_time(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Several processes that one figure is given for, each with everything that it starts: a broker's helpers, a database's
/// connections.
#[derive(Debug, Clone)]
pub struct Group {
    /// Their name in reports.
    pub name: String,
    /// The first of each family.
    pub pids: Vec<u32>,
    /// Whether the processes that they start are counted.
    pub has_children: bool,
}

impl Group {
    /// One process, named by its program and its id.
    pub fn of_process(pid: u32) -> anyhow::Result<Self> {
        Ok(Self::family(&format!("{} {pid}", name(pid)?), pid))
    }

    /// A process with all that it starts.
    pub fn family(name: &str, pid: u32) -> Self {
        Self { name: name.to_owned(), pids: vec![pid], has_children: true }
    }

    /// This process, without the systems that it has started.
    pub fn tool() -> Self {
        Self { has_children: false, ..Self::family("tool", std::process::id()) }
    }

    /// The processor time that the families have used so far. The time of a child that has ended and was waited for is in
    /// its parent's account (`cutime` and `cstime`), so no time is lost or counted twice.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let families = self.families()?;
        // A process that has ended since is in its parent's account by now or soon.
        let stats = families.iter().filter_map(|pid| Stat::of(*pid).ok());
        let of_children = |stat: &Stat| if self.has_children { stat.waited_for } else { Duration::ZERO };
        Ok(stats.map(|stat| stat.own + of_children(&stat)).sum())
    }

    /// The memory that the families take now, in KiB: a page that several processes share counts once over all of them
    /// (`Pss`).
    pub fn memory_kib(&self) -> anyhow::Result<u64> {
        Ok(self.families()?.into_iter().filter_map(|pid| proportional_kib(pid).ok()).sum())
    }

    fn families(&self) -> anyhow::Result<Vec<u32>> {
        let mut families = self.pids.clone();
        for pid in &families {
            Stat::of(*pid)?;
        }
        if !self.has_children {
            return Ok(families);
        }
        let parents: Vec<(u32, u32)> = fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Some((pid, Stat::of(pid).ok()?.parent)))
            .collect();
        let mut next = 0;
        while let Some(parent) = families.get(next).copied() {
            families.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| pid));
            next += 1;
        }
        Ok(families)
    }
}

/// The fields of `/proc/PID/stat` that are used.
struct Stat {
    parent: u32,
    own: Duration,
    waited_for: Duration,
}

impl Stat {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let stat = read(pid, "stat")?;
        // The second field is the program's name in parentheses, which may hold any character.
        let (_, after_name) = stat.rsplit_once(')').context("a stat line has a name")?;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        // Of the fields, counted from 1: 4 is the parent, 14 to 17 are utime, stime, cutime, cstime.
        let field = |number: usize| fields.get(number - 3).context("a stat line has 17 fields");
        let ticks = |number| -> anyhow::Result<u64> { Ok(field(number)?.parse()?) };
        Ok(Self {
            parent: field(4)?.parse()?,
            own: ticks_to_time(ticks(14)? + ticks(15)?),
            waited_for: ticks_to_time(ticks(16)? + ticks(17)?),
        })
    }
}

fn proportional_kib(pid: u32) -> anyhow::Result<u64> {
    // Another user's process may show less of itself.
    let Ok(rollup) = read(pid, "smaps_rollup") else {
        return resident_kib(pid);
    };
    value_kib(&rollup, "Pss:")
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
    value_kib(&read(pid, "status")?, key)
}

fn value_kib(lines: &str, key: &str) -> anyhow::Result<u64> {
    let value = lines.lines().find_map(|line| line.strip_prefix(key)).context("the process has ended")?;
    Ok(value.trim_end_matches("kB").trim().parse()?)
}

fn read(pid: u32, file: &str) -> anyhow::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("there is no process {pid}"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let pid = std::process::id();
        assert!(peak_resident_kib(pid).expect("alive") >= resident_kib(pid).expect("alive"));
        let before = cpu_time(pid).expect("alive");
        while cpu_time(pid).expect("alive") == before {}
    }

    #[test]
    fn a_family_is_a_process_and_all_that_it_starts() {
        // A child that has worked and ended, and one that lives.
        let script = "(i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done); echo; cat; echo";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = shell.spawn().expect("there is a shell");
        let group = Group::family("shell", shell.id());
        shell.stdout.take().expect("piped").read_exact(&mut [0]).expect("the first has ended");
        while group.families().expect("alive").len() < 2 {}
        let stat = Stat::of(shell.id()).expect("alive");
        assert!(stat.waited_for > Duration::ZERO && group.cpu_time().expect("alive") >= stat.waited_for);
        assert!(group.memory_kib().expect("alive") > proportional_kib(shell.id()).expect("alive"));
        drop(shell.stdin.take());
        shell.wait().expect("it ends");
        assert!(group.cpu_time().is_err(), "an ended process has no figures");
    }
}
