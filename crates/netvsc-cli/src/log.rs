//! What is logged, and how much of it: from the start, and changed while the program runs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::error::Error;

/// Longest file that is read for a level, in bytes.
const LONGEST: u64 = 256;

/// Options of the verbs that run on.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// How much is logged to standard error: off, error, warn, info, debug or trace
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "warn",
        help_heading = "Service",
        long_help = "How much is logged to standard error: off, error, warn, info, debug or trace"
    )]
    pub log_level: LevelFilter,

    /// Take the level from this file, now and whenever SIGHUP comes
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Service",
        long_help = "Take the level from this file, now and whenever SIGHUP comes: its first word. If there is no such file, that of --log-level"
    )]
    pub log_level_from: Option<PathBuf>,
}

/// The log of a running program.
#[derive(Debug)]
pub(crate) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    args: LogArgs,
}

impl Log {
    /// Begins to log. A program does that once.
    pub(crate) fn start(args: &LogArgs) -> Result<Self, Error> {
        let (filter, level) = reload::Layer::new(wanted(args)?);
        let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        // Where somebody logs already, as in a test of ours, his log stays.
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Ok(Self { level, args: args.clone() })
    }

    /// Looks for another level. One that cannot be read changes nothing.
    pub(crate) fn reload(&self) {
        let outcome = wanted(&self.args).map_err(|error| error.to_string()).and_then(|wanted| {
            let old = self.level.with_current(|level| *level);
            self.level.reload(wanted).map_err(|error| error.to_string())?;
            Ok((old, wanted))
        });
        match outcome {
            Ok((old, new)) => {
                let old = old.map_or_else(|_| "none".to_owned(), |level| level.to_string());
                // Also where nothing else is logged: somebody asked for it.
                crate::remark(format_args!("log level {new}, {old} before"));
            }
            Err(why) => crate::remark(format_args!("the log level stays: {why}")),
        }
    }
}

/// The level that is asked for now.
fn wanted(args: &LogArgs) -> Result<LevelFilter, Error> {
    match &args.log_level_from {
        Some(path) => Ok(read(path)?.unwrap_or(args.log_level)),
        None => Ok(args.log_level),
    }
}

/// The first word of a file, if there is one.
fn read(path: &Path) -> Result<Option<LevelFilter>, Error> {
    let wrong = |why: String| Error::LogLevel { path: path.to_owned(), why };
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    }
    let Some(word) = text.split_whitespace().next() else { return Ok(None) };
    let expected =
        || wrong(format!("`{word}` is no level; expected off, error, warn, info, debug or trace"));
    word.parse().map(Some).map_err(|_| expected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_the_files_first_word_or_the_options() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("level");
        let args = LogArgs { log_level: LevelFilter::INFO, log_level_from: Some(path.clone()) };
        assert_eq!(wanted(&args).unwrap(), LevelFilter::INFO);
        for (text, level) in [
            ("debug\n", LevelFilter::DEBUG),
            ("  off and more", LevelFilter::OFF),
            ("\n", LevelFilter::INFO),
            ("TRACE", LevelFilter::TRACE),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(wanted(&args).unwrap(), level, "{text}");
        }
        std::fs::write(&path, "loud").unwrap();
        let error = wanted(&args).unwrap_err().to_string();
        assert!(error.contains("`loud`") && error.contains("debug"), "{error}");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(wanted(&args).is_err());
        assert!(wanted(&LogArgs { log_level_from: Some(folder.path().into()), ..args }).is_err());
    }
}
