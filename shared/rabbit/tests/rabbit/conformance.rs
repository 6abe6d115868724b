//! Every rule of the bus, on the broker that all tests share.

use async_trait::async_trait;
use naru_conformance::Subject;
use naru_engines::bus::Bus;

use super::fixtures::{Deployment, Process};

naru_conformance::conformance_suite!(bus: fresh);

fn fresh() -> Fresh {
    let mut deployment = Deployment::shared();
    // The suite's rooms are apart in so many.
    deployment.options.partitions = 32;
    Fresh { deployment, processes: Vec::new() }
}

/// A deployment of its own. A process of it dies by having its cable cut: it closes nothing.
struct Fresh {
    processes: Vec<Process>,
    deployment: Deployment,
}

impl Fresh {
    async fn process(&mut self) -> Bus {
        self.processes.push(self.deployment.process().await);
        self.processes[self.processes.len() - 1].bus()
    }
}

#[async_trait]
impl Subject<Bus> for Fresh {
    async fn open(&mut self) -> Bus {
        self.process().await
    }

    async fn reopen(&mut self) -> Bus {
        self.processes.drain(..).for_each(|process| process.cable.cut());
        self.process().await
    }

    async fn beside(&mut self, _: &Bus) -> Bus {
        self.process().await
    }
}
