//! The recorded run as SVG: coordinates in pixels, one lane per NIC below one for the rest.

use std::fmt::Write;

use netvsc::Path;
use vmbus::Instant;

use super::xml::Text;
use super::{Blackout, GRAIN, Heading, Kind, Lane, Mark, Recorder, Turn};

const WIDTH: f64 = 1280.0;
/// Where time begins, and where it ends.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 1100.0;
/// Marks closer than this become one.
const CLUSTER: f64 = 13.0;
/// Width of a bar of the chart.
const BAR: f64 = 4.0;
/// The narrowest that anything is drawn.
const THIN: f64 = 1.5;

/// Colours that stay apart for those who see few, on white and on black; shapes tell marks apart as well. Every class has
/// its colour spelled out, since not every viewer knows variables.
const STYLE: &str = "\
svg{color-scheme:light dark}text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1b1f24}\
.paper{fill:#ffffff}.dim{fill:#5d6670;font-size:11px}.title{font-size:18px;font-weight:600}\
.good{fill:#007a58;font-weight:600}.bad{fill:#c43c00;font-weight:600}.count{font-size:9px;text-anchor:middle}\
.grid{stroke:#d8dee4;stroke-width:1}.vf{fill:#0072b2}.synthetic{fill:#e69f00}.gone{fill:#d8dee4}\
.blackout{fill:#1b1f24}.wait{fill:#1b1f24;opacity:.14}.mark{stroke:#ffffff;stroke-width:1}\
.pair{fill:#009e73}.act{fill:#5d6670}.association{fill:#7b4fa3}.function{fill:#0072b2}.eject{fill:#b07800}.fault{fill:#c43c00}\
@media(prefers-color-scheme:dark){text{fill:#e6eaee}.paper{fill:#14181d}.dim{fill:#9aa4ae}.good{fill:#2fc79b}.bad{fill:#ff7a45}\
.grid{stroke:#333b44}.vf{fill:#56b4e9}.gone{fill:#333b44}.blackout,.wait{fill:#ffffff}.mark{stroke:#14181d}\
.pair{fill:#2fc79b}.act{fill:#9aa4ae}.association{fill:#c9a0f0}.function{fill:#56b4e9}.eject{fill:#f0c040}.fault{fill:#ff7a45}}";

const KINDS: [(Kind, &str, &str); 6] = [
    (Kind::Act, "act", "act of the host"),
    (Kind::Association, "association", "serial named, withdrawn"),
    (Kind::Function, "function", "function arrives, leaves"),
    (Kind::Eject, "eject", "eject asked, answered"),
    (Kind::Pair, "pair", "pairing"),
    (Kind::Fault, "fault", "fault"),
];

fn class(kind: Kind) -> &'static str {
    KINDS.iter().find(|known| known.0 == kind).map_or("", |known| known.1)
}

/// How high the parts of a lane are, by the number of lanes.
#[derive(Clone, Copy, Debug)]
struct Shape {
    marks: f64,
    path: f64,
    chart: f64,
    gap: f64,
}

impl Shape {
    fn fitting(lanes: usize) -> Self {
        let (marks, path, chart, gap) = match lanes {
            0..=4 => (26.0, 14.0, 46.0, 18.0),
            5..=8 => (24.0, 12.0, 30.0, 12.0),
            9..=16 => (22.0, 9.0, 18.0, 8.0),
            _ => (17.0, 6.0, 9.0, 4.0),
        };
        Self { marks, path, chart, gap }
    }

    fn height(self) -> f64 {
        self.marks + self.path + self.chart + self.gap
    }
}

struct Canvas<'a> {
    out: String,
    recorder: &'a Recorder,
    shape: Shape,
    /// Frames that a bar of full height stands for.
    most: u64,
}

pub(super) fn picture(recorder: &Recorder, heading: &Heading) -> String {
    let shape = Shape::fitting(recorder.lanes.len());
    let mut canvas = Canvas { out: String::new(), recorder, shape, most: 1 };
    canvas.most =
        recorder.lanes.iter().flat_map(|lane| canvas.bars(lane)).map(sum).max().unwrap_or(1);
    let top = 116.0 + 16.0 * heading.figures.len() as f64;
    let bottom = top + 34.0 + shape.height() * recorder.lanes.len() as f64;
    canvas.begin(bottom + 40.0, heading);
    canvas.legend(top - 32.0);
    canvas.axis(top, bottom);
    canvas.system(top + 6.0);
    for (nic, lane) in recorder.lanes.iter().enumerate() {
        canvas.lane(nic, lane, top + 34.0 + shape.height() * nic as f64);
    }
    canvas.out.push_str("</svg>\n");
    canvas.out
}

fn sum((vf, synthetic): (u64, u64)) -> u64 {
    vf + synthetic
}

/// A length of time as people say it.
fn length(nanos: u64) -> String {
    match nanos {
        0..1_000_000 => format!("{} us", nanos / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} ms", nanos as f64 / 1e6),
        _ => format!("{:.2} s", nanos as f64 / 1e9),
    }
}

impl Canvas<'_> {
    /// Appends; writing to a string cannot fail.
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.out.write_fmt(text);
    }

    fn span(&self) -> u64 {
        self.recorder.end.as_nanos().max(1)
    }

    fn x(&self, at: Instant) -> f64 {
        LEFT + (RIGHT - LEFT) * (at.as_nanos() as f64 / self.span() as f64).min(1.0)
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>\n",
            Text(text)
        ));
    }

    /// A bar from `from` to `to`, with a tooltip.
    fn bar(&mut self, from: f64, to: f64, y: f64, height: f64, class: &str, title: &str) {
        let (from, width) = (from.clamp(0.0, RIGHT - THIN), (to - from).max(THIN));
        self.put(format_args!(
            "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" class=\"{class}\"><title>{}</title></rect>\n",
            Text(title)
        ));
    }

    fn begin(&mut self, height: f64, heading: &Heading) {
        self.put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
             <title>{}</title>\n<style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" class=\"paper\"/>\n",
            Text(&heading.title)
        ));
        self.text(20.0, 30.0, "title", &heading.title);
        let (class, verdict) = match &heading.verdict {
            Ok(()) => ("good", "passed".to_owned()),
            Err(why) => ("bad", format!("FAILED: {why}")),
        };
        let short: String = verdict.chars().take(160).collect();
        self.put(format_args!(
            "<text x=\"20\" y=\"50\" class=\"{class}\">{}<title>{}</title></text>\n",
            Text(&short),
            Text(&verdict)
        ));
        for (line, figure) in heading.figures.iter().enumerate() {
            self.text(20.0, 68.0 + 16.0 * line as f64, "dim", figure);
        }
    }

    fn legend(&mut self, y: f64) {
        let mut x = 20.0;
        for (class, text) in [
            ("vf", "VF"),
            ("synthetic", "synthetic"),
            ("blackout", "in transit: no path takes frames"),
        ] {
            self.bar(x, x + 14.0, y - 9.0, 9.0, class, text);
            self.text(x + 19.0, y, "dim", text);
            x += 38.0 + 6.3 * text.len() as f64;
        }
        for (kind, _, text) in KINDS {
            self.symbol(x + 6.0, y - 4.5, kind, text);
            self.text(x + 15.0, y, "dim", text);
            x += 32.0 + 6.0 * text.len() as f64;
        }
    }

    fn axis(&mut self, top: f64, bottom: f64) {
        let span = self.span();
        // The first of 1, 2, 5, 10, 20, 50 ... microseconds that gives no more than ten.
        let decades = (3..19).map(|power| 10_u64.pow(power));
        let steps = decades.flat_map(|ten| [ten, ten.saturating_mul(2), ten.saturating_mul(5)]);
        let step = steps.into_iter().find(|step| span / step <= 10).unwrap_or(u64::MAX);
        let mut at = 0;
        while at <= span {
            let x = self.x(Instant::from_nanos(at));
            self.put(format_args!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" class=\"grid\"/>\n"
            ));
            let label = if at == 0 { "0".into() } else { length(at).replace(".0 ", " ") };
            self.put(format_args!(
                "<text x=\"{x:.1}\" y=\"{:.1}\" class=\"dim\" text-anchor=\"middle\">{label}</text>\n",
                bottom + 16.0
            ));
            at = at.saturating_add(step);
        }
    }

    fn system(&mut self, y: f64) {
        self.text(20.0, y + 12.0, "dim", "system");
        let recorder = self.recorder;
        self.marks(&recorder.system.marks, y + 8.0);
    }

    fn lane(&mut self, nic: usize, lane: &Lane, y: f64) {
        let Shape { marks, path, chart, .. } = self.shape;
        self.put(format_args!("<g class=\"lane\" id=\"nic{nic}\">\n"));
        self.text(20.0, y + marks + path - 1.0, "", &format!("nic{nic}"));
        let (bar, floor) = (y + marks, y + marks + path + chart);
        self.paths(lane, bar);
        self.chart(lane, floor);
        for blackout in &lane.blackouts {
            self.blackout(blackout, bar, floor);
        }
        self.marks(&lane.marks, y + marks - 8.0);
        self.sums(lane, y + marks + path - 1.0);
        self.out.push_str("</g>\n");
    }

    fn paths(&mut self, lane: &Lane, y: f64) {
        let height = self.shape.path;
        let ends = lane.turns.iter().skip(1).map(|turn| turn.at).chain([self.recorder.end]);
        for (Turn { at, path, why }, end) in lane.turns.iter().zip(ends) {
            let class = match path {
                Some(Path::Vf) => "vf",
                Some(Path::Synthetic) => "synthetic",
                None => "gone",
            };
            let lasted = length(end.as_nanos().saturating_sub(at.as_nanos()));
            let title = format!("{at} s: {class} for {lasted}\n{why}");
            self.bar(self.x(*at), self.x(end), y, height, class, &title);
        }
    }

    fn blackout(&mut self, blackout: &Blackout, y: f64, floor: f64) {
        let Blackout { from, to, pushed_back } = blackout;
        let lasted = length(to.as_nanos().saturating_sub(from.as_nanos()));
        let title = format!("{from} s: in transit for {lasted}, {pushed_back} frames pushed back");
        let (left, right) = (self.x(*from), self.x(*to));
        self.bar(left, right, y + self.shape.path, floor - y - self.shape.path, "wait", &title);
        self.bar(left, right, y, self.shape.path, "blackout", &title);
        if right - left > 8.0 + 7.0 * lasted.len() as f64 && self.shape.path > 10.0 {
            self.text(left + 4.0, y + self.shape.path + 12.0, "dim", &lasted);
        }
    }

    /// Frames on VFs and on the synthetic path, bar by bar.
    fn bars(&self, lane: &Lane) -> Vec<(u64, u64)> {
        let count = ((RIGHT - LEFT) / BAR) as usize;
        let mut bars = vec![(0, 0); count];
        for sent in &lane.sent {
            let place = (sent.grain * GRAIN) as f64 / self.span() as f64 * count as f64;
            if let Some(bar) = bars.get_mut((place as usize).min(count - 1)) {
                bar.0 += sent.vf;
                bar.1 += sent.synthetic;
            }
        }
        bars
    }

    fn chart(&mut self, lane: &Lane, floor: f64) {
        let bars = self.bars(lane);
        let scale = (self.shape.chart - 2.0) / self.most.max(1) as f64;
        let high = |frames: u64| frames as f64 * scale;
        type Pick = fn((u64, u64)) -> u64;
        // The sum lies behind, so that the two are stacked.
        let layers: [(&str, Pick); 2] = [("synthetic", sum), ("vf", |bar| bar.0)];
        for (class, pick) in layers {
            let mut path = String::new();
            for (place, bar) in bars.iter().enumerate().filter(|(_, bar)| pick(**bar) > 0) {
                let (x, height) = (LEFT + BAR * place as f64, high(pick(*bar)).max(0.5));
                let _ = write!(path, "M{x:.1} {floor:.1}v-{height:.1}h{BAR}v{height:.1}z");
            }
            if !path.is_empty() {
                self.put(format_args!("<path class=\"{class}\" d=\"{path}\"/>\n"));
            }
        }
        self.put(format_args!(
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{floor:.1}\" y2=\"{floor:.1}\" class=\"grid\"/>\n"
        ));
    }

    fn marks(&mut self, marks: &[Mark], y: f64) {
        let mut rest = marks;
        while let Some(first) = rest.first() {
            let from = self.x(first.at);
            let near = rest.iter().take_while(|mark| self.x(mark.at) - from < CLUSTER).count();
            let (cluster, others) = rest.split_at(near);
            rest = others;
            let kind = cluster.iter().map(|mark| mark.kind).max().unwrap_or(first.kind);
            let lines = cluster.iter().map(|mark| format!("{} s: {}", mark.at, mark.text));
            self.symbol(from, y, kind, &lines.collect::<Vec<_>>().join("\n"));
            if near > 1 {
                let count = y - 7.0;
                self.put(format_args!(
                    "<text x=\"{from:.1}\" y=\"{count:.1}\" class=\"count\">{near}</text>\n"
                ));
            }
        }
    }

    /// Every kind has a shape of its own.
    fn symbol(&mut self, x: f64, y: f64, kind: Kind, title: &str) {
        let path = match kind {
            Kind::Act => "m-5 -4h10l-5 9z",
            Kind::Association => "m0 -5l5 9h-10z",
            Kind::Function => "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
            Kind::Eject => "m0 -6l6 6l-6 6l-6 -6z",
            Kind::Pair => "m-4 -4h8v8h-8z",
            Kind::Fault => "m-6 -4l2 -2l4 4l4 -4l2 2l-4 4l4 4l-2 2l-4 -4l-4 4l-2 -2l4 -4z",
        };
        self.put(format_args!(
            "<path class=\"mark {}\" d=\"M{x:.1} {y:.1}{path}\"><title>{}</title></path>\n",
            class(kind),
            Text(title)
        ));
    }

    fn sums(&mut self, lane: &Lane, y: f64) {
        let longest =
            lane.blackouts.iter().map(|one| one.to.as_nanos() - one.from.as_nanos()).max();
        let text = match longest {
            None => "no switch".to_owned(),
            Some(longest) => {
                format!("{} in transit, max {}", lane.blackouts.len(), length(longest))
            }
        };
        self.text(RIGHT + 12.0, y, "dim", &text);
    }
}
