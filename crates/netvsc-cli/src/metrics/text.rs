//! The text format 0.0.4, which node_exporter's textfile collector takes; the encoder is that of the crate `prometheus`.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::families::{Family, Kind, Sample};
use crate::error::Error;

/// What a server calls the format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The text of these families.
///
/// # Errors
/// If a family has no name or no numbers, which none here has.
pub fn text(families: &[Family]) -> Result<Vec<u8>, Error> {
    let families: Vec<MetricFamily> = families.iter().map(family).collect();
    let mut out = Vec::new();
    TextEncoder::new()
        .encode(&families, &mut out)
        .map_err(|error| Error::Run(format!("the metrics cannot be put into words: {error}")))?;
    Ok(out)
}

fn family(family: &Family) -> MetricFamily {
    let mut out = MetricFamily::default();
    out.set_name(family.name.to_owned());
    out.set_help(family.help.to_owned());
    out.set_field_type(match family.kind {
        Kind::Gauge => MetricType::GAUGE,
        Kind::Counter => MetricType::COUNTER,
    });
    out.set_metric(family.samples.iter().map(|sample| metric(family.kind, sample)).collect());
    out
}

fn metric(kind: Kind, sample: &Sample) -> Metric {
    let labels = sample.labels.iter().map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value(value.clone());
        label
    });
    let mut metric = Metric::from_label(labels.collect());
    match kind {
        Kind::Gauge => {
            let mut gauge = Gauge::default();
            gauge.set_value(sample.value);
            metric.set_gauge(gauge);
        }
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(sample.value);
            metric.set_counter(counter);
        }
    }
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_are_whole_and_strange_names_are_escaped() {
        let sample =
            |device: &str, value| Sample { labels: [("device", device.to_owned())].into(), value };
        let family = Family {
            name: "netvsc_bytes_total",
            help: "Bytes.",
            kind: Kind::Counter,
            samples: vec![sample("eth0", 12_345_678_901_234.0), sample("a\"\\\n", 0.5)],
        };
        let expected = "# HELP netvsc_bytes_total Bytes.\n\
                        # TYPE netvsc_bytes_total counter\n\
                        netvsc_bytes_total{device=\"eth0\"} 12345678901234\n\
                        netvsc_bytes_total{device=\"a\\\"\\\\\\n\"} 0.5\n";
        assert_eq!(String::from_utf8(text(&[family]).unwrap()).unwrap(), expected);
    }
}
