//! The medians as bars on a logarithmic scale, in SVG, with the targets marked.

use std::fmt::Write as _;

use super::report::{Report, Row, Unit, number};

/// Rows that are drawn, in this order: ours beside those that they are compared with.
const DRAWN: [&str; 14] = [
    "create-boot",
    "create-clone",
    "create-pool",
    "first-result-pool",
    "podman-crun-run-python",
    "podman-runsc-run-python",
    "true-later",
    "podman-crun-exec-true",
    "podman-runsc-exec-true",
    "python-later",
    "python3-later",
    "podman-crun-exec-python",
    "podman-runsc-exec-python",
    "burst-full",
];
const TITLE: &str = "Median times in ms, on a logarithmic scale; less is better";
const WIDTH: f64 = 860.0;
/// Where bars begin, and how wide the longest may be; right of it is room for its figure.
const LEFT: f64 = 400.0;
const SPAN: f64 = 380.0;
const TOP: f64 = 56.0;
const LINE: f64 = 26.0;
const BAR: f64 = 16.0;
/// Colours that can be told apart on white and on black, and by those who do not see all colours.
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1f2328}.title{font-weight:600;font-size:15px}\
.ours{fill:#0969da}.rival{fill:#9a6700}.grid{stroke:#d1d9e0}.target{stroke:#1f2328;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.ours{fill:#4493f8}.rival{fill:#d29922}\
.grid{stroke:#3d444d}.target{stroke:#f0f6fc}}";

/// A picture of the report, which says in words too what it shows.
pub(super) fn svg(report: &Report) -> String {
    let find = |id: &&str| report.rows.iter().find(|row| row.id == **id && row.unit == Unit::Ms);
    let rows: Vec<&Row> = DRAWN.iter().filter_map(find).collect();
    let scale = Scale::over(&rows);
    #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
    let bottom = TOP + LINE * rows.len() as f64;
    let height = bottom + 44.0;
    let said: Vec<String> =
        rows.iter().map(|row| format!("{}: {} ms", row.scenario, number(row.p50))).collect();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"title desc\">\n<title id=\"title\">Median times of Bouvet and its rivals</title>\n\
         <desc id=\"desc\">{}</desc>\n<style>{STYLE}</style>\n\
         <text class=\"title\" x=\"12\" y=\"26\">{TITLE}</text>\n",
        escape(&said.join("; "))
    );
    for power in scale.least..=scale.most {
        let (value, x) = (10_f64.powi(power), scale.x(10_f64.powi(power)));
        // Writing to a string cannot fail.
        writeln!(svg, "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>").ok();
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>", bottom + 16.0)
            .ok();
    }
    let mut y = TOP;
    for row in rows {
        bar(&mut svg, row, &scale, y);
        y += LINE;
    }
    let legend = "a thin line marks a target; the other colour, what is not Bouvet";
    writeln!(svg, "<text x=\"12\" y=\"{:.1}\">{legend}</text>\n</svg>", bottom + 36.0).ok();
    svg
}

fn bar(svg: &mut String, row: &Row, scale: &Scale, y: f64) {
    let (width, middle) = (scale.x(row.p50) - LEFT, y + LINE / 2.0 + 4.0);
    let class = if row.id.starts_with("podman") { "rival" } else { "ours" };
    let (label, figure, end) = (escape(&row.scenario), number(row.p50), LEFT + width + 8.0);
    let top = y + (LINE - BAR) / 2.0;
    writeln!(svg, "<text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0).ok();
    writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\"/>"
    )
    .ok();
    // Those of the median alone: it is what the bar shows.
    let targets = row.targets.iter().filter(|verdict| verdict.statistic.name() == "p50");
    let marks: Vec<f64> = targets.filter_map(|verdict| verdict.bound).map(|bound| scale.x(bound)).collect();
    for x in &marks {
        let (top, bottom) = (y + 2.0, y + LINE - 2.0);
        writeln!(
            svg,
            "<line class=\"target\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>"
        )
        .ok();
    }
    // A mark just right of the bar would go through the figure.
    let end = marks
        .into_iter()
        .filter(|x| (end - 8.0..end + 40.0).contains(x))
        .fold(end, |end, x| end.max(x + 8.0));
    writeln!(svg, "<text x=\"{end:.1}\" y=\"{middle:.1}\">{figure}</text>").ok();
}

/// From powers of ten to places.
struct Scale {
    least: i32,
    most: i32,
}

impl Scale {
    fn over(rows: &[&Row]) -> Self {
        let bounds = |row: &&Row| row.targets.iter().filter_map(|verdict| verdict.bound).collect::<Vec<_>>();
        let values = rows.iter().map(|row| row.p50).chain(rows.iter().flat_map(bounds));
        let (least, most) = values
            .filter(|value| *value > 0.0)
            .map(f64::log10)
            .fold((1.0_f64, 1.0_f64), |(least, most), power| (least.min(power), most.max(power)));
        #[expect(clippy::cast_possible_truncation, reason = "powers of ten of milliseconds")]
        let (least, most) = (least.floor() as i32, most.ceil() as i32);
        Self { least, most: most.max(least + 1) }
    }

    fn x(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.least)) / f64::from(self.most - self.least);
        // What is shorter than the scale begins is still seen.
        LEFT + SPAN * part.clamp(0.005, 1.0)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::targets::judge;
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        report.add("create-boot", "booted <&> all", Unit::Ms, vec![3000.0]);
        report.add("create-pool", "pooled", Unit::Ms, vec![9.0]);
        report.add("podman-crun-run-python", "podman", Unit::Ms, vec![250.0]);
        report.add("memory-fresh", "not a time", Unit::Mb, vec![20.0]);
        judge(&mut report.rows);
        report
    }

    #[test]
    fn it_is_well_formed_and_says_what_it_shows() {
        let text = svg(&report());
        let document = roxmltree::Document::parse(&text).unwrap();
        let all = |name: &'static str| document.descendants().filter(move |node| node.has_tag_name(name));
        let desc = all("desc").next().and_then(|node| node.text()).unwrap();
        assert_eq!(desc, "booted <&> all: 3000 ms; pooled: 9.00 ms; podman: 250 ms");
        assert_eq!(all("title").count(), 1);
        let bars: Vec<_> = all("rect").map(|bar| bar.attribute("class").unwrap()).collect();
        assert_eq!(bars, ["ours", "ours", "rival"]);
        assert_eq!(all("line").filter(|line| line.attribute("class") == Some("target")).count(), 1);
    }

    #[test]
    fn longer_times_have_longer_bars_and_all_fit() {
        let text = svg(&report());
        let document = roxmltree::Document::parse(&text).unwrap();
        let bars = document.descendants().filter(|node| node.has_tag_name("rect"));
        let widths: Vec<f64> = bars.map(|bar| bar.attribute("width").unwrap().parse().unwrap()).collect();
        assert!(widths[0] > widths[2] && widths[2] > widths[1] && widths[1] > 0.0, "{widths:?}");
        assert!(widths.iter().all(|width| *width <= SPAN), "{widths:?}");
    }

    #[test]
    fn an_empty_report_is_a_picture_too() {
        roxmltree::Document::parse(&svg(&Report::default())).unwrap();
    }
}
