//! Every rule of the bus, on the broker that all tests share.

use async_trait::async_trait;
use naru_engines::bus::Bus;
use naru_engines::conformance::{BoundedBus, Subject};

use super::given::{Place, Process};

naru_engines::conformance_suite!(bus, bounded: fresh);

fn fresh() -> Fresh {
    let mut place = Place::shared();
    // The suite's rooms are apart in so many.
    place.options.partitions = 32;
    Fresh { place, processes: Vec::new() }
}

/// A deployment of its own. A process of it dies by having its cable cut: it closes nothing.
struct Fresh {
    processes: Vec<Process>,
    place: Place,
}

impl Fresh {
    async fn process(&mut self) -> Bus {
        self.processes.push(self.place.process().await);
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

/// How many messages wait in a queue that is full: as many events, sent one by one.
const MAX_LENGTH: u32 = 20;
/// How many more the receiver holds.
const PREFETCH: u16 = 5;

#[async_trait]
impl Subject<BoundedBus> for Fresh {
    async fn open(&mut self) -> BoundedBus {
        let options = &mut self.place.options;
        options.max_length = Some(MAX_LENGTH);
        (options.prefetch_ordered, options.prefetch_durable) = (PREFETCH, PREFETCH);
        let hops = &["accepted", "saved", "offline", "push.fcm", "push.apns", "push.webhook"];
        // A quorum queue tells its publishers that it is full when it is; until they hear of it they go on.
        let late = 1;
        let capacity = MAX_LENGTH as usize + usize::from(PREFETCH) + late;
        BoundedBus { bus: self.process().await, hops, capacity }
    }

    async fn reopen(&mut self) -> BoundedBus {
        Subject::<BoundedBus>::open(self).await
    }
}
