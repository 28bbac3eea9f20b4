//! All devices on VMBus, as text that programs which know the classic script can read, and as JSON.

use std::fmt::Write;

use clap::ValueEnum;
use netvsc_linux::inventory::{Snapshot, VmbusDevice};
use serde::Serialize;
use vmbus::Guid;

use super::document::SCHEMA_VERSION;
use super::table::{Style, table};

/// Classes of offers, by their GUIDs, with the names under which people know them.
const CLASSES: [(u128, &str); 19] = [
    (0x0e0b6031_5213_4934_818b_38d90ced39db, "[Operating system shutdown]"),
    (0x9527e630_d0ae_497b_adce_e80ab0175caf, "[Time Synchronization]"),
    (0x57164f39_9115_4e78_ab55_382f3bd5422d, "[Heartbeat]"),
    (0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6, "[Data Exchange]"),
    (0x35fa2e29_ea23_4236_96ae_3a6ebacba440, "[Backup (volume checkpoint)]"),
    (0x34d14be3_dee4_41c8_9ae7_6b174977c192, "[Guest services]"),
    (0x525074dc_8985_46e2_8057_a307dc18a502, "[Dynamic Memory]"),
    (0xcfa8b69e_5b4a_4cc0_b98b_8ba1a1f3f95a, "Synthetic mouse"),
    (0xf912ad6d_2b17_48ea_bd65_f927a61c7684, "Synthetic keyboard"),
    (0xda0a7802_e377_4aac_8e77_0558eb1073f8, "Synthetic framebuffer adapter"),
    (0xf8615163_df3e_46c5_913f_f2d2f965ed0e, "Synthetic network adapter"),
    (0x32412632_86cb_44a2_9b5c_50d1417354f5, "Synthetic IDE Controller"),
    (0xba6163d9_04a1_4d29_b605_72e2ffb1dc7f, "Synthetic SCSI Controller"),
    (0x2f9bcc4a_0069_4af3_b76b_6fd0be528cda, "Synthetic fiber channel adapter"),
    (0x8c2eaf3d_32a7_4b09_ab99_bd1f1c86b501, "Synthetic RDMA adapter"),
    (0x44c4f61d_4444_4400_9d52_802e27ede19f, "PCI Express pass-through"),
    (0x276aacf4_ac15_426c_98dd_7521ad3f01fe, "[Reserved system device]"),
    (0xf8e65716_3cb3_4a06_9a60_1889c5cccab5, "[Reserved system device]"),
    (0x3375baf4_9e15_4b30_b765_67acb10d607b, "[Reserved system device]"),
];

/// The devices as JSON.
#[derive(Debug, Serialize)]
pub struct Devices {
    schema_version: u32,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
struct Device {
    id: Option<u32>,
    guid: String,
    class: Option<String>,
    class_name: &'static str,
    driver: Option<String>,
    state: Option<u32>,
    numa_node: Option<u32>,
    channels: Vec<Channel>,
    path: String,
}

#[derive(Debug, Serialize)]
struct Channel {
    rel_id: u32,
    target_cpu: u32,
}

fn class_name(class: Option<Guid>) -> &'static str {
    let known = class
        .and_then(|class| CLASSES.iter().find(|(number, _)| Guid::from_u128(*number) == class));
    known.map_or("Unknown", |(_, name)| name)
}

/// By the number of the primary channel; devices without one last.
fn sorted(snapshot: &Snapshot) -> Vec<&VmbusDevice> {
    let mut devices: Vec<_> = snapshot.devices.iter().collect();
    devices.sort_by_key(|device| (device.id.unwrap_or(u32::MAX), device.guid));
    devices
}

fn channels(device: &VmbusDevice) -> Vec<(u32, u32)> {
    let mut channels = device.mapping.clone();
    channels.sort_unstable();
    channels
}

impl Devices {
    /// Those of a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let devices = sorted(snapshot).into_iter().map(|device| Device {
            id: device.id,
            guid: device.guid.to_string(),
            class: device.class.map(|class| class.to_string()),
            class_name: class_name(device.class),
            driver: device.driver.clone(),
            state: device.state,
            numa_node: device.numa_node,
            channels: channels(device)
                .into_iter()
                .map(|(rel_id, target_cpu)| Channel { rel_id, target_cpu })
                .collect(),
            path: device.path.clone(),
        });
        Self { schema_version: SCHEMA_VERSION, devices: devices.collect() }
    }
}

/// The text; `verbose` 0, 1 or 2.
#[must_use]
pub fn text(snapshot: &Snapshot, verbose: u8) -> String {
    let mut text = String::new();
    for device in sorted(snapshot) {
        let id = device.id.map_or_else(|| "?".to_owned(), |id| id.to_string());
        let name = class_name(device.class);
        if verbose == 0 {
            _ = writeln!(text, "VMBUS ID {id:>2}: {name}");
            continue;
        }
        let class = device.class.map(|class| format!("{{{class}}}")).unwrap_or_default();
        _ = writeln!(text, "VMBUS ID {id:>2}: Class_ID = {class} - {name}");
        if verbose > 1 {
            _ = writeln!(text, "\tDevice_ID = {{{}}}", device.guid);
            _ = writeln!(text, "\tSysfs path: {}", device.path);
        }
        for (channel, cpu) in channels(device) {
            _ = writeln!(text, "\tRel_ID={channel}, target_cpu={cpu}");
        }
        text.push('\n');
    }
    text
}

/// A column of a table of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceColumn {
    /// Number of the primary channel
    Id,
    /// GUID of the device
    Guid,
    /// GUID of its class
    Class,
    /// What its class is called
    Name,
    /// Driver that has it
    Driver,
    /// State of its channel, a number of the kernel
    State,
    /// NUMA node
    Node,
    /// Channels, the primary first
    Channels,
    /// Processors of the channels, in the same order
    Cpus,
    /// Directory in sysfs
    Path,
}

/// The columns of one line that says what a device is.
pub const BRIEF: [DeviceColumn; 3] = [DeviceColumn::Guid, DeviceColumn::Driver, DeviceColumn::Name];

impl DeviceColumn {
    fn header(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_uppercase())
    }

    /// What it shows of a device; `-` for what is not known.
    fn of(self, device: &VmbusDevice) -> String {
        fn known(value: Option<impl ToString>) -> String {
            value.map_or_else(|| "-".to_owned(), |value| value.to_string())
        }
        let each = |pick: fn((u32, u32)) -> u32| {
            let all: Vec<_> = channels(device).into_iter().map(|c| pick(c).to_string()).collect();
            known((!all.is_empty()).then(|| all.join(",")))
        };
        match self {
            Self::Id => known(device.id),
            Self::Guid => device.guid.to_string(),
            Self::Class => known(device.class),
            Self::Name => class_name(device.class).to_owned(),
            Self::Driver => known(device.driver.as_deref()),
            Self::State => known(device.state),
            Self::Node => known(device.numa_node),
            Self::Channels => each(|(rel_id, _)| rel_id),
            Self::Cpus => each(|(_, cpu)| cpu),
            Self::Path => device.path.clone(),
        }
    }
}

/// A table of the devices, with or without header.
#[must_use]
pub fn listing(
    snapshot: &Snapshot,
    columns: &[DeviceColumn],
    header: bool,
    style: Style,
) -> String {
    let row = |device| columns.iter().map(|column| column.of(device)).collect();
    let rows: Vec<Vec<String>> = sorted(snapshot).into_iter().map(row).collect();
    let headers: Vec<_> = columns.iter().map(|column| column.header()).collect();
    table(if header { &headers } else { &[] }, &rows, style)
}
