//! Statistics of several rounds: the median, and the median of each round's ratio to the same round of another system.

use super::record::{Comparison, Round, State};
use crate::flow::Report;

/// The system that ratios refer to.
pub const BASE: &str = "socketio";

/// The processes of all systems, in the order of reports.
pub const PROCESSES: [&str; 13] = [
    "naru",
    "gateway 1",
    "gateway 2",
    "persister",
    "fanout",
    "notifier",
    "secantusd-rs",
    "RabbitMQ",
    "Redis",
    "PostgreSQL",
    "node 1",
    "node 2",
    "ejabberd",
];

/// A process's place in that order; unknown ones are last.
pub fn place_of(process: &str) -> usize {
    PROCESSES.iter().position(|known| *known == process).unwrap_or(PROCESSES.len())
}

/// A figure of one measurement.
pub type Figure = fn(&Report) -> f64;

/// Processor time of the whole system, in seconds per 1,000 messages.
pub fn cpu(report: &Report) -> f64 {
    report.server.iter().map(|cost| cost.cpu_seconds_per_thousand).sum()
}

/// A measurement of all rounds of one system.
#[derive(Debug, Clone, Copy)]
pub struct Select<'a> {
    pub comparison: &'a Comparison,
    pub state: State,
    /// `None`: the lone message.
    pub rate: Option<u32>,
}

impl<'a> Select<'a> {
    /// Each round's report of this system.
    pub fn reports(self, system: &'a str) -> impl Iterator<Item = (u32, &'a Report)> {
        let rounds = self.comparison.rounds.iter();
        let rounds = rounds.filter(move |round| round.system == system && round.state == self.state);
        rounds.filter_map(move |round| Some((round.number, self.of_round(round)?)))
    }

    fn of_round(self, round: &Round) -> Option<&Report> {
        match self.rate {
            None => Some(&round.lone),
            Some(rate) => round.flows.iter().find(|flow| flow.rate == rate),
        }
    }

    /// The median over the rounds; `None` if there are none.
    pub fn median(self, system: &'a str, figure: impl Fn(&Report) -> f64) -> Option<f64> {
        median(self.reports(system).map(|(_, report)| figure(report)).collect())
    }

    /// The median over the rounds of this system's figure divided by that of [`BASE`] in the same round.
    pub fn ratio(self, system: &'a str, figure: impl Fn(&Report) -> f64) -> Option<f64> {
        let base: Vec<_> = self.reports(BASE).collect();
        let ratios = self.reports(system).filter_map(|(number, report)| {
            let (_, base) = base.iter().find(|(of, _)| *of == number)?;
            let ratio = figure(report) / figure(base);
            ratio.is_finite().then_some(ratio)
        });
        median(ratios.collect())
    }

    /// The sum over the rounds.
    pub fn sum(self, system: &'a str, count: impl Fn(&Report) -> u64) -> u64 {
        self.reports(system).map(|(_, report)| count(report)).sum()
    }

    /// The processes of a system, in their order, and the median of each one's time per 1,000 messages.
    pub fn processes(self, system: &'a str) -> Vec<(String, f64)> {
        let Some((_, first)) = self.reports(system).next() else {
            return Vec::new();
        };
        let of = |name: &str, report: &Report| {
            let cost = report.server.iter().find(|cost| cost.name == name);
            cost.map_or(0.0, |cost| cost.cpu_seconds_per_thousand)
        };
        let mut names: Vec<_> = first.server.iter().map(|cost| cost.name.clone()).collect();
        names.sort_by_key(|name| place_of(name));
        names
            .into_iter()
            .map(|name| (name.clone(), self.median(system, |report| of(&name, report)).unwrap_or(0.0)))
            .collect()
    }
}

impl Comparison {
    /// Every rate that was measured, in rising order.
    pub fn rates(&self) -> Vec<u32> {
        let mut rates: Vec<_> =
            self.rounds.iter().flat_map(|round| &round.flows).map(|flow| flow.rate).collect();
        rates.sort_unstable();
        rates.dedup();
        rates
    }

    /// Empty, and full if that was measured.
    pub fn states(&self) -> Vec<State> {
        let has = |state: &State| self.rounds.iter().any(|round| round.state == *state);
        [State::Empty, State::Full].into_iter().filter(has).collect()
    }
}

/// The middle value, or the mean of the two in the middle; `None` without values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::tests::{comparison, report};

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        // The machine was slower in the second round; the proportion did not change.
        let comparison = comparison(&[
            ("naru", 1, report(100, 1.0, 0.5)),
            ("socketio", 1, report(100, 2.0, 1.0)),
            ("naru", 2, report(100, 3.0, 0.5)),
            ("socketio", 2, report(100, 6.0, 1.0)),
            ("naru", 3, report(100, 5.0, 0.5)),
        ]);
        let select = Select { comparison: &comparison, state: State::Empty, rate: Some(100) };
        let p99: Figure = |report| report.totals.ack.p99;
        assert_eq!(select.median("naru", p99), Some(3.0));
        assert_eq!(select.ratio("naru", p99), Some(0.5), "the third round has nothing to compare with");
        assert_eq!(select.ratio("naru", cpu), Some(0.5));
        assert_eq!(select.processes("naru"), [("a".to_owned(), 0.25), ("b".to_owned(), 0.25)]);
        assert_eq!((comparison.rates(), comparison.states()), (vec![100], vec![State::Empty]));
        let other = Select { rate: Some(200), ..select };
        assert_eq!((other.median("naru", p99), other.ratio("naru", p99)), (None, None));
    }
}
