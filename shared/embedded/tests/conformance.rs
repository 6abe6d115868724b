//! The conformance suite on the embedded engines: as they are, within decorators that must not be noticed, and within
//! sins that must be.

#[path = "conformance/broken.rs"]
mod broken;
#[path = "conformance/sins.rs"]
mod sins;

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_embedded::{Embedded, Options};
use naru_engines::conformance::{BoundedBus, LiveLayer, SeverableLayer, Subject};
use naru_engines::faults::{Counted, Flaky, Outage, Recorder, Slow, tapped};
use naru_engines::{Engines, conformance_suite};
use tempfile::TempDir;

/// Embedded engines in a new directory `within` another, dressed up.
struct Fresh {
    dress: fn(Engines) -> Engines,
    options: Options,
    within: PathBuf,
    dir: Option<TempDir>,
    running: Option<Embedded>,
}

impl Fresh {
    fn dressed(dress: fn(Engines) -> Engines) -> Self {
        // Soon full, so that hearing the end of a flood is soon done, however slow each step is.
        let options = Options { live_backlog: 256, ..Options::default() };
        Self { dress, options, within: env::temp_dir(), dir: None, running: None }
    }

    /// Without a farewell to what ran before.
    fn start(&mut self) -> Engines {
        self.running = None;
        let new = || tempfile::tempdir_in(&self.within).expect("a directory");
        let dir = self.dir.get_or_insert_with(new).path();
        let embedded = Embedded::open(dir, self.options.clone()).expect("the directory is released");
        let engines = (self.dress)(embedded.engines());
        self.running = Some(embedded);
        engines
    }
}

#[async_trait]
impl<Part: From<Engines> + Clone + Send + Sync + 'static> Subject<Part> for Fresh {
    async fn open(&mut self) -> Part {
        self.running = None;
        self.dir = None;
        self.start().into()
    }

    async fn reopen(&mut self) -> Part {
        self.start().into()
    }
}

fn as_it_is() -> Fresh {
    Fresh::dressed(|engines| engines)
}

conformance_suite!(store, bus, live: as_it_is);

/// With room for a few events only.
struct Narrow(Fresh);

#[async_trait]
impl Subject<BoundedBus> for Narrow {
    async fn open(&mut self) -> BoundedBus {
        self.0.options.buffered_events = 100;
        self.0.options.newest_events = 100;
        BoundedBus { bus: self.0.start().bus, hops: &["accepted", "saved"], capacity: 100, newest: 100 }
    }

    async fn reopen(&mut self) -> BoundedBus {
        self.open().await
    }
}

fn narrow() -> Narrow {
    Narrow(as_it_is())
}

conformance_suite!(bounded: narrow);

/// Cut off by an outage, as an engine in the same process can't be.
struct CutOff(Fresh);

#[async_trait]
impl Subject<SeverableLayer> for CutOff {
    async fn open(&mut self) -> SeverableLayer {
        let outage = Arc::new(Outage::default());
        let layer = LiveLayer::from(tapped(self.0.start(), outage.clone()));
        let sever = Arc::new(move || {
            outage.cut(true);
            Box::pin(async {}) as _
        });
        SeverableLayer { layer, sever }
    }

    async fn reopen(&mut self) -> SeverableLayer {
        self.open().await
    }
}

fn cut_off() -> CutOff {
    CutOff(as_it_is())
}

conformance_suite!(outage: cut_off);

/// Decorators keep every promise of what they decorate.
mod decorated {
    use super::*;

    fn all_at_once() -> Fresh {
        Fresh::dressed(|engines| {
            let delay = Duration::from_millis(1);
            let engines = tapped(engines, Arc::new(Counted::default()));
            let engines = tapped(engines, Arc::new(Slow { before: delay, after: delay }));
            let engines = tapped(engines, Arc::new(Recorder::default()));
            tapped(engines, Arc::new(Flaky::new(1, 0.0)))
        })
    }

    conformance_suite!(store, bus, live: all_at_once);
}
