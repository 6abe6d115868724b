//! The comparison as one HTML page that loads nothing: style and plots are in it.

use std::fmt::Write as _;

use super::{
    chart::{self, Bar, Part, Scale, Series, escape, number},
    record::{Comparison, Round, State},
    stats::{Figure, Select, place_of},
    table,
};

use crate::systems::KEYS;

const STYLE: &str = include_str!("page.css");

const LATENCIES: [(&str, Figure); 4] = [
    ("ACK, median (ms)", |report| report.totals.ack.p50),
    ("ACK, 99th percentile (ms)", |report| report.totals.ack.p99),
    ("Delivery, median (ms)", |report| report.totals.delivery.p50),
    ("Delivery, 99th percentile (ms)", |report| report.totals.delivery.p99),
];

pub fn html(comparison: &Comparison) -> String {
    let mut body = String::new();
    let machine = &comparison.machine;
    let _ = write!(
        body,
        "<h1>Naru in comparison</h1><p>{}: {} cores ({}), {} MiB, Linux {}. Everything ran on this machine, with the load tool; \
         one system at a time, in interleaved rounds. Messages are due at fixed times, and latencies count from then. An ACK says that the \
         message is on disk; ejabberd's says so of the sender's copy only. In the plots lower is better.</p>\
         <p><code>{}</code></p><p>{}</p>",
        escape(&comparison.started),
        machine.cores,
        escape(&machine.processor),
        number(machine.memory_mib as f64),
        escape(&machine.kernel),
        escape(&comparison.command),
        escape(&comparison.versions.join(" · ")),
    );
    for state in comparison.states() {
        let _ =
            write!(body, "<h2>Latency over rate{}</h2>{}", of_state(comparison, state), legend(comparison));
        let plots =
            LATENCIES.iter().map(|(title, figure)| figure_of(title, &latency(comparison, state, *figure)));
        let _ = write!(body, "<div class=\"plots\">{}</div>", plots.collect::<String>());
        let _ = write!(
            body,
            "<h2>CPU seconds per 1,000 messages, by process{}</h2>{}",
            of_state(comparison, state),
            process_legend(comparison)
        );
        let plots = comparison.rates().into_iter().map(|rate| {
            let bars = cpu_bars(Select { comparison, state, rate: Some(rate) });
            figure_of(&format!("{} messages/s", number(rate.into())), &chart::bars(&bars, "CPU s per 1,000"))
        });
        let _ = write!(body, "<div class=\"plots\">{}</div>", plots.collect::<String>());
    }
    let memory = memory(comparison);
    if !memory.is_empty() {
        let plot = figure_of("Memory of all processes (MiB)", &memory);
        let _ = write!(
            body,
            "<h2>Memory over idle connections</h2>{}<div class=\"plots\">{plot}</div>",
            legend(comparison)
        );
    }
    body += "<h2>All figures</h2>";
    for (title, rows) in table::tables(comparison) {
        let _ = write!(body, "<h3>{}</h3><div class=\"scroll\"><table>", escape(&title));
        // A column of words reads from the left.
        let is_text = |column: usize| column > 0 && rows[1][column].contains(char::is_alphabetic);
        for (number, row) in rows.iter().enumerate() {
            let tag = if number == 0 { "th" } else { "td" };
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let class = if is_text(column) { " class=\"text\"" } else { "" };
                format!("<{tag}{class}>{}</{tag}>", escape(cell))
            });
            let _ = write!(body, "<tr>{}</tr>", cells.collect::<String>());
        }
        body += "</table></div>";
    }
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Naru in comparison</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head>\
         <body>{body}</body></html>\n"
    )
}

fn of_state(comparison: &Comparison, state: State) -> String {
    if comparison.states().len() > 1 { format!(", {}", state.as_str()) } else { String::new() }
}

fn figure_of(title: &str, svg: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>{svg}</figure>", escape(title))
}

fn system_color(comparison: &Comparison, key: &str) -> String {
    // By the system's key, so that it has the same colour on every page.
    let place = KEYS.iter().position(|known| *known == key);
    let place = place.or_else(|| comparison.systems.iter().position(|name| name.key == key));
    format!("var(--system-{})", place.unwrap_or(0) % KEYS.len())
}

fn process_color(name: &str) -> String {
    format!("var(--process-{})", place_of(name))
}

fn legend_of(entries: impl Iterator<Item = (String, String)>) -> String {
    let entries = entries
        .map(|(label, color)| format!("<li><i style=\"background:{color}\"></i>{}</li>", escape(&label)));
    format!("<ul class=\"legend\">{}</ul>", entries.collect::<String>())
}

fn legend(comparison: &Comparison) -> String {
    let systems = comparison.systems.iter();
    legend_of(systems.map(|name| (name.label.clone(), system_color(comparison, &name.key))))
}

fn process_legend(comparison: &Comparison) -> String {
    let costs = comparison.rounds.iter().flat_map(|round| &round.lone.server);
    let mut names: Vec<_> = costs.map(|cost| cost.name.clone()).collect();
    names.sort_by_key(|name| (place_of(name), name.clone()));
    names.dedup();
    legend_of(names.into_iter().map(|name| (name.clone(), process_color(&name))))
}

fn latency(comparison: &Comparison, state: State, figure: Figure) -> String {
    let series = comparison.systems.iter().map(|name| {
        let at = |rate: u32| {
            let select = Select { comparison, state, rate: Some(rate) };
            Some((f64::from(rate), select.median(&name.key, figure)?))
        };
        Series {
            label: name.label.clone(),
            color: system_color(comparison, &name.key),
            points: comparison.rates().into_iter().filter_map(at).collect(),
        }
    });
    let series: Vec<_> = series.filter(|series| !series.points.is_empty()).collect();
    chart::lines(&series, Scale::Logarithmic, "messages per second", "milliseconds")
}

fn cpu_bars(select: Select<'_>) -> Vec<Bar> {
    let bars = select.comparison.systems.iter().map(|name| {
        let processes = select.processes(&name.key).into_iter();
        let parts = processes.map(|(label, value)| Part { color: process_color(&label), label, value });
        Bar { label: name.label.clone(), parts: parts.collect() }
    });
    bars.filter(|bar| !bar.parts.is_empty()).collect()
}

fn memory(comparison: &Comparison) -> String {
    let series = comparison.systems.iter().map(|name| {
        let rounds = comparison.rounds.iter().filter(|round| round.system == name.key);
        let memory = rounds.flat_map(Round::memory);
        Series {
            label: name.label.clone(),
            color: system_color(comparison, &name.key),
            points: memory.map(|(connections, mib, _)| (f64::from(connections), mib)).collect(),
        }
    });
    let series: Vec<_> = series.filter(|series| !series.points.is_empty()).collect();
    chart::lines(&series, Scale::Linear, "idle connections", "MiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::stats::PROCESSES;
    use crate::compare::tests::{comparison, report};

    #[test]
    fn the_page_loads_nothing() {
        let comparison = comparison(&[
            ("naru", 1, report(300, 4.0, 0.6)),
            ("naru", 1, report(2000, 8.0, 0.4)),
            ("socketio", 1, report(300, 2.0, 0.8)),
        ]);
        let page = html(&comparison);
        for outside in ["http:", "https:", "url(", "@import", "<script", "<link", "<img", "src=", "href="] {
            assert!(!page.contains(outside), "the page has {outside}");
        }
        assert_eq!(page.matches("<svg").count(), 4 + 2);
        assert!(page.contains("prefers-color-scheme") && page.contains("NARU"));
        for place in 0..=PROCESSES.len() {
            assert!(STYLE.contains(&format!("--process-{place}:")), "{place} has no colour");
        }
    }
}
