//! The plot: one line per row, one dot per contender at its ratio to the kernel, on a logarithmic scale.
//!
//! Plain SVG without fonts or scripts of its own, on a white card so that it reads on light and dark pages.

use super::Results;
use crate::marks::{self, Limit};

/// Colours that also those can tell apart who do not see all of them (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#d55e00", "#999999", "#cc79a7", "#009e73", "#56b4e9"];

const LEFT: f64 = 290.0;
const WIDTH: f64 = 560.0;
const TOP: f64 = 84.0;
const STEP: f64 = 21.0;

/// Where ratios lie on the page.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn x(&self, ratio: f64) -> f64 {
        let part = (ratio / self.least).ln() / (self.most / self.least).ln();
        LEFT + part.clamp(0.0, 1.0) * WIDTH
    }
}

/// The plot of all rows that have ratios.
pub fn render(results: &Results) -> String {
    let rows: Vec<_> = results
        .rows()
        .filter(|row| !row.title.starts_with(' '))
        .filter(|row| others(results).any(|(_, name)| results.ratio(row, name).is_some()))
        .collect();
    let all = || rows.iter().flat_map(|row| others(results).filter_map(|(_, name)| results.ratio(row, name)));
    let limits = rows.iter().filter_map(|row| match marks::of(row.id)?.limit {
        Limit::Ratio(limit) => Some(limit),
        Limit::Bytes(_) => None,
    });
    let least = all().map(|ratio| ratio.median).chain(limits).fold(0.5, f64::min) * 0.9;
    let most = all().map(|ratio| ratio.median).fold(10.0, f64::max) * 1.1;
    let scale = Scale { least, most };
    let bottom = TOP + STEP * rows.len() as f64;
    let (width, height) = (LEFT + WIDTH + 30.0, bottom + 46.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#ffffff\"/>\n\
         <text x=\"20\" y=\"28\" font-size=\"15\" font-weight=\"600\" fill=\"#222\">\
         Time compared with the kernel's overlay (left is faster)</text>\n"
    );
    legend(results, &mut svg);
    grid(&scale, bottom, &mut svg);
    for (n, row) in rows.iter().enumerate() {
        let y = TOP + STEP * (n as f64 + 0.5);
        if n % 2 == 0 {
            svg.push_str(&format!(
                "<rect x=\"12\" y=\"{:.1}\" width=\"{:.1}\" height=\"{STEP}\" fill=\"#000\" opacity=\"0.03\"/>\n",
                y - STEP / 2.0,
                width - 24.0
            ));
        }
        line(results, row, y, &scale, &mut svg);
    }
    svg.push_str(&format!(
        "<text x=\"20\" y=\"{:.1}\" fill=\"#666\" font-size=\"11\">{}</text>\n</svg>\n",
        bottom + 36.0,
        escape(&caption(results))
    ));
    svg
}

/// Everybody but the kernel, with a number for the colour.
fn others(results: &Results) -> impl Iterator<Item = (usize, &str)> {
    let kernel = results.kernel().map(|kernel| kernel.name.as_str());
    results.contenders.iter().map(|c| c.name.as_str()).filter(move |name| Some(*name) != kernel).enumerate()
}

fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

fn legend(results: &Results, svg: &mut String) {
    let mut x = 20.0;
    for (n, name) in others(results) {
        svg.push_str(&format!(
            "<circle cx=\"{:.1}\" cy=\"48\" r=\"5\" fill=\"{}\"/><text x=\"{:.1}\" y=\"52\" fill=\"#222\">{}</text>\n",
            x + 5.0,
            colour(n),
            x + 15.0,
            escape(name)
        ));
        x += 40.0 + 7.0 * name.chars().count() as f64;
    }
    svg.push_str(&format!(
        "<path d=\"M{x:.1} 42v12\" stroke=\"#222\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"52\" fill=\"#222\">mark</text>\n",
        x + 8.0
    ));
}

fn grid(scale: &Scale, bottom: f64, svg: &mut String) {
    for ratio in [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0] {
        if ratio < scale.least || ratio > scale.most {
            continue;
        }
        let x = scale.x(ratio);
        let (colour, width) = if ratio == 1.0 { ("#222", 1.5) } else { ("#ddd", 1.0) };
        svg.push_str(&format!(
            "<path d=\"M{x:.1} {TOP}V{bottom:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{}</text>\n",
            bottom + 16.0,
            if ratio == 1.0 { "kernel".to_owned() } else { format!("{ratio}x") }
        ));
    }
}

fn line(results: &Results, row: &crate::work::Row, y: f64, scale: &Scale, svg: &mut String) {
    svg.push_str(&format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#222\">{}</text>\n",
        LEFT - 12.0,
        y + 4.0,
        escape(row.title.trim())
    ));
    if let Some(Limit::Ratio(limit)) = marks::of(row.id).map(|mark| mark.limit) {
        let x = scale.x(limit);
        svg.push_str(&format!("<path d=\"M{x:.1} {:.1}v13\" stroke=\"#222\" stroke-width=\"2\"/>\n", y - 6.5));
    }
    // The first contender is drawn last, so that it lies on top.
    let mut dots: Vec<String> = Vec::new();
    for (n, name) in others(results) {
        let Some(ratio) = results.ratio(row, name) else { continue };
        let colour = colour(n);
        dots.push(format!(
            "<path d=\"M{:.1} {y:.1}H{:.1}\" stroke=\"{colour}\" stroke-width=\"1.5\" opacity=\"0.5\"/>\
             <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"{}\" fill=\"{colour}\"><title>{}: {:.2} ({:.2} to {:.2})</title></circle>\n",
            scale.x(ratio.least),
            scale.x(ratio.most),
            scale.x(ratio.median),
            if n == 0 { 5.5 } else { 4.5 },
            escape(name),
            ratio.median,
            ratio.least,
            ratio.most
        ));
    }
    dots.reverse();
    svg.push_str(&dots.concat());
}

fn caption(results: &Results) -> String {
    let fact = |wanted: &str| results.machine.iter().find(|(what, _)| *what == wanted).map_or("", |(_, value)| value);
    format!(
        "Linux {}, {}, {}; {} rounds; lines: smallest to largest",
        fact("kernel"),
        fact("mounted by"),
        fact("backing file system"),
        fact("rounds")
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
