//! How each system is started: which programs, in which order, with which settings.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::{Child, Kind, Running, System, child::Ready};
use crate::{
    process::Group,
    session::{Protocol, Server},
};

/// Signs tokens on loopback.
const SECRET: &str = "a-secret-for-loopback-benchmarks-only";

/// Set for all of Naru's programs. The rate limit is above a load by few users, and Naru's work on a message after the
/// grace time falls within the measured time, and not after it.
const NARU: [(&str, &str); 5] = [
    ("NARU_JWT_SECRET", SECRET),
    ("NARU_LOG", "warn"),
    ("NARU_RATE_MESSAGES_PER_SECOND", "100000"),
    ("NARU_RATE_BURST", "100000"),
    ("NARU_DELIVERY_GRACE", "2s"),
];

/// The repository, with the scripts that start services and peers.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl System {
    /// Starts all of it, and waits until it is ready.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub fn start(&self) -> anyhow::Result<Running> {
        let mut running = Running {
            server: Server { protocol: Protocol::Naru, urls: Vec::new(), secret: SECRET.to_owned() },
            groups: Vec::new(),
            children: Vec::new(),
        };
        match &self.kind {
            Kind::Embedded { binaries } => self.start_embedded(binaries, &mut running)?,
            Kind::Services { binaries } => self.start_services(binaries, &mut running)?,
            Kind::SocketIo => self.start_socketio(&mut running)?,
            Kind::Ejabberd => self.start_ejabberd(&mut running)?,
            #[cfg(test)]
            Kind::Running(server) => {
                running.server = server.clone();
                running.groups.push(Group::of_process(std::process::id())?);
            }
        }
        Ok(running)
    }

    fn start_embedded(&self, binaries: &Path, running: &mut Running) -> anyhow::Result<()> {
        let port = self.port(0);
        self.start_naru("naru", binaries, &[("NARU_LISTEN", &local(port))], Ready::Says(port), running)?;
        running.server.urls.push(http(port));
        Ok(())
    }

    fn start_services(&self, binaries: &Path, running: &mut Running) -> anyhow::Result<()> {
        // Each takes up to three ports.
        let [mongodb, rabbitmq, redis] = [0, 3, 6].map(|number| self.port(number));
        for (name, kind, port) in [
            ("secantusd-rs", "mongodb", mongodb),
            ("RabbitMQ", "rabbitmq", rabbitmq),
            ("Redis", "redis", redis),
        ] {
            self.script(name, "scripts/services", &["run", kind], port, &[], running)?;
        }
        for (name, port) in [("secantusd-rs", mongodb), ("RabbitMQ", rabbitmq), ("Redis", redis)] {
            running.wait(name, Ready::Accepts(port))?;
        }
        let mongodb = format!("mongodb://{}/?replicaSet=secantus", local(mongodb));
        let rabbitmq = format!("amqp://{}/%2f", local(rabbitmq));
        let redis = format!("redis://{}/", local(redis));
        for (program, name, number) in [
            ("persister", "persister", 10),
            ("fanout", "fanout", 11),
            ("notifier", "notifier", 12),
            ("gateway", "gateway 1", 13),
            ("gateway", "gateway 2", 14),
        ] {
            let port = self.port(number);
            let listen = if program == "gateway" { "NARU_LISTEN" } else { "NARU_ADMIN_LISTEN" };
            let variables = [
                ("NARU_MONGODB_URL", mongodb.as_str()),
                ("NARU_AMQP_URL", &rabbitmq),
                ("NARU_REDIS_URL", &redis),
                (listen, &local(port)),
            ];
            self.naru(program, name, binaries, &variables, running)?;
            if program == "gateway" {
                running.server.urls.push(http(port));
            }
        }
        for (name, number) in
            [("persister", 10), ("fanout", 11), ("notifier", 12), ("gateway 1", 13), ("gateway 2", 14)]
        {
            running.wait(name, Ready::Says(self.port(number)))?;
        }
        Ok(())
    }

    fn start_socketio(&self, running: &mut Running) -> anyhow::Result<()> {
        let [postgres, redis] = [0, 3].map(|number| self.port(number));
        self.start_postgres(postgres, running)?;
        self.script("Redis", "scripts/services", &["run", "redis"], redis, &[], running)?;
        running.wait("Redis", Ready::Accepts(redis))?;
        running.server.protocol = Protocol::SocketIo;
        for (name, number) in [("node 1", 10), ("node 2", 11)] {
            let port = self.port(number);
            let (postgres, redis) = (postgres.to_string(), redis.to_string());
            let variables = [
                ("PEERS_POSTGRES_PORT", postgres.as_str()),
                ("PEERS_REDIS_PORT", &redis),
                ("NARU_JWT_SECRET", SECRET),
            ];
            self.script(name, "bench/peers/run", &["socketio"], port, &variables, running)?;
            running.wait(name, Ready::Says(port))?;
            running.server.urls.push(http(port));
        }
        Ok(())
    }

    fn start_ejabberd(&self, running: &mut Running) -> anyhow::Result<()> {
        let (postgres, port) = (self.port(0), self.port(10));
        self.start_postgres(postgres, running)?;
        let postgres = postgres.to_string();
        let variables = [("PEERS_POSTGRES_PORT", postgres.as_str()), ("NARU_JWT_SECRET", SECRET)];
        self.script("ejabberd", "bench/peers/run", &["ejabberd"], port, &variables, running)?;
        running.wait("ejabberd", Ready::Accepts(port))?;
        running.server.protocol = Protocol::Xmpp;
        running.server.urls.push(local(port));
        Ok(())
    }

    fn start_postgres(&self, port: u16, running: &mut Running) -> anyhow::Result<()> {
        self.script("PostgreSQL", "bench/peers/run", &["postgres"], port, &[], running)?;
        // SIGTERM would wait for its clients.
        let child = running.children.pop().expect("started above");
        running.children.push(child.stop_with(Signal::INT));
        running.wait("PostgreSQL", Ready::Accepts(port))
    }

    fn start_naru(
        &self,
        program: &'static str,
        binaries: &Path,
        variables: &[(&str, &str)],
        ready: Ready,
        running: &mut Running,
    ) -> anyhow::Result<()> {
        self.naru(program, program, binaries, variables, running)?;
        running.wait(program, ready)
    }

    /// A program of Naru's.
    fn naru(
        &self,
        program: &str,
        name: &'static str,
        binaries: &Path,
        variables: &[(&str, &str)],
        running: &mut Running,
    ) -> anyhow::Result<()> {
        let (program, data) = (binaries.join(program), self.data.join("naru"));
        let (program, data) = (program.to_string_lossy(), data.to_string_lossy());
        let mut all = vec![("NARU_DATA_DIR", &*data)];
        all.extend(NARU);
        all.extend(variables);
        all.extend(self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let child = Child::start(name, &self.data, &[&program], &all)?;
        running.add(name, child);
        Ok(())
    }

    /// Starts the program of a script of the repository: `SCRIPT WORDS PORT DIR`.
    fn script(
        &self,
        name: &'static str,
        script: &str,
        words: &[&str],
        port: u16,
        variables: &[(&str, &str)],
        running: &mut Running,
    ) -> anyhow::Result<()> {
        let (script, dir) = (root().join(script), self.data.join(name.replace(' ', "-")));
        let (script, dir, port) = (script.to_string_lossy(), dir.to_string_lossy(), port.to_string());
        let command: Vec<&str> =
            [&*script].into_iter().chain(words.iter().copied()).chain([port.as_str(), &dir]).collect();
        let child = Child::start(name, &self.data, &command, variables)?;
        running.add(name, child);
        Ok(())
    }
}

impl Running {
    fn add(&mut self, name: &str, child: Child) {
        self.groups.push(Group::family(name, child.pid()));
        self.children.push(child);
    }

    fn wait(&mut self, name: &str, ready: Ready) -> anyhow::Result<()> {
        let place = self.groups.iter().position(|group| group.name == name).expect("added before");
        self.children[place].wait(ready)
    }
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn http(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
