//! Carries out what a check proposes, one step at a time, on the running system or in a tree below a directory.
//!
//! In a tree only files can be written; it has no kernel that could be asked to change a link. Nothing is ever written
//! outside the root.

use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use crate::check::Step;
use crate::inventory::RootError;
use crate::inventory::tree::Tree;
use crate::netlink::{Address, Connection, NetlinkError};

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// A file cannot be written.
    #[error("cannot write `{path}`: {source}")]
    Write {
        /// Which.
        path: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// A tree has no kernel.
    #[error("this is no running system; expected one, to change {what}")]
    NotRunning {
        /// What was to be changed.
        what: String,
    },
    /// The module was not loaded.
    #[error("modprobe {name} failed: {why}")]
    Module {
        /// Which.
        name: &'static str,
        /// What it said.
        why: String,
    },
}

/// Who carries out steps.
#[derive(Debug)]
pub struct Mender {
    tree: Tree,
    live: bool,
    kernel: Option<Connection>,
}

impl Mender {
    /// For the running system (`None`), or for a tree below a directory.
    ///
    /// # Errors
    /// [`RootError`] if the directory cannot be used at all.
    pub fn open(root: Option<&Path>) -> Result<Self, RootError> {
        Ok(Self { tree: Tree::open(root)?, live: root.is_none(), kernel: None })
    }

    /// Takes one step.
    ///
    /// # Errors
    /// [`MendError`], and then nothing of this step was done.
    pub fn take(&mut self, step: &Step) -> Result<(), MendError> {
        match step {
            Step::File { path, contents, .. } => {
                let done = self.tree.replace(path.trim_start_matches('/'), contents.as_bytes());
                done.map_err(|error| written(path, error))
            }
            Step::Value { path, value, .. } => {
                let text = format!("{value}\n");
                let done = self.tree.put(path.trim_start_matches('/'), text.as_bytes());
                done.map_err(|error| written(path, error))
            }
            Step::Module { name } => self.module(name),
            step => self.link(step),
        }
    }

    fn link(&mut self, step: &Step) -> Result<(), MendError> {
        let what = step.link().map(ToString::to_string).unwrap_or_default();
        if !self.live {
            return Err(MendError::NotRunning { what });
        }
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            none => none.insert(Connection::open()?),
        };
        match step {
            Step::Mtu { link, mtu, .. } => kernel.set_mtu(link.index, *mtu)?,
            Step::Release { link, .. } => kernel.set_master(link.index, 0)?,
            Step::Up { link, up } => kernel.set_up(link.index, *up)?,
            Step::Rename { link, to } => kernel.rename(link.index, to)?,
            Step::Address { link, address, prefix } => {
                let (address, prefix) = (*address, *prefix);
                let gone = Address { index: link.index, address, prefix, link_local: false };
                kernel.remove_address(&gone)?;
            }
            Step::File { .. } | Step::Value { .. } | Step::Module { .. } => {}
        }
        Ok(())
    }

    fn module(&self, name: &'static str) -> Result<(), MendError> {
        if !self.live {
            return Err(MendError::NotRunning { what: format!("the module {name}") });
        }
        let failed = |why: String| MendError::Module { name, why };
        let output = Command::new("modprobe").arg("--").arg(name).output();
        let output = output.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn written(path: &str, error: Errno) -> MendError {
    MendError::Write { path: path.to_owned(), source: error.into() }
}
