//! Plots as SVG that needs nothing from outside: colours come from the page's style, sizes fit a phone without scaling.

use std::fmt::Write as _;

/// The drawing's width; a plot is shown at about this many pixels, whatever the screen.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 230.0;
/// Space for the axes' texts.
const LEFT: f64 = 50.0;
const RIGHT: f64 = 22.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
/// Texts on the x axis that are nearer than this are left out.
const MIN_LABEL_DISTANCE: f64 = 30.0;
const BAR: f64 = 15.0;
const ROW: f64 = 40.0;

#[derive(Debug, Clone)]
pub struct Series {
    pub label: String,
    /// A CSS colour.
    pub color: String,
    pub points: Vec<(f64, f64)>,
}

/// A bar of several parts.
#[derive(Debug, Clone)]
pub struct Bar {
    pub label: String,
    pub parts: Vec<Part>,
}

/// A part of a bar.
#[derive(Debug, Clone)]
pub struct Part {
    pub label: String,
    /// A CSS colour.
    pub color: String,
    pub value: f64,
}

/// How values become places on an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Logarithmic,
}

struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    start: f64,
    end: f64,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        self.start + place.clamp(0.0, 1.0) * (self.end - self.start)
    }
}

/// Lines over a logarithmic x axis, with a mark and a tooltip for each value.
pub fn lines(series: &[Series], scale: Scale, x_title: &str, y_title: &str) -> String {
    let points = || series.iter().flat_map(|series| &series.points);
    let mut xs: Vec<f64> = points().map(|(x, _)| *x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let (Some(first), Some(last)) = (xs.first(), xs.last()) else {
        return String::new();
    };
    let ticks = ticks(points().map(|(_, y)| *y), scale);
    let x_axis = Axis {
        scale: Scale::Logarithmic,
        low: *first,
        high: if last > first { *last } else { first * 2.0 },
        start: LEFT + 10.0,
        end: WIDTH - RIGHT,
    };
    let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
    let y_axis = Axis { scale, low, high, start: HEIGHT - BOTTOM, end: TOP };
    let mut svg = open(HEIGHT, y_title);
    for tick in &ticks {
        let y = y_axis.at(*tick);
        let _ = write!(
            svg,
            r#"<path class="grid" d="M{LEFT} {y:.1}H{:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            number(*tick)
        );
    }
    let mut free = f64::NEG_INFINITY;
    for x in xs {
        let place = x_axis.at(x);
        if place >= free {
            let y = HEIGHT - BOTTOM + 16.0;
            let _ = write!(
                svg,
                r#"<text class="tick" x="{place:.1}" y="{y}" text-anchor="middle">{}</text>"#,
                number(x)
            );
            free = place + MIN_LABEL_DISTANCE;
        }
    }
    let _ = write!(
        svg,
        r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 6.0,
        escape(x_title)
    );
    for Series { label, color, points } in series {
        let places: Vec<_> = points.iter().map(|(x, y)| (x_axis.at(*x), y_axis.at(*y))).collect();
        let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        let _ = write!(svg, r#"<path class="line" style="stroke:{color}" d="M{}"/>"#, path.join("L"));
        for ((x, y), (at, value)) in places.iter().zip(points) {
            let _ = write!(
                svg,
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" style="fill:{color}"><title>{}: {} at {}</title></circle>"#,
                escape(label),
                number(*value),
                number(*at)
            );
        }
    }
    svg + "</svg>"
}

/// One bar per row, on one linear scale; the sum stands at its end.
pub fn bars(bars: &[Bar], unit: &str) -> String {
    let sum = |bar: &Bar| bar.parts.iter().map(|part| part.value).sum::<f64>();
    let max = bars.iter().map(sum).fold(0.0, f64::max);
    // The number at the longest bar's end needs space, too.
    let axis = Axis { scale: Scale::Linear, low: 0.0, high: max.max(1e-9), start: 0.0, end: WIDTH - 46.0 };
    let mut svg = open(ROW * bars.len() as f64 + 4.0, unit);
    for (row, bar) in bars.iter().enumerate() {
        let top = ROW * row as f64;
        let _ =
            write!(svg, r#"<text class="name" x="0" y="{:.1}">{}</text>"#, top + 12.0, escape(&bar.label));
        let mut before = 0.0;
        for Part { label, color, value } in &bar.parts {
            let (start, end) = (axis.at(before), axis.at(before + value));
            before += value;
            let _ = write!(
                svg,
                r#"<rect x="{start:.1}" y="{:.1}" width="{:.1}" height="{BAR}" style="fill:{color}"><title>{}: {} {}</title></rect>"#,
                top + 17.0,
                // A gap keeps parts of like colours apart.
                (end - start - 1.0).max(0.3),
                escape(label),
                number(*value),
                escape(unit)
            );
        }
        let (x, y) = (axis.at(before) + 5.0, top + 17.0 + BAR - 3.0);
        let _ = write!(svg, r#"<text class="tick" x="{x:.1}" y="{y:.1}">{}</text>"#, number(before));
    }
    svg + "</svg>"
}

fn open(height: f64, label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{}">"#, escape(label))
}

/// Round values that enclose all values: at least two.
fn ticks(values: impl Iterator<Item = f64> + Clone, scale: Scale) -> Vec<f64> {
    let high = values.clone().fold(0.0, f64::max).max(1e-3);
    match scale {
        Scale::Linear => {
            let rough = high / 4.0;
            let power = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power);
            let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
            (0..=(high / step).ceil() as u32).map(|tick| f64::from(tick) * step).collect()
        }
        Scale::Logarithmic => {
            let low = values.filter(|value| *value > 0.0).fold(high, f64::min);
            let all = (-4..7).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
            let all: Vec<f64> = all.collect();
            let first = all.iter().rposition(|tick| *tick <= low).unwrap_or(0);
            let last = all.iter().position(|tick| *tick >= high).unwrap_or(all.len() - 1).max(first + 1);
            let count = last - first + 1;
            // Between many decades only the powers of ten are written, and both ends.
            let is_shown =
                |place: &usize| count <= 8 || place.is_multiple_of(3) || *place == first || *place == last;
            (first..=last).filter(is_shown).map(|place| all[place]).collect()
        }
    }
}

/// As many digits as are of use.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1000.0.. => {
            let whole = format!("{value:.0}");
            let groups: Vec<&str> = whole
                .as_bytes()
                .rchunks(3)
                .rev()
                .map(|group| std::str::from_utf8(group).expect("ASCII"))
                .collect();
            groups.join(",")
        }
        100.0.. => format!("{value:.0}"),
        10.0.. => trimmed(format!("{value:.1}")),
        1.0.. => trimmed(format!("{value:.2}")),
        _ => trimmed(format!("{value:.3}")),
    }
}

fn trimmed(number: String) -> String {
    number.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_enclose_what_is_shown() {
        let values = |values: &'static [f64]| values.iter().copied();
        assert_eq!(ticks(values(&[0.4, 37.0]), Scale::Linear), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(ticks(values(&[0.7, 8.0]), Scale::Logarithmic), [0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!(ticks(values(&[0.7, 900.0]), Scale::Logarithmic), [0.5, 1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(ticks(values(&[1.0]), Scale::Logarithmic), [1.0, 2.0]);
    }

    #[test]
    fn numbers_are_short() {
        let written = [0.0, 0.0444, 0.74, 4.2, 12.34, 123.4, 20_000.0].map(number);
        assert_eq!(written, ["0", "0.044", "0.74", "4.2", "12.3", "123", "20,000"]);
    }

    #[test]
    fn every_value_has_a_mark() {
        let series = |label: &str, points: &[(f64, f64)]| Series {
            label: label.to_owned(),
            color: "red".to_owned(),
            points: points.to_vec(),
        };
        let svg = lines(
            &[series("<a>", &[(300.0, 1.0), (2000.0, 5.0)]), series("b", &[(300.0, 2.0)])],
            Scale::Logarithmic,
            "messages/s",
            "ms",
        );
        assert_eq!((svg.matches("<circle").count(), svg.matches("class=\"line\"").count()), (3, 2));
        assert!(svg.contains("&lt;a&gt;: 5 at 2,000") && !svg.contains("NaN"), "{svg}");
        assert_eq!(lines(&[], Scale::Linear, "", ""), "");
        let part = |value| Part { label: "p".to_owned(), color: "red".to_owned(), value };
        let svg = bars(&[Bar { label: "x".to_owned(), parts: vec![part(0.5), part(0.25)] }], "s");
        assert_eq!((svg.matches("<rect").count(), svg.contains(">0.75<")), (2, true), "{svg}");
    }
}
