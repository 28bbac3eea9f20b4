//! Sizes and spans as people write them: `64MiB`, `300ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, at least one. Written as `64MiB`, `10MB` or `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A span of time, possibly zero. Written as `300ms`, `2s`, `1.5s`, `10m` or `0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Why a text is not a size or a span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No number in front.
    #[error("expected a number and a unit, such as {example}")]
    NoNumber {
        /// What would be right.
        example: &'static str,
    },
    /// A unit nobody knows.
    #[error("`{unit}` is no unit; expected one of {expected}")]
    Unit {
        /// What was given.
        unit: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A number without its unit, where that could mean several things.
    #[error("a unit is missing; expected one of {expected} behind the number")]
    NoUnit {
        /// What would be right.
        expected: &'static str,
    },
    /// More than the program can count.
    #[error("too large; the largest is {largest}")]
    TooLarge {
        /// The limit.
        largest: &'static str,
    },
    /// Nothing at all.
    #[error("zero is not possible here; expected at least one byte")]
    Zero,
}

const SIZE_UNITS: &str = "B, KiB, MiB, GiB, kB, MB, GB";
const SPAN_UNITS: &str = "ms, s, m, h";

/// The digits in front (with at most one point among them) and what follows.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const LARGEST: UnitError = UnitError::TooLarge { largest: "1024GiB" };
        let (number, unit) = split(text.trim());
        if number.is_empty() || number.contains('.') {
            return Err(UnitError::NoNumber { example: "64MiB" });
        }
        let factor: u64 = match unit {
            "" | "B" => 1,
            "KiB" | "K" => 1 << 10,
            "MiB" | "M" => 1 << 20,
            "GiB" | "G" => 1 << 30,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            other => {
                return Err(UnitError::Unit { unit: other.to_owned(), expected: SIZE_UNITS });
            }
        };
        let count: u64 = number.parse().map_err(|_| LARGEST)?;
        match count.checked_mul(factor) {
            Some(0) => Err(UnitError::Zero),
            Some(bytes) if bytes <= 1 << 40 => Ok(Self(bytes)),
            _ => Err(LARGEST),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const LARGEST: UnitError = UnitError::TooLarge { largest: "8760h" };
        let (number, unit) = split(text.trim());
        let count: f64 = number.parse().map_err(|_| UnitError::NoNumber { example: "300ms" })?;
        let seconds = match unit {
            "ms" => count / 1e3,
            "s" => count,
            "m" | "min" => count * 60.0,
            "h" => count * 3600.0,
            "" if count == 0.0 => 0.0,
            "" => {
                return Err(UnitError::NoUnit { expected: SPAN_UNITS });
            }
            other => {
                return Err(UnitError::Unit { unit: other.to_owned(), expected: SPAN_UNITS });
            }
        };
        // A year: far beyond any run, far below what a Duration holds.
        if seconds > 8760.0 * 3600.0 {
            return Err(LARGEST);
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| LARGEST)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<u64, UnitError> {
        text.parse::<ByteSize>().map(|size| size.0)
    }

    fn span(text: &str) -> Result<u128, UnitError> {
        text.parse::<Span>().map(|span| span.0.as_millis())
    }

    #[test]
    fn sizes_are_read_as_written() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("64 MiB"), Ok(64 << 20));
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("10MB"), Ok(10_000_000));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("1024GiB"), Ok(1 << 40));
    }

    #[test]
    fn sizes_that_mean_nothing_are_refused_with_a_reason() {
        assert_eq!(size("0"), Err(UnitError::Zero));
        assert!(matches!(size(""), Err(UnitError::NoNumber { .. })));
        assert!(matches!(size("-1"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(size("1.5MiB"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(size("64mib"), Err(UnitError::Unit { .. })));
        assert!(matches!(size("1025GiB"), Err(UnitError::TooLarge { .. })));
        assert!(matches!(size("99999999999999999999"), Err(UnitError::TooLarge { .. })));
        assert!(matches!(size("18446744073709551615GiB"), Err(UnitError::TooLarge { .. })));
    }

    #[test]
    fn sizes_print_as_they_are_read() {
        for text in ["64MiB", "1GiB", "3KiB", "4097B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn spans_are_read_as_written() {
        assert_eq!(span("300ms"), Ok(300));
        assert_eq!(span("2s"), Ok(2_000));
        assert_eq!(span("1.5 s"), Ok(1_500));
        assert_eq!(span("10m"), Ok(600_000));
        assert_eq!(span("1h"), Ok(3_600_000));
        assert_eq!(span("0"), Ok(0));
    }

    #[test]
    fn spans_that_mean_nothing_are_refused_with_a_reason() {
        assert!(matches!(span("5"), Err(UnitError::NoUnit { .. })));
        assert!(matches!(span("fast"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(span("1.2.3s"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(span("3 days"), Err(UnitError::Unit { .. })));
        assert!(matches!(span("-1s"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(span("9000h"), Err(UnitError::TooLarge { .. })));
    }
}
