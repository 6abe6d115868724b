//! The comparison in Markdown: medians over the rounds, and ratios to Socket.IO with PostgreSQL in the same rounds.

use std::fmt::Write as _;

use super::{
    chart::number,
    record::{Comparison, Name, Round},
    stats::{BASE, Figure, Select, cpu},
};
use crate::flow::Report;

/// The columns of latencies and costs, in their order.
const FIGURES: [(&str, Figure); 6] = [
    ("ACK p50", |report| report.totals.ack.p50),
    ("ACK p99", |report| report.totals.ack.p99),
    ("delivery p50", |report| report.totals.delivery.p50),
    ("delivery p99", |report| report.totals.delivery.p99),
    ("CPU s/1,000", cpu),
    ("delivered/s", |report| report.totals.delivered_per_second),
];

/// The figures that have ratios.
const RATIOS: [usize; 4] = [0, 1, 3, 4];

/// All tables.
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (title, rows) in tables(comparison) {
        let _ = writeln!(text, "## {title}\n");
        for (number, row) in rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if number == 0 {
                let _ = writeln!(text, "|---|{}", "---:|".repeat(row.len() - 1));
            }
        }
        text.push('\n');
    }
    text
}

/// Each table's title and its rows, the first of which is its head.
pub fn tables(comparison: &Comparison) -> Vec<(String, Vec<Vec<String>>)> {
    let mut tables = Vec::new();
    for state in comparison.states() {
        let of_state =
            if comparison.states().len() > 1 { format!(", {}", state.as_str()) } else { String::new() };
        for rate in comparison.rates() {
            let select = Select { comparison, state, rate: Some(rate) };
            let title =
                format!("{} messages/s{of_state}: milliseconds, medians of the rounds", number(rate.into()));
            tables.push((title, rate_table(select)));
        }
        let select = Select { comparison, state, rate: None };
        tables.push((format!("A lone message{of_state}: milliseconds"), lone_table(select)));
        for rate in comparison.rates() {
            let select = Select { comparison, state, rate: Some(rate) };
            let title = format!(
                "CPU seconds per 1,000 messages by process at {} messages/s{of_state}",
                number(rate.into())
            );
            tables.push((title, process_table(select)));
        }
    }
    tables.push(("Memory of idle connections".to_owned(), memory_table(comparison)));
    tables.push(("Filling".to_owned(), fill_table(comparison)));
    tables.retain(|(_, rows)| rows.len() > 1);
    tables
}

fn head(columns: impl IntoIterator<Item = String>) -> Vec<Vec<String>> {
    vec![["system".to_owned()].into_iter().chain(columns).collect()]
}

fn cell(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), number)
}

fn rate_table(select: Select<'_>) -> Vec<Vec<String>> {
    let ratios = RATIOS.map(|place| format!("× {}", FIGURES[place].0));
    let counts = ["lost", "doubled", "errors", "tool late p99", "tool CPU"].map(str::to_owned);
    let figures = FIGURES.iter().map(|(name, _)| (*name).to_owned());
    let mut rows = head(figures.chain(ratios).chain(counts));
    for Name { key, label } in &select.comparison.systems {
        if select.reports(key).next().is_none() {
            continue;
        }
        let mut row = vec![label.clone()];
        row.extend(FIGURES.iter().map(|(_, figure)| cell(select.median(key, figure))));
        row.extend(RATIOS.iter().map(|place| match select.ratio(key, FIGURES[*place].1) {
            Some(_) if key == BASE => "1".to_owned(),
            ratio => ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
        }));
        let counts: [fn(&Report) -> u64; 3] = [
            |report| report.totals.lost as u64,
            |report| report.totals.duplicates,
            |report| report.totals.errors.values().sum::<u64>() + report.totals.unanswered as u64,
        ];
        row.extend(counts.iter().map(|count| select.sum(key, count).to_string()));
        row.push(cell(select.median(key, |report| report.totals.send_lag.p99)));
        row.push(cell(select.median(key, |report| report.tool.cpu_seconds_per_thousand)));
        rows.push(row);
    }
    rows
}

fn lone_table(select: Select<'_>) -> Vec<Vec<String>> {
    let mut rows = head(["ACK p50", "delivery p50", "× ACK p50"].map(str::to_owned));
    for Name { key, label } in &select.comparison.systems {
        let ack: Figure = |report| report.totals.ack.p50;
        let Some(median) = select.median(key, ack) else {
            continue;
        };
        let delivery = select.median(key, |report| report.totals.delivery.p50);
        rows.push(vec![label.clone(), number(median), cell(delivery), cell(select.ratio(key, ack))]);
    }
    rows
}

fn process_table(select: Select<'_>) -> Vec<Vec<String>> {
    let mut rows = head(["by process", "together"].map(str::to_owned));
    for Name { key, label } in &select.comparison.systems {
        let processes = select.processes(key);
        if processes.is_empty() {
            continue;
        }
        let each = processes.iter().map(|(name, cpu)| format!("{name} {}", number(*cpu)));
        let sum = select.median(key, cpu);
        rows.push(vec![label.clone(), each.collect::<Vec<_>>().join(", "), cell(sum)]);
    }
    rows
}

fn memory_table(comparison: &Comparison) -> Vec<Vec<String>> {
    let mut rows = head(["connections", "MiB in all", "KiB per connection"].map(str::to_owned));
    for Name { key, label } in &comparison.systems {
        let rounds = comparison.rounds.iter().filter(|round| round.system == *key);
        for (connections, mib, kib_each) in rounds.flat_map(Round::memory) {
            let connections = number(connections.into());
            rows.push(vec![label.clone(), connections, number(mib), format!("{kib_each:.1}")]);
        }
    }
    rows
}

fn fill_table(comparison: &Comparison) -> Vec<Vec<String>> {
    let mut rows = head(["what"].map(str::to_owned));
    for fill in &comparison.fills {
        let name = comparison.systems.iter().find(|name| name.key == fill.system);
        let label = name.map_or(&fill.system, |name| &name.label);
        rows.push(vec![label.clone(), fill.report.to_string()]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::tests::{comparison, report};

    #[test]
    fn a_table_has_medians_and_ratios() {
        let comparison = comparison(&[
            ("naru", 1, report(300, 4.0, 0.6)),
            ("socketio", 1, report(300, 2.0, 0.8)),
            ("naru", 2, report(300, 6.0, 0.6)),
            ("socketio", 2, report(300, 3.0, 0.8)),
        ]);
        let text = markdown(&comparison);
        let row = text.lines().find(|line| line.starts_with("| NARU |")).expect("a row");
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells[..7], ["NARU", "2.5", "5", "2.5", "5", "0.6", "300"]);
        assert_eq!(cells[7..11], ["2.00", "2.00", "2.00", "0.75"]);
        assert!(text.contains("| NARU | a 0.3, b 0.3 | 0.6 |"), "{text}");
        assert!(!text.contains("Filling"), "there was none: {text}");
    }
}
