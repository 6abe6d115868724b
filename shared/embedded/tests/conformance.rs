//! The conformance suite on the embedded engines: as they are, within decorators that must not be noticed, and with
//! defects that must be.

#[path = "conformance/defects.rs"]
mod defects;
#[path = "conformance/faulty_engine.rs"]
mod faulty_engine;

use std::env;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use naru_conformance::{BoundedBus, LiveLayer, SeverableLayer, Subject, conformance_suite};
use naru_embedded::{Embedded, Options};
use naru_engines::Engines;
use naru_faults::{Counted, Flaky, Outage, Recorder, Slow, intercepted};
use tempfile::TempDir;

/// Embedded engines in a new directory `within` another, decorated.
struct Fresh {
    decorate: fn(Engines) -> Engines,
    options: Options,
    within: PathBuf,
    dir: Option<TempDir>,
    running: Option<Embedded>,
}

impl Fresh {
    fn decorated(decorate: fn(Engines) -> Engines) -> Self {
        // Soon full, so that the end of a flood is soon read, however slow each step is.
        // The suite keeps up to 24 rooms apart.
        let options = Options { live_backlog: 256, ..Options::default() };
        Self { decorate, options, within: env::temp_dir(), dir: None, running: None }
    }

    /// What ran before is not closed first.
    fn start(&mut self) -> Engines {
        self.running = None;
        let new = || tempfile::tempdir_in(&self.within).expect("a directory");
        let dir = self.dir.get_or_insert_with(new).path();
        let embedded = Embedded::open(dir, self.options.clone()).expect("the directory is released");
        let engines = (self.decorate)(embedded.engines());
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
    Fresh::decorated(|engines| engines)
}

conformance_suite!(store, bus, live: as_it_is);

/// The place of each room in a list is kept, as those of a user in very many rooms are.
mod with_kept_lists {
    use super::*;

    fn kept() -> Fresh {
        let mut fresh = as_it_is();
        fresh.options.computed_places = 0;
        fresh
    }

    conformance_suite!(store: kept);
}

/// With capacity for a few events only.
struct Narrow(Fresh);

#[async_trait]
impl Subject<BoundedBus> for Narrow {
    async fn open(&mut self) -> BoundedBus {
        self.0.options.buffered_events = 100;
        BoundedBus { bus: self.0.start().bus, hops: &["accepted", "saved"], capacity: 100 }
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
        let layer = LiveLayer::from(intercepted(self.0.start(), outage.clone()));
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
        Fresh::decorated(|engines| {
            let delay = Duration::from_millis(1);
            let engines = intercepted(engines, Arc::new(Counted::default()));
            let engines = intercepted(engines, Arc::new(Slow { before: delay, after: delay }));
            let engines = intercepted(engines, Arc::new(Recorder::default()));
            intercepted(engines, Arc::new(Flaky::new(1, 0.0)))
        })
    }

    conformance_suite!(store, bus, live: all_at_once);
}
