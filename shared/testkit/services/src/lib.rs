//! Real services for tests: Redis, RabbitMQ and a MongoDB-wire server, and a fake of the push providers, each a child
//! process on a port and in a folder of its own, started by `scripts/services` and stopped by its pid. None outlives the
//! process that started it, however that ends.
//!
//! [`url`] returns the one service of a kind that the whole test process shares. A [`Service`] is the test's own, to be
//! stopped, killed, frozen and started again. A failed start **panics**, with the service's log: a test that needs a
//! service and has none has failed.

mod stopwatch;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::iter;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::panic;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

pub use stopwatch::Stopwatch;

/// How long a service may take to start. RabbitMQ takes about five seconds, several times that when both cores compile.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a service is asked whether it has started.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// Below the range from which the system gives ports to clients.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// RabbitMQ takes this many ports in a row: its own, Erlang's distribution, Erlang's port mapper.
const PORTS_EACH: u16 = 3;

/// How many virtual hosts the broker has for tests that want one of their own.
const VIRTUAL_HOSTS: usize = 32;

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A MongoDB-wire server, a replica set of one.
    Mongodb,
    Rabbitmq,
    Redis,
    /// mockpost: an independent implementation of FCM and APNs.
    Mockpost,
}

impl Kind {
    /// Those that Naru depends on.
    pub const ALL: [Kind; 3] = [Kind::Mongodb, Kind::Rabbitmq, Kind::Redis];

    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Mongodb => "mongodb",
            Kind::Rabbitmq => "rabbitmq",
            Kind::Redis => "redis",
            Kind::Mockpost => "mockpost",
        }
    }

    /// The variable whose URL is used in the place of a service started here, to test against another service.
    pub const fn variable(self) -> &'static str {
        match self {
            Kind::Mongodb => "NARU_TEST_MONGODB_URL",
            Kind::Rabbitmq => "NARU_TEST_AMQP_URL",
            Kind::Redis => "NARU_TEST_REDIS_URL",
            Kind::Mockpost => "NARU_TEST_MOCKPOST_URL",
        }
    }

    fn url(self, port: u16) -> String {
        match self {
            Kind::Mongodb => format!("mongodb://127.0.0.1:{port}/?replicaSet=secantus"),
            Kind::Rabbitmq => format!("amqp://127.0.0.1:{port}/%2f"),
            Kind::Redis => format!("redis://127.0.0.1:{port}/"),
            Kind::Mockpost => format!("https://localhost:{port}"),
        }
    }

    /// Whether the server at `port` answers.
    fn answers(self, port: u16) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut first = [0];
        let greeting: &[u8] = match self {
            Kind::Mongodb | Kind::Mockpost => return Ok(true),
            Kind::Rabbitmq => b"AMQP\0\0\x09\x01",
            Kind::Redis => b"PING\r\n",
        };
        stream.write_all(greeting)?;
        stream.read_exact(&mut first)?;
        // RabbitMQ's first frame is a method; Redis answers +PONG.
        Ok(first == [1] || first == *b"+")
    }
}

/// The URL of the one service of this kind that the whole test process shares.
///
/// # Panics
/// When it can't be started.
pub fn url(kind: Kind) -> &'static str {
    static SHARED: [OnceLock<(String, Option<Service>)>; 4] = [const { OnceLock::new() }; 4];
    let (url, _service) = SHARED[kind as usize].get_or_init(|| match std::env::var(kind.variable()) {
        Ok(url) if !url.is_empty() => (url, None),
        _ => {
            let service = Service::start(kind);
            show_on_failure(&service);
            (service.url(), Some(service))
        }
    });
    url
}

/// The first test that fails prints the end of the shared service's log, which may show the cause.
fn show_on_failure(service: &Service) {
    /// How many lines are printed.
    const LINES: usize = 200;
    let (kind, log, is_shown) = (service.kind, service.log(), AtomicBool::new(false));
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |failure| {
        before(failure);
        if !is_shown.swap(true, Ordering::Relaxed) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(LINES)..];
            eprintln!("the last of the log of {}:\n{}", kind.as_str(), last.join("\n"));
        }
    }));
}

/// The URL of a RabbitMQ virtual host of its own, on the broker that the test process shares.
///
/// # Panics
/// When the broker can't be started, or all virtual hosts are given.
pub fn own_virtual_host() -> String {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    let number = GIVEN.fetch_add(1, Ordering::Relaxed);
    assert!(number < VIRTUAL_HOSTS, "there are {VIRTUAL_HOSTS} virtual hosts; see VIRTUAL_HOSTS");
    format!("{}own{number}", url(Kind::Rabbitmq).trim_end_matches("%2f"))
}

/// RabbitMQ's definitions at its start: the user that every installation has, and virtual hosts for tests.
fn definitions() -> String {
    let names: Vec<String> =
        iter::once("/".to_owned()).chain((0..VIRTUAL_HOSTS).map(|number| format!("own{number}"))).collect();
    let each =
        |entry: &dyn Fn(&str) -> String| names.iter().map(|name| entry(name)).collect::<Vec<_>>().join(",");
    let hosts = each(&|name| format!(r#"{{"name":"{name}"}}"#));
    let permissions = each(&|name| {
        format!(r#"{{"user":"guest","vhost":"{name}","configure":".*","write":".*","read":".*"}}"#)
    });
    format!(
        r#"{{"users":[{{"name":"guest","password":"guest","tags":["administrator"]}}],"vhosts":[{hosts}],"permissions":[{permissions}]}}"#
    )
}

/// A running service, or one that was stopped and may be started again. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Service {
    kind: Kind,
    port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl Service {
    /// Starts a service on a free port, in a new folder; returns when it answers.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start(kind: Kind) -> Self {
        let mut service = Self { kind, port: free_port(), dir: new_dir(kind), child: None };
        if kind == Kind::Rabbitmq {
            fs::write(service.dir.path().join("definitions.json"), definitions()).expect("a new folder");
        }
        service.start_again();
        service
    }

    /// Starts it again after [`Service::stop`] or [`Service::kill`], on the same port and data; returns when it answers.
    ///
    /// # Panics
    /// When it runs, or can't be started.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.kind.as_str());
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(script())
            .args(["run", self.kind.as_str(), &self.port.to_string()])
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        self.child = Some(spawn(command));
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.kind.answers(self.port).unwrap_or(false) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            let late = Instant::now() > deadline;
            if ended.is_some() || late {
                panic!(
                    "{} did not start ({}). Is it installed? `scripts/services install` does that. Its log:\n{}",
                    self.kind.as_str(),
                    ended.map_or_else(|| "no answer".to_owned(), |status| status.to_string()),
                    fs::read_to_string(self.log()).unwrap_or_default()
                );
            }
            thread::sleep(ASK_EVERY);
        }
    }

    pub fn url(&self) -> String {
        self.kind.url(self.port)
    }

    /// Its port on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Ends it with SIGTERM and waits until it has ended.
    pub fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Makes it hang: it keeps its connections and answers nothing (SIGSTOP). Returns when all its threads have stopped: until
    /// then it may still answer.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        let pid = self.signal(Signal::STOP);
        waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).expect("our own child can be waited for");
    }

    /// Lets it go on after [`Service::freeze`].
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Its log so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("service.log")
    }

    fn signal(&self, signal: Signal) -> Pid {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a pid");
        kill_process(pid, signal).expect("the process is not waited for yet");
        pid
    }

    fn end(&mut self, signal: Signal) {
        if self.child.is_some() {
            self.signal(signal);
            self.child.take().expect("just seen").wait().expect("a child");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("the log of {}:\n{}", self.kind.as_str(), self.log_text());
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../scripts/services")
}

/// Spawns a child on a thread that lives as long as this process: a child that dies with its parent dies with the
/// *thread* that spawned it, and a test's thread ends with the test.
fn spawn(command: Command) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static KEEPER: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in taken {
                let _nobody_waits = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, answered) = mpsc::channel();
    KEEPER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send((command, answer))
        .expect("the keeper lives as long as this process");
    answered.recv().expect("an answer").expect("setpriv, which every Linux has")
}

/// A port without a listener, with the two after it; none is given twice by this process.
fn free_port() -> u16 {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    let places = (PORTS.end - PORTS.start) / PORTS_EACH;
    // Test processes that run side by side begin at different places.
    let first = u16::try_from(std::process::id().wrapping_mul(31) % u32::from(places)).expect("below 12,000");
    (0..places)
        .map(|step| PORTS.start + (first + step) % places * PORTS_EACH)
        .find(|port| {
            let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            !given.contains(port) && (*port..port + PORTS_EACH).all(free) && given.insert(*port)
        })
        .expect("a free port")
}

/// A new folder. Folders that killed test processes left behind are removed.
fn new_dir(kind: Kind) -> TempDir {
    const NAME: &str = "naru-services-";
    static SWEPT: OnceLock<()> = OnceLock::new();
    let temp = std::env::temp_dir();
    SWEPT.get_or_init(|| {
        for entry in fs::read_dir(&temp).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix(NAME)?.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _still_in_use = fs::remove_dir_all(entry.path());
            }
        }
    });
    tempfile::Builder::new()
        .prefix(&format!("{NAME}{}-{}-", std::process::id(), kind.as_str()))
        .tempdir_in(temp)
        .expect("a folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_port_through_death_and_leaves_nothing_behind() {
        let mut redis = Service::start(Kind::Redis);
        let (port, dir) = (redis.port(), redis.dir.path().to_owned());
        assert!(Kind::Redis.answers(port).unwrap());
        redis.kill();
        assert!(Kind::Redis.answers(port).is_err());
        redis.start_again();
        assert!(Kind::Redis.answers(port).unwrap());
        redis.stop();
        assert!(redis.log_text().contains("User requested shutdown"), "SIGTERM is an orderly stop");
        drop(redis);
        assert!(!dir.exists());
    }
}
