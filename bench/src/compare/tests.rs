//! A whole comparison against the fake server, and made-up records for the tests of tables, plots and pages.

use super::{
    record::{Machine, Name},
    *,
};
use crate::{
    fake_server::{Defect, serve},
    flow::{Cost, Report},
    record::{Latency, Totals},
    systems::Kind,
};

/// A measurement whose 99th percentiles are `p99` (the medians half of it), and whose two processes share `cpu`.
pub fn report(rate: u32, p99: f64, cpu: f64) -> Report {
    let latency = Latency { p50: p99 / 2.0, p99, ..Latency::default() };
    let cost = |name: &str, cpu: f64| Cost {
        name: name.to_owned(),
        cpu_seconds: cpu,
        cpu_seconds_per_thousand: cpu,
        memory_kib: 1024,
    };
    let delivered_per_second = f64::from(rate);
    let totals = Totals { ack: latency, delivery: latency, delivered_per_second, ..Totals::default() };
    let server = vec![cost("a", cpu / 2.0), cost("b", cpu / 2.0)];
    Report {
        rate,
        pairs: 1,
        bytes: 1,
        seconds: 1.0,
        totals,
        server,
        tool: cost("tool", 0.1),
        other_cpu_seconds: 0.0,
    }
}

/// A record of rounds: system, number, measurement. Those of the same round are measurements at several rates.
pub fn comparison(reports: &[(&str, u32, Report)]) -> Comparison {
    let mut comparison = empty(&[]);
    for (system, number, report) in reports {
        let key = (*system).to_owned();
        if !comparison.systems.iter().any(|name| name.key == key) {
            comparison.systems.push(Name { key: key.clone(), label: key.to_uppercase() });
        }
        let same = comparison.rounds.iter().position(|round| round.system == key && round.number == *number);
        let lone = report.clone();
        let round =
            Round { number: *number, system: key, state: State::Empty, memory: vec![], lone, flows: vec![] };
        let place = same.unwrap_or_else(|| {
            comparison.rounds.push(round);
            comparison.rounds.len() - 1
        });
        comparison.rounds[place].flows.push(report.clone());
    }
    comparison
}

fn empty(systems: &[System]) -> Comparison {
    let names = systems.iter().map(|system| Name { key: system.key.clone(), label: system.label.clone() });
    Comparison {
        started: "now".to_owned(),
        command: "naru-bench compare".to_owned(),
        machine: Machine::current(),
        versions: vec![],
        systems: names.collect(),
        rounds: vec![],
        fills: vec![],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systems_are_measured_in_turn_and_every_round_is_kept() {
    let mut systems = Vec::new();
    for key in ["naru", "socketio"] {
        let server = serve(|number| if number == 3 { Defect::Lose } else { Defect::None }).await;
        let data = std::env::temp_dir();
        systems.push(System::new(key, key, Kind::Running(server), &data).expect("free ports"));
    }
    let short = Duration::from_millis(20);
    let options = Options {
        rounds: 2,
        rates: vec![500, 1000],
        duration: Duration::from_millis(100),
        warmup: short,
        drain_timeout: Duration::from_millis(100),
        pairs: 2,
        bytes: 10,
        lone: (100, short),
        connections: vec![5, 10],
        connect_rate: 1000,
        hold: short,
        fill: Some(fill::Amount { messages: 3, rooms: 2, bytes: 10 }),
    };
    let mut comparison = empty(&systems);
    let mut saved = 0;
    let save = |_: &Comparison| {
        saved += 1;
        Ok(())
    };
    run(&options, &systems, &mut comparison, save).await.expect("runs");

    let turns: Vec<_> = comparison.rounds.iter().map(|round| (round.number, round.system.as_str())).collect();
    let empty = [(1, "naru"), (1, "socketio"), (2, "socketio"), (2, "naru")];
    assert_eq!((turns, saved), ([empty, empty].concat(), 8), "the order changes from round to round");
    for round in &comparison.rounds {
        let rates: Vec<_> = round.flows.iter().map(|flow| (flow.rate, flow.totals.lost)).collect();
        assert_eq!(rates, [(500, 1), (1000, 1)], "the message that is lost is seen in each");
        let is_first = round.number == 1 && round.state == State::Empty;
        assert_eq!(round.memory.len(), if is_first { 2 } else { 0 });
    }
    assert_eq!(comparison.fills.len(), 2);
    let json = serde_json::to_string(&comparison).expect("JSON");
    let read: Comparison = serde_json::from_str(&json).expect("reads what it writes");
    assert_eq!(table::markdown(&read), table::markdown(&comparison));
    assert!(page::html(&read).contains("Filling"));
}
