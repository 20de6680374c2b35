//! One bar for each case: how many times better Skiff is, on a logarithmic scale.

use std::fmt::Write as _;

pub(super) struct Bar {
    pub(super) name: String,
    pub(super) figure: String,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

const WIDTH: f64 = 1050.0;
/// Where the names end and the bars begin.
const LEFT: f64 = 600.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 64.0;
const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
const BOTTOM: f64 = 34.0;
const BETTER: &str = "#1a7f5a";
const WORSE: &str = "#b3541e";

/// Whole powers of ten around all that is drawn, and around 1.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(bars: &[Bar]) -> Scale {
        let least = bars.iter().map(|bar| bar.min).fold(1.0, f64::min).max(0.001);
        let most = bars.iter().map(|bar| bar.max).fold(1.0, f64::max).min(100_000.0);
        let (low, high) = (least.log10().floor(), most.log10().ceil());
        Scale { low, high: if high <= low { low + 1.0 } else { high } }
    }

    fn x(&self, ratio: f64) -> f64 {
        let share = (ratio.max(f64::MIN_POSITIVE).log10() - self.low) / (self.high - self.low);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

/// An SVG that reads on light and dark pages alike.
pub(super) fn draw(bars: &[Bar]) -> String {
    let scale = Scale::of(bars);
    let height = TOP + ROW * bars.len() as f64 + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\" font-weight=\"600\" fill=\"#1c1c1c\">How many times better Skiff is than upstream</text>\n\
         <text x=\"16\" y=\"42\" fill=\"#5a5a5a\">median of interleaved pairs in one run, with the least and the most; logarithmic</text>\n"
    );
    // Writing to a string does not fail.
    let _ = grid(&mut out, &scale, height);
    for (row, bar) in bars.iter().enumerate() {
        let _ = bar.draw(&mut out, &scale, TOP + ROW * row as f64);
    }
    out += "</svg>\n";
    out
}

fn grid(out: &mut String, scale: &Scale, height: f64) -> std::fmt::Result {
    for power in scale.low as i32..=scale.high as i32 {
        let ratio = 10f64.powi(power);
        let (x, bottom) = (scale.x(ratio), height - BOTTOM);
        let (color, width) = if power == 0 { ("#1c1c1c", 1.5) } else { ("#dddddd", 1.0) };
        writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{color}\" stroke-width=\"{width}\"/>",
            TOP - 6.0
        )?;
        writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#5a5a5a\">× {ratio}</text>",
            bottom + 18.0
        )?;
    }
    Ok(())
}

impl Bar {
    fn draw(&self, out: &mut String, scale: &Scale, y: f64) -> std::fmt::Result {
        let (from, to) = (scale.x(1.0), scale.x(self.median));
        let (x, width) = (from.min(to), (from - to).abs().max(1.0));
        let color = if self.median >= 1.0 { BETTER } else { WORSE };
        let middle = y + BAR / 2.0;
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#1c1c1c\">{} <tspan fill=\"#5a5a5a\">({})</tspan></text>",
            LEFT - 10.0,
            middle + 4.0,
            escaped(&self.name),
            escaped(&self.figure)
        )?;
        writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{color}\"/>"
        )?;
        let (min, max) = (scale.x(self.min), scale.x(self.max));
        writeln!(
            out,
            "<line x1=\"{min:.1}\" y1=\"{middle:.1}\" x2=\"{max:.1}\" y2=\"{middle:.1}\" stroke=\"#1c1c1c\" stroke-width=\"1.5\"/>"
        )?;
        let digits = if self.median < 10.0 { 1 } else { 0 };
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#1c1c1c\">× {:.digits$}</text>",
            to.max(max).max(from) + 6.0,
            middle + 4.0,
            self.median
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(median: f64, min: f64, max: f64) -> Bar {
        Bar { name: "a & b".into(), figure: "ms".into(), median, min, max }
    }

    #[test]
    fn what_is_better_grows_to_the_right_of_one() {
        let bars = [bar(8.0, 5.0, 12.0), bar(0.5, 0.4, 0.6)];
        let scale = Scale::of(&bars);
        assert_eq!((scale.low, scale.high), (-1.0, 2.0));
        assert!(scale.x(8.0) > scale.x(1.0) && scale.x(0.5) < scale.x(1.0));
        let text = draw(&bars);
        assert!(text.contains("a &amp; b") && text.contains(BETTER) && text.contains(WORSE), "{text}");
        assert!(text.ends_with("</svg>\n"));
    }

    #[test]
    fn a_chart_of_nothing_is_a_chart() {
        let scale = Scale::of(&[]);
        assert!(scale.high > scale.low);
        assert!(!draw(&[]).contains("<rect x="));
    }
}
