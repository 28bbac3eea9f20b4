//! Options of `netvsc metrics`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use crate::inspect::args::{OutputArgs, SourceArgs};

/// What is said at length about the verb.
pub const LONG: &str = "\
Print what is known of this Linux guest's NICs as Prometheus metrics, in the text format 0.0.4.

Without further options they are printed once. --textfile writes them to a file for node_exporter's textfile collector, by way \
of a temporary file, so that nobody ever reads half of them. --listen serves them over HTTP, to this machine only, until Ctrl-C.

Nothing is counted twice: the kernel's netvsc driver counts in a NIC's totals what its VF carries, and here the two paths stand \
apart. What could not be read is left out, and never 0. Switches and the time without VF come from the kernel log, and are left \
out where that does not go back to the boot.

Alert rules for Prometheus come with `netvsc install`, in /usr/share/netvsc/prometheus.";

/// Exit statuses of the verb.
pub const STATUS: &str = "\
Exit status:
  0  the metrics were printed or written, or it was asked to stop
  1  they cannot be written, nobody can listen there, or the root cannot be used
  2  the command line makes no sense";

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP port of this machine, on a loopback address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("expected a path behind `unix:`".into());
            }
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = text.parse().map_err(
            |_| "expected unix:PATH, or a loopback address and a port such as 127.0.0.1:9871",
        )?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{} is no loopback address: what is told here is for this machine; put a proxy before it that knows who may ask",
                address.ip()
            ));
        }
        Ok(Self::Tcp(address))
    }
}

/// Options of `netvsc metrics`.
#[derive(Clone, Debug, Args)]
pub struct MetricsArgs {
    /// Write them to this file, for node_exporter's textfile collector
    #[arg(long, value_name = "PATH", conflicts_with_all = ["listen", "json", "pretty"])]
    pub textfile: Option<PathBuf>,

    /// Serve them over HTTP, at unix:PATH or a loopback address and port
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["sysfs_root", "from", "json", "pretty"])]
    pub listen: Option<Listen>,

    /// Count interrupts and full rings by channel; these are many
    #[arg(long)]
    pub per_channel: bool,

    /// Where to look.
    #[command(flatten)]
    pub source: SourceArgs,

    /// How to say it.
    #[command(flatten)]
    pub output: OutputArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_listened_to() {
        assert_eq!("127.0.0.1:9871".parse(), Ok(Listen::Tcp(([127, 0, 0, 1], 9871).into())));
        assert!(matches!("[::1]:9871".parse(), Ok(Listen::Tcp(_))));
        assert_eq!("unix:/run/m".parse(), Ok(Listen::Unix("/run/m".into())));
        for (text, says) in [
            ("0.0.0.0:9871", "no loopback address"),
            ("[::]:1", "no loopback address"),
            ("unix:", "a path"),
            ("9871", "expected unix:PATH"),
            ("localhost:1", "expected unix:PATH"),
        ] {
            let error = text.parse::<Listen>().expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
