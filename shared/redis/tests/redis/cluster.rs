//! The same on a cluster of three nodes, one of which dies.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};
use std::{fs, net, thread};

use naru_conformance::conformance_suite;
use naru_engines::live::Signal;
use naru_model::GatewayId;
use naru_services::Stopwatch;
use redis::Connection;

use crate::conformance::{Processes, Turns};
use crate::{new_room, next, next_seq, open, publish, subscribe, until, user};

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Three nodes on this machine, each with a third of the slots and no replica.
struct Cluster {
    ports: [u16; 3],
    nodes: Mutex<[Child; 3]>,
}

impl Cluster {
    /// The nodes die with this process, if not before.
    fn start() -> Self {
        // A child that dies with its parent dies with the thread that started it, and a test's thread ends with the
        // test.
        let (sender, started) = mpsc::channel();
        thread::spawn(move || {
            let ports = free_ports::<6>();
            let nodes = [0, 1, 2].map(|node| start_node(ports[node], ports[node + 3]));
            sender.send((ports, nodes)).expect("the receiver waits");
            loop {
                thread::park();
            }
        });
        let ([a, b, c, bus @ ..], nodes) = started.recv().expect("they start");
        let cluster = Self { ports: [a, b, c], nodes: Mutex::new(nodes) };
        let mut connections = cluster.ports.map(connect);
        for (node, slots) in [(0, (0, 5_460)), (1, (5_461, 10_922)), (2, (10_923, 16_383))] {
            let mut add = redis::cmd("CLUSTER");
            add.arg("ADDSLOTSRANGE").arg(slots.0).arg(slots.1).exec(&mut connections[node]).expect("slots");
            let mut meet = redis::cmd("CLUSTER");
            meet.arg("MEET").arg("127.0.0.1").arg(cluster.ports[node]).arg(bus[node]);
            meet.exec(&mut connections[0]).expect("a meeting");
        }
        for connection in &mut connections {
            let ready = || -> redis::RedisResult<bool> {
                let info: String = redis::cmd("CLUSTER").arg("INFO").query(connection)?;
                Ok(["cluster_state:ok", "cluster_known_nodes:3"].iter().all(|line| info.contains(line)))
            };
            eventually(ready);
        }
        cluster
    }

    fn url(&self) -> String {
        self.ports.map(|port| format!("redis://127.0.0.1:{port}/")).join(",")
    }

    fn kill(&self, node: usize) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes[node].kill().expect("it runs");
        nodes[node].wait().expect("it ends");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        (0..3).for_each(|node| self.kill(node));
    }
}

fn start_node(port: u16, bus: u16) -> Child {
    let (port, bus) = (port.to_string(), bus.to_string());
    let config = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cluster-node-{port}.conf"));
    // Of an earlier node on this port, with other neighbours.
    let _none = fs::remove_file(&config);
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "redis-server", "--bind", "127.0.0.1", "--save", ""])
        .args(["--port", &port, "--cluster-port", &bus, "--cluster-enabled", "yes"])
        .args([
            "--cluster-node-timeout",
            "2000",
            "--dir",
            env!("CARGO_TARGET_TMPDIR"),
            "--cluster-config-file",
        ])
        .arg(config)
        .stdout(Stdio::null())
        .spawn()
        .expect("setpriv and redis-server: `scripts/services install`")
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All are held until all are found.
    let held = [(); N].map(|()| net::TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.each_ref().map(|listener| listener.local_addr().expect("bound").port())
}

fn connect(port: u16) -> Connection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).expect("a URL");
    let mut connection = None;
    eventually(|| {
        connection = Some(client.get_connection()?);
        Ok(true)
    });
    connection.expect("just made")
}

/// Asks until it is so.
fn eventually(mut is_so: impl FnMut() -> redis::RedisResult<bool>) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !is_so().unwrap_or(false) {
        assert!(Instant::now() < deadline, "the cluster does not start");
        thread::sleep(Duration::from_millis(10));
    }
}

fn nodes() -> Processes {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    static TURNS: Turns = Turns::const_new(());
    Processes::new(SHARED.get_or_init(Cluster::start).url(), &TURNS)
}

conformance_suite!(live: nodes);

#[tokio::test]
async fn a_node_that_dies_is_replaced_by_another() {
    let cluster = Cluster::start();
    let naru = open(&cluster.url()).await;
    let room = new_room();
    let mut subscriptions = Vec::new();
    for _ in 0..2 {
        subscriptions.push(subscribe(&naru, &GatewayId::generate()).await);
    }
    publish(&naru, &room, 0..1).await.unwrap();
    for subscription in &mut subscriptions {
        assert_eq!(next_seq(subscription, &room).await, 0);
    }
    // Everything goes over the node that this process began with.
    cluster.kill(std::process::id() as usize % 3);
    for subscription in &mut subscriptions {
        assert_eq!(next(subscription).await, Signal::Interrupted);
        until(subscription, Signal::Restored).await;
    }
    publish(&naru, &room, 1..3).await.unwrap();
    for subscription in &mut subscriptions {
        assert_eq!([next_seq(subscription, &room).await, next_seq(subscription, &room).await], [1, 2]);
    }
    // A third of the keys can't be had; the cluster as a whole declines then.
    let asked = Stopwatch::start();
    let users: Vec<_> = (0..100).map(|number| user(&format!("user-{number}"))).collect();
    assert!(naru.presence.online(&users).await.unwrap_err().is_transient());
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
}
