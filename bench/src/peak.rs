//! The highest rate that a system holds, found by doubling and bisection in short measurements.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{compare::stats, flow, systems::Running};

/// A rate is held when the 99th percentile of the `ACK` is below this, in milliseconds …
const MAX_P99_MS: f64 = 100.0;
/// … this part of it is delivered in the time it was asked for, nothing is lost, and everything is answered.
const MIN_ACHIEVED: f64 = 0.98;
/// A rate counts as not held after this many measurements in a row that did not hold it.
const TRIES: u32 = 2;

/// The range of the search.
#[derive(Debug, Clone)]
pub struct Options {
    /// The first rate that is tried.
    pub start: u32,
    /// The highest rate that is tried.
    pub limit: u32,
    /// When to stop: the lowest rate that was not held is this much above the highest that was, as a fraction.
    pub precision: f64,
    /// How long each is measured, and how long is sent before.
    pub duration: Duration,
    pub warmup: Duration,
    pub drain_timeout: Duration,
    pub pairs: u32,
    pub bytes: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The highest rate that was held; 0 if none was.
    pub peak: u32,
    /// The lowest that was not held; `None` if all were.
    pub not_held: Option<u32>,
    /// Every measurement, in its order.
    pub trials: Vec<flow::Report>,
}

/// Measures until the peak is found.
///
/// # Errors
/// When nothing can be measured.
pub async fn run(options: &Options, running: &Running) -> anyhow::Result<Report> {
    let measure = async |rate: u32| {
        let flow = flow::Options {
            server: running.server.clone(),
            rate,
            duration: options.duration,
            warmup: options.warmup,
            drain_timeout: options.drain_timeout,
            pairs: options.pairs,
            bytes: options.bytes,
            groups: running.groups.clone(),
        };
        flow::run(&flow).await
    };
    // A program that was just started is not yet as fast as it gets.
    measure(options.start).await?;
    let mut trials = Vec::new();
    let try_once = async |rate: u32| {
        let report = measure(rate).await?;
        let is_held = is_held(&report);
        eprintln!(
            "  {rate}/s {}: {:.0} delivered/s, ACK p99 {:.1} ms, {} lost; the tool used {:.0} % of a core",
            if is_held { "held" } else { "not held" },
            report.totals.delivered_per_second,
            report.totals.ack.p99,
            report.totals.lost,
            report.tool.cpu_seconds / report.seconds * 100.0
        );
        trials.push(report);
        anyhow::Ok(is_held)
    };
    let (peak, not_held) = search(options, try_once).await?;
    Ok(Report { peak, not_held, trials })
}

fn is_held(report: &flow::Report) -> bool {
    let totals = &report.totals;
    let count = totals.measured as f64;
    // The last messages may take as long as any other: in a short measurement that is a large part of the time.
    let took = (count / totals.delivered_per_second - MAX_P99_MS / 1000.0).max(report.seconds);
    totals.ack.p99 < MAX_P99_MS
        && count / took >= MIN_ACHIEVED * f64::from(report.rate)
        && (totals.lost, totals.duplicates, totals.unanswered) == (0, 0, 0)
        && totals.errors.is_empty()
}

/// The highest rate that is held and the lowest that is not, of those that were tried.
async fn search(
    options: &Options,
    mut try_once: impl AsyncFnMut(u32) -> anyhow::Result<bool>,
) -> anyhow::Result<(u32, Option<u32>)> {
    let mut is_held = async |rate: u32| {
        for _ in 0..TRIES {
            if try_once(rate).await? {
                return anyhow::Ok(true);
            }
        }
        Ok(false)
    };
    let (mut held, mut not_held, mut rate) = (0, None, options.start);
    while rate > 0 {
        if is_held(rate).await? {
            held = rate;
        } else {
            not_held = Some(rate);
        }
        rate = match not_held {
            None if held >= options.limit => return Ok((held, None)),
            None => (held * 2).min(options.limit),
            Some(above) if f64::from(above - held) <= f64::from(held) * options.precision => break,
            Some(above) => held.midpoint(above),
        };
        // No rate lies between them, or they are too low to tell apart.
        if rate == held || not_held == Some(rate) {
            break;
        }
    }
    Ok((held, not_held))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages/s held", self.peak)?;
        match self.not_held {
            Some(rate) => write!(f, ", {rate} not")?,
            None => write!(f, ", the highest that was tried")?,
        }
        if let Some(best) = self.trials.iter().rfind(|trial| trial.rate == self.peak) {
            let (ack, tool) = (best.totals.ack, best.tool.cpu_seconds / best.seconds * 100.0);
            write!(
                f,
                ": ACK {:.1} / {:.1} ms, {:.3} CPU s per 1,000; the tool used {tool:.0} % of a core",
                ack.p50,
                ack.p99,
                stats::cpu(best)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare;

    async fn find(start: u32, true_peak: u32) -> (u32, Option<u32>, usize) {
        let options = Options {
            start,
            limit: 16_000,
            precision: 0.05,
            duration: Duration::ZERO,
            warmup: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            pairs: 1,
            bytes: 1,
        };
        let mut trials = 0;
        let try_once = async |rate| {
            trials += 1;
            anyhow::Ok(rate <= true_peak)
        };
        let (held, not_held) = search(&options, try_once).await.expect("no trial fails");
        (held, not_held, trials)
    }

    #[test]
    fn a_rate_is_held_with_everything_delivered_in_time() {
        let with = |change: fn(&mut flow::Report)| {
            let mut report = compare::tests::report(1000, 50.0, 0.5);
            (report.totals.measured, report.seconds) = (2000, 2.0);
            change(&mut report);
            is_held(&report)
        };
        assert!(with(|_| {}));
        assert!(with(|report| report.totals.delivered_per_second = 2000.0 / 2.1));
        assert!(!with(|report| report.totals.delivered_per_second = 2000.0 / 2.2));
        assert!(!with(|report| report.totals.ack.p99 = 100.0));
        assert!(!with(|report| report.totals.lost = 1));
        assert!(!with(|report| report.totals.errors = [("OVERLOADED".to_owned(), 1)].into()));
    }

    #[tokio::test]
    async fn the_peak_is_found() {
        for true_peak in [600, 1000, 2300, 5000, 15_999] {
            let (held, not_held, trials) = find(1000, true_peak).await;
            let not_held = not_held.expect("something is not held");
            assert!(held <= true_peak && true_peak < not_held, "{held} {true_peak} {not_held}");
            assert!(f64::from(not_held - held) <= f64::from(held) * 0.05 && trials < 20);
        }
        assert_eq!(find(1000, 20_000).await, (16_000, None, 5));
        assert_eq!(find(8, 0).await, (0, Some(1), 8), "nothing is held: each rate was tried twice");
    }
}
