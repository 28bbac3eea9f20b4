//! `netvsc sim merge`: results of several runs as those of one.

use std::process::ExitCode;

use super::args::MergeArgs;
use super::line;
use super::outcome::TotalsLine;
use super::results::{Results, ResultsError};
use crate::error::Error;
use crate::report::json;

/// A file for results, made before there are any.
#[derive(Debug)]
pub(super) struct OutFile {
    path: std::path::PathBuf,
    file: std::fs::File,
}

impl OutFile {
    /// Makes the file; one that is there is replaced.
    pub(super) fn create(path: &std::path::Path) -> Result<Self, ResultsError> {
        let path = path.to_owned();
        match std::fs::File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(ResultsError::Write { path, source }),
        }
    }

    /// Writes the results.
    pub(super) fn write(mut self, results: &Results) -> Result<(), Error> {
        let text = json(results)? + "\n";
        let written = std::io::Write::write_all(&mut self.file, text.as_bytes());
        Ok(written.map_err(|source| ResultsError::Write { path: self.path, source })?)
    }
}

/// Carries out `netvsc sim merge`.
///
/// # Errors
/// If the files do not fit together, a seed failed, or the output could not be written.
pub(super) fn run(args: &MergeArgs) -> Result<ExitCode, Error> {
    let read = |path: &std::path::PathBuf| Ok((path.clone(), Results::read(path)?));
    let files = args.files.iter().map(read).collect::<Result<Vec<_>, ResultsError>>()?;
    let results = Results::merged(files)?;
    if let Some(path) = &args.out {
        OutFile::create(path)?.write(&results)?;
    }
    if args.json {
        line(&json(&results)?)?;
    } else {
        for one in &results.profiles {
            line(&TotalsLine::new(one).text())?;
            for failed in &one.failed {
                line(&format!("seed {} FAILED: {}", failed.seed, failed.failure))?;
                line(&format!("  again: {}", failed.replay))?;
            }
            for range in &one.missing {
                line(&format!("missing: seeds {range} of the profile {}", one.profile.word()))?;
            }
        }
    }
    let count =
        |of: fn(&super::results::ProfileResults) -> u64| results.profiles.iter().map(of).sum();
    let (seeds, failed): (u64, u64) =
        (count(|one| one.seeds), count(|one| one.failed.len() as u64));
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        _ => Err(Error::Run(format!("{failed} of {seeds} seeds failed"))),
    }
}
