//! The columns of `netvsc list`.

use std::str::FromStr;

use netvsc_linux::inventory::Source;

use super::document::{Nic, Port};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Interface of the NIC, or its GUID while it has none.
    Nic,
    /// Interface of the VF.
    Vf,
    /// Permanent MAC, or the current one where that is not known.
    Mac,
    /// Serial that the host associated; with ~ before it, taken over from the VF's slot.
    Serial,
    /// Address of the function.
    Pci,
    /// Driver of the function.
    Driver,
    /// Path that the host last confirmed.
    Path,
    /// State.
    State,
    /// Why the pair is one.
    Reason,
    /// GUID of the NIC.
    Guid,
    /// Number of the NIC's interface.
    Index,
    /// Name of the slot.
    Slot,
    /// Port of the function.
    Port,
    /// MTU of the NIC.
    Mtu,
    /// Channels of the NIC.
    Channels,
    /// What stands in the way.
    Obstacle,
}

/// Every column and its name.
pub const COLUMNS: [(Column, &str); 16] = [
    (Column::Nic, "nic"),
    (Column::Vf, "vf"),
    (Column::Mac, "mac"),
    (Column::Serial, "serial"),
    (Column::Pci, "pci"),
    (Column::Driver, "driver"),
    (Column::Path, "path"),
    (Column::State, "state"),
    (Column::Reason, "reason"),
    (Column::Guid, "guid"),
    (Column::Index, "index"),
    (Column::Slot, "slot"),
    (Column::Port, "port"),
    (Column::Mtu, "mtu"),
    (Column::Channels, "channels"),
    (Column::Obstacle, "obstacle"),
];

/// How many of them, from the first, are shown unless others are asked for.
const USUAL: usize = 9;

/// What -o asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnChoice(pub Vec<Column>);

impl Default for ColumnChoice {
    fn default() -> Self {
        Self(COLUMNS.iter().take(USUAL).map(|(column, _)| *column).collect())
    }
}

impl FromStr for ColumnChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut columns, text) = match text.strip_prefix('+') {
            Some(rest) => (Self::default().0, rest),
            None => (Vec::new(), text),
        };
        for word in text.split(',') {
            let known = COLUMNS.iter().find(|(_, name)| name.eq_ignore_ascii_case(word));
            let (column, _) = known.ok_or_else(|| {
                let names: Vec<_> = COLUMNS.iter().map(|(_, name)| *name).collect();
                format!("there is no column `{word}`; there are {}", names.join(", "))
            })?;
            columns.push(*column);
        }
        Ok(Self(columns))
    }
}

impl Column {
    /// Its header.
    #[must_use]
    pub fn header(self) -> String {
        let name = COLUMNS.iter().find(|(column, _)| *column == self).map_or("", |(_, name)| name);
        name.to_uppercase()
    }

    /// What it shows of a NIC.
    #[must_use]
    pub fn of_nic(self, nic: &Nic) -> String {
        let vf = nic.vf.as_ref();
        match self {
            Self::Nic => {
                let of_run = nic.run.as_ref().map(|run| &run.ifname);
                nic.ifname.as_ref().or(of_run).unwrap_or(&nic.guid).clone()
            }
            Self::Mac => some(nic.perm_mac.as_ref().or(nic.mac.as_ref())),
            Self::Serial => match nic.association.serial {
                Some(serial) if nic.association.source == Some(Source::InferredLink.word()) => {
                    format!("~{serial}")
                }
                serial => some(serial),
            },
            Self::Path => some(nic.path),
            Self::State => nic.state.to_owned(),
            Self::Reason => some(nic.reason),
            Self::Guid => nic.guid.clone(),
            Self::Index => some(nic.ifindex),
            Self::Mtu => some(nic.mtu),
            Self::Channels => some(nic.channel_count),
            Self::Obstacle => some(nic.obstacle.as_ref()),
            Self::Vf if vf.is_none() => some(nic.run.as_ref().and_then(|run| run.vf.as_ref())),
            Self::Vf | Self::Pci | Self::Driver | Self::Slot | Self::Port => {
                vf.map_or_else(|| "-".to_owned(), |vf| self.of_vf(vf))
            }
        }
    }

    /// What it shows of a port without NIC.
    #[must_use]
    pub fn of_port(self, port: &Port) -> String {
        match self {
            Self::State => port.state.unwrap_or("-").to_owned(),
            Self::Mac => some(port.perm_mac.as_ref().or(port.mac.as_ref())),
            Self::Serial => some(port.slot.serial),
            Self::Index => some(port.ifindex),
            Self::Mtu => some(port.mtu),
            _ => self.of_vf(port),
        }
    }

    fn of_vf(self, port: &Port) -> String {
        match self {
            Self::Vf => port.ifname.clone(),
            Self::Pci => port.pci.clone(),
            Self::Driver => some(port.driver.as_ref()),
            Self::Slot => some(port.slot.name.as_ref()),
            Self::Port => port.port.to_string(),
            _ => "-".to_owned(),
        }
    }
}

/// A value, or `-`.
fn some(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_chosen_or_added() {
        let chosen: ColumnChoice = "guid,NIC".parse().unwrap();
        assert_eq!(chosen.0, [Column::Guid, Column::Nic]);
        let added: ColumnChoice = "+mtu".parse().unwrap();
        assert_eq!((added.0.len(), added.0[USUAL]), (USUAL + 1, Column::Mtu));
    }

    #[test]
    fn a_column_that_is_not_there_lists_those_that_are() {
        let error = "nic,colour".parse::<ColumnChoice>().unwrap_err();
        assert!(error.contains("`colour`") && error.contains("obstacle"), "{error}");
        assert!("".parse::<ColumnChoice>().is_err());
    }
}
