//! Which NICs are driven, and what has to be written for that.

use std::path::Path;

use netvsc_linux::check::Guest;
use netvsc_linux::inventory::{Depth, take};
use netvsc_linux::relation::{NicView, Relations};
use netvsc_linux::uio::{Binding, Journal, Record, UIO_DRIVER};
use vmbus::Guid;

use super::args::UioArgs;
use crate::bind::{JOURNAL, expect_driver, find_nic, spare};
use crate::error::Error;
use crate::session::session;

/// A NIC that is to be driven.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) guid: Guid,
    /// The kernel, or nobody, has it now.
    pub(super) to_bind: bool,
}

/// The NICs that the options mean, each once; and for a dry run, why the real one would be refused.
pub(super) fn choose(args: &UioArgs) -> Result<(Vec<Chosen>, Vec<Error>), Error> {
    let snapshot = take(args.sysfs_root.as_deref(), Depth::Checks)?;
    let relations = Relations::of(&snapshot);
    if relations.nics.is_empty() {
        return Err(Error::NoNic { vmbus: snapshot.hyperv });
    }
    let mut guest = Guest::new(&snapshot, &relations);
    guest.session = snapshot.live.then(session).flatten();
    let nics: Vec<&NicView<'_>> = if args.nic.is_empty() {
        relations.nics.iter().filter(|nic| is_ours(nic)).collect()
    } else {
        let root = args.sysfs_root.as_deref().unwrap_or(Path::new("/"));
        let named = args.nic.iter().map(|name| find_nic(&relations, name, root));
        named.collect::<Result<_, _>>()?
    };
    if nics.is_empty() {
        let names: Vec<_> = relations.nics.iter().map(NicView::name).collect();
        return Err(Error::ChooseNic { found: names.join(", ") });
    }
    let mut chosen: Vec<Chosen> = Vec::new();
    let mut refused = Vec::new();
    for nic in nics {
        if chosen.iter().any(|other| other.guid == nic.device.guid) {
            continue;
        }
        let to_bind = !is_ours(nic);
        if to_bind && !args.force {
            match spare(nic, &guest) {
                Err(error) if args.dry_run => refused.push(error),
                spared => spared?,
            }
        }
        chosen.push(Chosen { guid: nic.device.guid, to_bind });
    }
    if args.dry_run && chosen.iter().any(|nic| nic.to_bind) {
        refused.extend(expect_driver(args.sysfs_root.as_deref().unwrap_or(Path::new("/"))).err());
    }
    Ok((chosen, refused))
}

/// Whether user space has it already.
fn is_ours(nic: &NicView<'_>) -> bool {
    nic.device.driver.as_deref() == Some(UIO_DRIVER)
}

/// Takes a NIC from its driver. One that user space has already goes back at the end only if a run that was killed had taken it.
pub(super) fn bind(chosen: &Chosen, root: &Path) -> Result<Binding, Error> {
    let journal = Journal::new(root.join(JOURNAL));
    Ok(if chosen.to_bind {
        Binding::to(root, &chosen.guid.to_string(), UIO_DRIVER, journal)?
    } else {
        Binding::adopt(root, chosen.guid, journal)?
    })
}

/// What a run would write, at its beginning and at its end.
pub(super) fn writes(chosen: &[Chosen], root: &Path) -> Result<String, Error> {
    let (mut before, mut after) = (String::new(), String::new());
    let mut left = Vec::new();
    if chosen.iter().any(|nic| !nic.to_bind) {
        match Journal::new(root.join(JOURNAL)).records() {
            Ok(records) => left = records,
            Err(error) => {
                after.push_str(&format!("# what else goes back cannot be read: {error}\n"));
            }
        }
    }
    for nic in chosen {
        let record = Record::of(root, &nic.guid.to_string())?;
        if !nic.to_bind {
            before.push_str(&format!("# {} is user space's already\n", nic.guid));
            // What a run that was killed had taken goes back, as `Binding::adopt` has it.
            let left = left.iter().find(|record| record.device == nic.guid && !record.kept);
            for change in left.into_iter().flat_map(|record| record.changes_back(root)) {
                after.push_str(&format!("{change}\n"));
            }
            continue;
        }
        for change in record.changes_to(root, UIO_DRIVER) {
            before.push_str(&format!("{change}\n"));
        }
        for change in record.changes_back_later(root) {
            after.push_str(&format!("{change}\n"));
        }
    }
    if !after.is_empty() {
        before.push_str("# and at the end:\n");
    }
    Ok(before + &after)
}
