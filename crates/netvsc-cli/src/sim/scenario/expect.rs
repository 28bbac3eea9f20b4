//! What has to be told of a scenario.

use std::time::Duration;

use vmbus::Instant;

/// Something about the events of a scenario, each of which is a sentence.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect {
    /// Sentences with these words come, in this order; others may come in between.
    Told(&'static [&'static str]),
    /// No sentence with these words comes.
    Never(&'static str),
    /// As many sentences with these words come, no more and no less.
    Times(usize, &'static str),
    /// Each of several sentences with the first words comes only after one with the second, and so often at most.
    OnlyAfter(&'static str, &'static str),
    /// Between a sentence with the first words and the next one with the second lies no more than this, in milliseconds.
    Within(u64, &'static str, &'static str),
    /// Between a sentence with the first words and the next one with the second lies at least this, in milliseconds.
    NotBefore(u64, &'static str, &'static str),
}

impl Expect {
    /// What is missing in these events, if anything.
    pub(super) fn missed(self, told: &[(Instant, String)]) -> Option<String> {
        let count = |words: &str| told.iter().filter(|(_, text)| text.contains(words)).count();
        match self {
            Self::Told(all) => {
                let mut rest = told.iter();
                let missing =
                    all.iter().find(|words| !rest.any(|(_, text)| text.contains(**words)));
                missing.map(|words| format!("expected to be told, in this place: {words:?}"))
            }
            Self::Never(words) => (count(words) > 0).then(|| format!("expected never: {words:?}")),
            Self::Times(times, words) => (count(words) != times).then(|| {
                format!("expected {times} times: {words:?}; it came {} times", count(words))
            }),
            Self::OnlyAfter(then, first) => {
                let mut open = 0_usize;
                for (_, text) in told {
                    open += usize::from(text.contains(first));
                    if text.contains(then) {
                        match open.checked_sub(1) {
                            Some(left) => open = left,
                            None => return Some(format!("expected {first:?} before {then:?}")),
                        }
                    }
                }
                (count(then) == 0).then(|| format!("expected at all: {then:?}"))
            }
            Self::Within(most, first, then) => match gap(told, first, then) {
                Some(span) if span <= Duration::from_millis(most) => None,
                span => {
                    Some(format!("expected {then:?} within {most} ms of {first:?}, not {span:?}"))
                }
            },
            Self::NotBefore(least, first, then) => match gap(told, first, then) {
                Some(span) if span >= Duration::from_millis(least) => None,
                span => Some(format!("expected {then:?} {least} ms after {first:?}, not {span:?}")),
            },
        }
    }
}

/// The time between the first sentence with the first words and the next with the second.
fn gap(told: &[(Instant, String)], first: &str, then: &str) -> Option<Duration> {
    let at = told.iter().position(|(_, text)| text.contains(first))?;
    let (from, rest) = (told.get(at)?.0, told.get(at + 1..)?);
    let to = rest.iter().find(|(_, text)| text.contains(then))?.0;
    Some(to.since(from))
}

#[cfg(test)]
mod tests {
    use super::Expect::{Never, NotBefore, OnlyAfter, Times, Told, Within};
    use super::*;

    fn told(texts: &[&str]) -> Vec<(Instant, String)> {
        let at = |place: usize| Instant::from_nanos(place as u64 * 1_000_000);
        texts.iter().enumerate().map(|(place, text)| (at(place), (*text).to_owned())).collect()
    }

    #[test]
    fn every_expectation_is_met_by_the_right_events_and_missed_by_wrong_ones() {
        let right = told(&["a", "b", "c", "b", "d"]);
        let met = [
            Told(&["a", "c", "d"]),
            Never("e"),
            Times(2, "b"),
            OnlyAfter("c", "b"),
            Within(1, "a", "b"),
            NotBefore(2, "a", "c"),
        ];
        for expect in met {
            assert_eq!(expect.missed(&right), None, "{expect:?}");
        }
        let missed = [
            Told(&["c", "a"]),
            Never("a"),
            Times(1, "b"),
            OnlyAfter("a", "b"),
            OnlyAfter("b", "a"),
            OnlyAfter("e", "a"),
            Within(1, "a", "c"),
            Within(9, "a", "e"),
            NotBefore(3, "a", "c"),
            NotBefore(0, "d", "a"),
        ];
        for expect in missed {
            assert!(expect.missed(&right).is_some(), "{expect:?}");
        }
    }
}
