//! The conformance suite, on one server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use naru_conformance::conformance_suite;
use naru_conformance::{LiveLayer, SeverableLayer, Subject};
use naru_redis::{Options, Redis};
use naru_services::{Kind, Service};
use tokio::sync::MutexGuard;

use crate::{layer, open};

/// Processes of one deployment, as the server knows it. All cases share it, one after the other: every gateway
/// receives every message, so one case's flood would interrupt another's, and L4's takes no interruption.
pub(crate) struct Processes {
    url: String,
    turns: &'static Turns,
    turn: Option<MutexGuard<'static, ()>>,
}

/// Whose turn it is on one deployment.
pub(crate) type Turns = tokio::sync::Mutex<()>;

impl Processes {
    pub(crate) fn new(url: String, turns: &'static Turns) -> Self {
        Self { url, turns, turn: None }
    }

    async fn start(&self) -> LiveLayer {
        // Soon full, so that the end of a flood is soon received.
        let options = Options { live_backlog: 256, ..Options::default() };
        layer(&Redis::open(&self.url, options).await.expect("the server answers"))
    }
}

#[async_trait]
impl Subject<LiveLayer> for Processes {
    async fn open(&mut self) -> LiveLayer {
        self.turn = Some(self.turns.lock().await);
        self.start().await
    }

    async fn reopen(&mut self) -> LiveLayer {
        self.start().await
    }

    async fn beside(&mut self, _part: &LiveLayer) -> LiveLayer {
        self.start().await
    }

    /// With the wait for its turn.
    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}

fn processes() -> Processes {
    static TURNS: Turns = Turns::const_new(());
    Processes::new(naru_services::url(Kind::Redis).to_owned(), &TURNS)
}

conformance_suite!(live: processes);

/// A server of its own, which is killed.
struct Mortal;

#[async_trait]
impl Subject<SeverableLayer> for Mortal {
    async fn open(&mut self) -> SeverableLayer {
        let service = Service::start(Kind::Redis);
        let layer = open(&service.url()).await;
        let service = Arc::new(Mutex::new(service));
        let sever = Arc::new(move || {
            service.lock().unwrap().kill();
            Box::pin(async {}) as _
        });
        SeverableLayer { layer, sever }
    }

    async fn reopen(&mut self) -> SeverableLayer {
        self.open().await
    }
}

fn mortal() -> Mortal {
    Mortal
}

conformance_suite!(outage: mortal);
