//! The load tool against a server that breaks its guarantees on request, each of which the tool must detect.

use super::*;
use crate::fake_server::{Defect, Defects, serve};

async fn run_against(defects: Defects) -> Report {
    let options = Options {
        server: serve(defects).await,
        rate: 1000,
        duration: Duration::from_millis(150),
        warmup: Duration::from_millis(50),
        drain_timeout: Duration::from_millis(500),
        pairs: 3,
        bytes: 100,
        groups: vec![Group::of_process(std::process::id()).expect("alive")],
    };
    run(&options).await.expect("runs")
}

#[tokio::test]
async fn an_honest_server_keeps_its_promises() {
    let report = run_against(|_| Defect::None).await;
    let totals = &report.totals;
    let counts = (totals.scheduled, totals.sent, totals.acked, totals.delivered);
    assert_eq!(counts, (200, 200, 200, 200));
    assert!(report.keeps_promises() && totals.unanswered == 0 && totals.errors.is_empty(), "{report}");
    assert_eq!((totals.measured, report.server.len()), (150, 1));
}

#[tokio::test]
async fn refusals_are_counted_and_break_no_promise() {
    let report = run_against(|number| if number == 150 { Defect::Refuse } else { Defect::None }).await;
    assert_eq!((report.totals.errors["RATE_LIMITED"], report.totals.unanswered), (1, 0));
    assert!(report.keeps_promises(), "{report}");
}

#[tokio::test]
async fn broken_promises_are_seen() {
    let report = run_against(|number| match number {
        20 => Defect::Ignore,
        60 => Defect::Lose,
        70 | 80 => Defect::Repeat,
        90 => Defect::Echo,
        _ => Defect::None,
    })
    .await;
    let totals = &report.totals;
    let counts = (totals.lost, totals.duplicates, totals.strays, totals.unanswered);
    assert_eq!(counts, (1, 2, 1, 1), "{report}");
    assert!(!report.keeps_promises());
}
