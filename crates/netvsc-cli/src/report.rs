//! Where events go: JSON lines, plain lines, or a live view.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::error::Error;
use crate::event::{Event, PairLine, Summary, SummaryLine};
use crate::run::{NicLine, QueueLine};

/// Events that the live view shows.
const SHOWN_EVENTS: usize = 8;

/// What the live view shows of a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicView {
    /// MAC, once known.
    pub mac: String,
    /// State in the words of the pairing rules.
    pub state: String,
    /// The path on which frames leave.
    pub path: &'static str,
    /// The pair, if there is one: serial and reason.
    pub pair: String,
    /// Bytes transferred and bytes in all.
    pub progress: Option<(u64, u64)>,
}

/// Prints events and totals in one of three ways.
#[derive(Debug)]
pub enum Report {
    /// One JSON object per line.
    Json,
    /// One sentence per line.
    Plain,
    /// Bars, a table and the last events, redrawn in place.
    Live(Live),
}

impl Report {
    /// The way that fits: JSON if asked for, the live view on a terminal, plain lines otherwise.
    #[must_use]
    pub fn choose(json: bool) -> Self {
        match (json, io::stdout().is_terminal()) {
            (true, _) => Self::Json,
            (false, true) => Self::Live(Live::new()),
            (false, false) => Self::Plain,
        }
    }

    /// Lines, whatever standard output is: JSON if asked for, sentences otherwise. For what runs on.
    #[must_use]
    pub fn plain(json: bool) -> Self {
        if json { Self::Json } else { Self::Plain }
    }

    /// Tells an event.
    ///
    /// # Errors
    /// If standard output cannot be written to.
    pub fn event(&mut self, event: &Event) -> Result<(), Error> {
        match self {
            Self::Json => line(&json(event)?),
            Self::Plain => line(&event.to_string()),
            Self::Live(live) => {
                live.event(event);
                Ok(())
            }
        }
    }

    /// Shows how the NICs stand. Only the live view has a place for it.
    pub fn nics(&mut self, nics: &[NicView]) {
        if let Self::Live(live) = self {
            live.nics(nics);
        }
    }

    /// Whether [`Report::nics`] shows anything.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Live(_))
    }

    /// Tells the totals and ends.
    ///
    /// # Errors
    /// If standard output cannot be written to.
    pub fn summary(&mut self, summary: &Summary) -> Result<(), Error> {
        if let Self::Live(live) = self {
            live.end();
        }
        match self {
            Self::Json => line(&json(&SummaryLine { summary })?),
            Self::Plain | Self::Live(_) => line(&summary_text(summary)),
        }
    }
}

/// A value as one line of JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Output(error.into()))
}

fn line(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Error::Output)
}

fn summary_text(summary: &Summary) -> String {
    let mut text = String::new();
    text.push_str("\nnic  serial      mac                reason        state        path\n");
    for PairLine { nic, serial, mac, reason, state, path } in &summary.pairs {
        text.push_str(&format!(
            "{nic:<4} {serial:<11} {mac:<18} {reason:<13} {state:<12} {path}\n"
        ));
    }
    text.push_str(&queue_table(summary));
    let digests = match summary.digest_ok {
        Some(true) => "every digest matches",
        Some(false) => "DIGESTS DIFFER",
        None => "no transfer",
    };
    text.push_str(&format!(
        "\n{} bytes over {} NICs, {digests}\n\
         switches: {} to VF, {} to synthetic ({} orderly removals, {} surprises)\n\
         frames sent: {} on VFs, {} on synthetic paths, {} of them again\n\
         frames lost by orderly switches: {}\n\
         frames in VFs when they were torn away: {} of the guest's, which were sent again, and {} for it\n\
         frames waited for a switch: median {} us, p99 {} us, longest {} us ({} switches)\n\
         time: {:.3} s of the run, {:.3} s on the clock",
        summary.bytes,
        summary.nics,
        summary.switches_to_vf,
        summary.switches_to_synthetic,
        summary.ejects,
        summary.surprises,
        summary.frames_vf,
        summary.frames_synthetic,
        summary.frames_resent,
        summary.frames_lost_orderly,
        summary.frames_perished_sent,
        summary.frames_perished_surprise.saturating_sub(summary.frames_perished_sent),
        summary.blackouts.p50_us,
        summary.blackouts.p99_us,
        summary.blackouts.max_us,
        summary.blackouts.switches,
        summary.virtual_seconds,
        summary.wall_seconds,
    ));
    text
}

/// What went over each queue, where NICs have several.
fn queue_table(summary: &Summary) -> String {
    if summary.counters.iter().all(|nic| nic.queues.len() < 2) {
        return String::new();
    }
    let mut text = String::from("\nnic  queue  frames out  bytes out     frames in   bytes in\n");
    for NicLine { nic, queues, .. } in &summary.counters {
        for QueueLine { queue, tx_frames, tx_bytes, rx_frames, rx_bytes, .. } in queues {
            text.push_str(&format!(
                "{nic:<4} {queue:<6} {tx_frames:<11} {tx_bytes:<13} {rx_frames:<11} {rx_bytes}\n"
            ));
        }
    }
    text
}

/// The live view.
#[derive(Debug)]
pub struct Live {
    screen: MultiProgress,
    bars: Vec<ProgressBar>,
    table: Vec<ProgressBar>,
    events: Vec<ProgressBar>,
    last: VecDeque<String>,
}

impl Live {
    fn new() -> Self {
        let screen = MultiProgress::new();
        let events = (0..=SHOWN_EVENTS).map(|at| text_line(&screen, at)).collect();
        Self { screen, bars: Vec::new(), table: Vec::new(), events, last: VecDeque::new() }
    }

    fn event(&mut self, event: &Event) {
        self.last.push_back(event.to_string());
        while self.last.len() > SHOWN_EVENTS {
            self.last.pop_front();
        }
        for (bar, text) in self.events.iter().skip(1).zip(&self.last) {
            bar.set_message(text.clone());
        }
    }

    fn nics(&mut self, nics: &[NicView]) {
        while self.table.len() < nics.len() {
            let at = self.bars.len() + self.table.len();
            self.table.push(text_line(&self.screen, at));
        }
        for (number, (line, nic)) in self.table.iter().zip(nics).enumerate() {
            line.set_message(format!(
                "nic{number}  {:<17}  {:<11}  {:<9}  {}",
                nic.mac, nic.state, nic.path, nic.pair
            ));
        }
        for (number, nic) in nics.iter().enumerate() {
            let Some((done, total)) = nic.progress else { continue };
            if self.bars.len() <= number {
                // A bar draws itself as soon as it is changed, so it gets its place first.
                let bar = self.screen.insert(self.bars.len(), ProgressBar::new(total));
                bar.set_style(bar_style());
                bar.set_prefix(format!("nic{number}"));
                self.bars.push(bar);
            }
            if let Some(bar) = self.bars.get(number) {
                bar.set_position(done);
            }
        }
    }

    fn end(&mut self) {
        for bar in self.bars.iter().chain(&self.table).chain(&self.events) {
            bar.finish();
        }
    }
}

fn text_style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {wide_bar} {bytes}/{total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A line of text at place `at` of the screen.
fn text_line(screen: &MultiProgress, at: usize) -> ProgressBar {
    let line = screen.insert(at, ProgressBar::new_spinner());
    line.set_style(text_style());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary {
            nics: 1,
            pairs: vec![PairLine {
                nic: 0,
                serial: 7,
                mac: "00:15:5d:00:00:01".into(),
                reason: "SerialAndMac",
                state: "accelerated".into(),
                path: "vf",
            }],
            bytes: 10,
            digest_ok: Some(true),
            switches_to_vf: 2,
            switches_to_synthetic: 1,
            frames_vf: 3,
            frames_synthetic: 4,
            frames_lost_orderly: 0,
            frames_perished_surprise: 0,
            frames_perished_sent: 0,
            frames_resent: 1,
            frames_duplicated: 0,
            blackouts: crate::guest::BlackoutLine::default(),
            counters: Vec::new(),
            ejects: 1,
            surprises: 0,
            virtual_seconds: 1.5,
            wall_seconds: 0.25,
        }
    }

    #[test]
    fn the_summary_is_one_json_line_with_its_name() {
        let text = json(&SummaryLine { summary: &summary() }).unwrap();
        assert!(text.starts_with(r#"{"event":"summary","nics":1,"#), "{text}");
        assert!(text.contains(r#""pairs":[{"nic":0,"serial":7,"#), "{text}");
        assert!(!text.contains('\n'));
    }

    #[test]
    fn the_summary_for_people_names_a_bad_digest() {
        let bad = Summary { digest_ok: Some(false), ..summary() };
        assert!(summary_text(&bad).contains("DIGESTS DIFFER"));
        assert!(summary_text(&summary()).contains("every digest matches"));
    }
}
