//! Rules of udev, as far as they say which interfaces managers leave alone.

use std::collections::BTreeMap;

use super::config::fits;
use super::guest::net_driver;
use crate::relation::VfPort;

/// One part of a rule: key, operator, value.
type Part<'a> = (&'a str, &'a str, &'a str);

/// A rule: the parts of one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    /// The number of its line, from 1.
    pub(super) line: usize,
    parts: Vec<Part<'a>>,
    /// What holds wherever the rule is reached: the opposite of each condition that jumps over it.
    guards: Vec<Part<'a>>,
    /// Several conditions that jump over the rule together.
    jumps: Vec<Vec<Part<'a>>>,
}

/// How many jumps over one rule are looked at. Files of people have a few.
const JUMPS: usize = 16;

/// The events at which a rule may run.
const EVENTS: [&str; 3] = ["add", "change", "move"];

/// Drivers of VFs, by either name, and of the bus that all of them come over. A list that names one of them is meant for VFs.
const VF_DRIVERS: [&str; 9] =
    ["hv_pci", "mlx5_core", "mlx4_core", "mlx4_en", "mana", "ixgbevf", "iavf", "i40evf", "bnxt_en"];

/// Whether a key asks for the driver of an interface or of what it sits on.
fn asks_for_driver(key: &str) -> bool {
    matches!(key, "ENV{ID_NET_DRIVER}" | "DRIVERS" | "ATTRS{driver}")
}

/// Whether one of the patterns between `|` fits.
fn any_fits(list: &str, value: &str) -> bool {
    list.split('|').any(|pattern| fits(pattern, value))
}

/// What rules can ask of a VF.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen<'g> {
    name: &'g str,
    mac: Option<String>,
    kind: Option<String>,
    /// The driver of its function.
    driver: Option<&'g str>,
    /// What udev calls its driver.
    net_driver: Option<&'g str>,
    udev: Option<&'g BTreeMap<String, String>>,
}

impl<'g> Seen<'g> {
    pub(super) fn of(port: &VfPort<'g>) -> Self {
        let (link, function) = (port.link, port.function);
        Self {
            name: &link.name,
            mac: link.mac.map(|mac| mac.to_string()),
            kind: link.kind.map(|kind| kind.to_string()),
            driver: function.driver.as_deref(),
            net_driver: net_driver(link, Some(function)),
            udev: link.udev.as_ref(),
        }
    }

    /// The values that a key may have at an event; empty if they are not known.
    fn values(&self, key: &str, event: &'g str) -> Vec<&str> {
        let known = |value: Option<&'g str>| value.into_iter().collect();
        match key {
            "ACTION" => vec![event],
            "SUBSYSTEM" => vec!["net"],
            "SUBSYSTEMS" => vec!["net", "pci", "vmbus"],
            "KERNEL" | "ENV{INTERFACE}" => vec![self.name],
            // An interface has no driver of its own, and one on a PCI function is of no particular type.
            "DRIVER" | "ENV{DEVTYPE}" => vec![""],
            "ENV{ID_NET_DRIVER}" => known(self.net_driver),
            "DRIVERS" | "ATTRS{driver}" => {
                self.driver.map_or_else(Vec::new, |driver| vec![driver, "hv_pci"])
            }
            "ATTR{address}" | "ATTRS{address}" => self.mac.as_deref().into_iter().collect(),
            "ATTR{type}" => self.kind.as_deref().into_iter().collect(),
            // What rules themselves decide may come out otherwise at the next event.
            key if MARKS.contains(&key) || key == ROLE => Vec::new(),
            key => {
                let name = key.strip_prefix("ENV{").and_then(|key| key.strip_suffix('}'));
                let value = name.and_then(|name| self.udev?.get(name));
                value.map(String::as_str).into_iter().collect()
            }
        }
    }

    /// Whether a condition holds; none if that is not known. Of several values, such as the drivers on the way up, one that fits
    /// is enough.
    fn holds(&self, (key, operator, value): &Part<'_>, event: &'g str) -> Option<bool> {
        let values = self.values(key, event);
        let found = values.iter().any(|seen| any_fits(value, seen));
        match (*operator, values.is_empty()) {
            ("==", false) => Some(found),
            ("!=", false) => Some(!found),
            _ => None,
        }
    }

    /// The driver that a list of drivers of VFs lacks.
    fn lacks(&self, (key, operator, list): &Part<'_>) -> Option<&'g str> {
        let driver = match *key {
            "ENV{ID_NET_DRIVER}" => self.net_driver?,
            key if asks_for_driver(key) && !any_fits(list, "hv_pci") => self.driver?,
            _ => return None,
        };
        let for_vfs = VF_DRIVERS.iter().any(|known| any_fits(list, known));
        (*operator == "==" && for_vfs && !any_fits(list, driver)).then_some(driver)
    }
}

/// The property that our own helper gives to interfaces.
const ROLE: &str = "ENV{NETVSC_ROLE}";

/// What the managers look at.
const MARKS: [&str; 3] =
    ["ENV{AZURE_UNMANAGED_SRIOV}", "ENV{ID_NET_MANAGED_BY}", "ENV{NM_UNMANAGED}"];

/// What is wrong with how a rule finds VFs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obsolete {
    /// It runs at `add` only, and properties do not survive from event to event.
    AddOnly,
    /// It takes everything that came over a virtual bus, also what has no NIC.
    BusAlone,
    /// It has a list of drivers, and this one is not in it.
    DriverMissing(String),
}

impl Obsolete {
    pub(super) fn text(&self) -> String {
        match self {
            Self::AddOnly => {
                "it runs at `add` only; a VF that is changed or moved loses its properties".into()
            }
            Self::BusAlone => {
                "it takes every interface of hv_pci, also one that has no synthetic NIC and must be managed".into()
            }
            Self::DriverMissing(driver) => {
                format!("its list of drivers lacks {driver}, which a VF of this guest has")
            }
        }
    }
}

impl<'a> Rule<'a> {
    /// The parts that have to hold: its own, and what holds where it is reached.
    fn needs(&self) -> impl Iterator<Item = &Part<'a>> + '_ {
        self.guards.iter().chain(&self.parts).filter(|part| compares(part))
    }

    /// What has to be equal.
    pub(super) fn matches(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.needs().filter(|part| part.1 == "==").map(|part| (part.0, part.2))
    }

    /// Whether it may hold for a VF at an event. A list of drivers of VFs that lacks this one is meant for VFs all the same.
    fn may_hold(&self, vf: &Seen<'_>, event: &str) -> bool {
        let may =
            |part: &Part<'_>| vf.lacks(part).is_some() || vf.holds(part, event) != Some(false);
        let jumps =
            |all: &Vec<Part<'_>>| all.iter().all(|part| vf.holds(part, event) == Some(true));
        self.needs().all(may) && !self.jumps.iter().any(jumps)
    }

    /// Whether it is about a VF at all.
    pub(super) fn may_mean(&self, vf: &Seen<'_>) -> bool {
        EVENTS.iter().any(|event| self.may_hold(vf, event))
    }

    /// The value that it assigns.
    pub(super) fn assigned(&self, key: &str) -> Option<&'a str> {
        let assigns = |operator: &str| matches!(operator, "=" | ":=" | "+=");
        self.parts.iter().find(|part| part.0 == key && assigns(part.1)).map(|part| part.2)
    }

    /// Whether it tells managers to leave an interface alone.
    pub(super) fn marks(&self) -> bool {
        MARKS.iter().any(|mark| self.assigned(mark).is_some_and(|value| value != "0"))
    }

    fn has(&self, fits: impl Fn(&str, &str) -> bool) -> bool {
        self.matches().any(|(key, value)| fits(key, value))
    }

    /// Whether it asks for the flag of a slave, or for what our own helper found.
    fn decides(&self) -> bool {
        self.has(|key, _| key == ROLE || matches!(key, "ATTR{flags}" | "ATTRS{flags}"))
    }

    /// Whether it marks a VF at an event, as far as that is known.
    fn takes(&self, vf: &Seen<'_>, event: &str) -> bool {
        let holds = |part: &Part<'_>| vf.holds(part, event) != Some(false);
        self.marks() && self.may_hold(vf, event) && self.needs().all(holds)
    }

    /// What is obsolete about it, in a guest with these VFs. What it leaves out may be what another rule of its file is for: one for
    /// every driver, or for every event.
    pub(super) fn obsolete(&self, vfs: &[Seen<'_>], file: &[&Rule<'_>]) -> Option<Obsolete> {
        if !self.marks() {
            return None;
        }
        let left = |vf: &&Seen<'_>| !file.iter().any(|rule| rule.takes(vf, "change"));
        let mut left_out = vfs.iter().filter(left);
        if left_out.clone().any(|vf| self.may_hold(vf, "add") && !self.may_hold(vf, "change")) {
            return Some(Obsolete::AddOnly);
        }
        let bus = |key: &str, value: &str| key == "DRIVERS" && any_fits(value, "hv_pci");
        if self.has(bus) && !self.decides() {
            return Some(Obsolete::BusAlone);
        }
        let lacking = left_out.find_map(|vf| self.needs().find_map(|part| vf.lacks(part)));
        lacking.map(|driver| Obsolete::DriverMissing(driver.to_owned()))
    }

    /// By what it finds VFs, to compare it with another rule.
    pub(super) fn conditions(&self) -> Vec<(&'a str, &'a str)> {
        let mut conditions: Vec<_> =
            self.matches().filter(|(key, _)| *key != "SUBSYSTEM").collect();
        conditions.sort_unstable();
        conditions
    }
}

/// Whether a part of a rule is a condition.
fn compares(part: &Part<'_>) -> bool {
    matches!(part.1, "==" | "!=")
}

/// Conditions of a rule that jumps; what it has to find out by a program is one too, whatever its operator.
fn conditions_of<'a>(rule: &Rule<'a>) -> Vec<Part<'a>> {
    let asks = |key: &str| ["IMPORT", "PROGRAM", "TEST"].iter().any(|word| key.starts_with(word));
    rule.parts.iter().filter(|part| compares(part) || asks(part.0)).copied().collect()
}

/// Tells the rules that give marks or names what jumps over them. A jump leads forward, and one without its label nowhere.
fn guard(rules: &mut [Rule<'_>]) {
    let mut labels: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, rule) in rules.iter().enumerate() {
        if let Some(label) = rule.assigned("LABEL") {
            labels.entry(label).or_default().push(at);
        }
    }
    let mut open: Vec<(usize, Vec<Part<'_>>)> = Vec::new();
    for (at, rule) in rules.iter_mut().enumerate() {
        open.retain(|(end, _)| *end > at);
        if rule.marks() || rule.assigned("NAME").is_some() {
            for (_, conditions) in &open {
                match conditions.as_slice() {
                    [(key, "==", value)] => rule.guards.push((*key, "!=", *value)),
                    [(key, "!=", value)] => rule.guards.push((*key, "==", *value)),
                    several => rule.jumps.push(several.to_vec()),
                }
            }
        }
        let places = rule.assigned("GOTO").and_then(|label| labels.get(label));
        let end =
            places.and_then(|at_all| at_all.get(at_all.partition_point(|place| *place <= at)));
        if let Some(end) = end.filter(|_| open.len() < JUMPS) {
            open.push((*end, conditions_of(rule)));
        }
    }
}

/// The rules of a file. A line that ends with `\` goes on in the next one.
pub(super) fn rules(text: &str) -> Vec<Rule<'_>> {
    let mut rules = Vec::new();
    let mut open: Option<Rule<'_>> = None;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.starts_with('#') {
            continue;
        }
        let (code, goes_on) = match trimmed.strip_suffix('\\') {
            Some(code) => (code, true),
            None => (trimmed, false),
        };
        let rule = open.get_or_insert(Rule { line: number + 1, ..Rule::default() });
        rule.parts.extend(parts(code));
        if !goes_on {
            rules.extend(open.take().filter(|rule| !rule.parts.is_empty()));
        }
    }
    rules.extend(open.filter(|rule| !rule.parts.is_empty()));
    guard(&mut rules);
    rules
}

/// `KEY=="value", KEY="value"`: values stand in quotes and may hold commas.
fn parts(code: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find('"') {
        let head = rest[..start].trim_start_matches([',', ' ', '\t']);
        let Some(length) = rest[start + 1..].find('"') else { break };
        let value = &rest[start + 1..start + 1 + length];
        let key_end = head.find(['=', '!', '+', '-', ':']).unwrap_or(head.len());
        parts.push((head[..key_end].trim(), head[key_end..].trim(), value));
        rest = &rest[start + length + 2..];
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "ENV{NM_UNMANAGED}=\"1\"";

    /// VFs with these drivers, as rules see them.
    fn seen<'g>(drivers: &[&'g str]) -> Vec<Seen<'g>> {
        let vf = |driver: &&'g str| Seen {
            name: "enP1s1",
            mac: Some("7c:1e:52:25:55:d2".into()),
            driver: Some(driver),
            net_driver: Some(driver),
            ..Seen::default()
        };
        drivers.iter().map(vf).collect()
    }

    fn obsolete(conditions: &str, drivers: &[&str]) -> Option<Obsolete> {
        let text = format!("SUBSYSTEM==\"net\", {conditions}, {MARK}");
        let rules = rules(&text);
        assert_eq!(rules.len(), 1);
        rules[0].obsolete(&seen(drivers), &[&rules[0]])
    }

    /// The only rule of a file that marks.
    fn marking(text: &str) -> Rule<'_> {
        rules(text).into_iter().find(Rule::marks).expect("a rule that marks")
    }

    fn means(text: &str) -> bool {
        marking(&text.replace("MARK", MARK)).may_mean(&seen(&["mlx5_core"])[0])
    }

    #[test]
    fn parts_are_taken_apart() {
        let all = rules("# no\nA==\"x, y\", \\\n  B{c}!=\"\", C=\"1\"\n\nLABEL=\"end\"");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].parts, [("A", "==", "x, y"), ("B{c}", "!=", ""), ("C", "=", "1")]);
        assert_eq!((all[0].line, all[1].assigned("LABEL")), (2, Some("end")));
    }

    #[test]
    fn what_is_obsolete_is_told_from_what_is_not() {
        let vfs = ["mlx5_core", "mana"];
        assert_eq!(obsolete("ACTION==\"add\", DRIVERS==\"hv_pci\"", &vfs), Some(Obsolete::AddOnly));
        assert_eq!(obsolete("DRIVERS==\"hv_pci\"", &vfs), Some(Obsolete::BusAlone));
        let flagged = "DRIVERS==\"hv_pci\", ATTR{flags}==\"0x?[89ABCDEF]??\"";
        assert_eq!(obsolete(flagged, &vfs), None);
        let list = "ENV{ID_NET_DRIVER}==\"mlx4_en|mlx5_core\"";
        assert_eq!(obsolete(list, &vfs), Some(Obsolete::DriverMissing("mana".into())));
        assert_eq!(obsolete(list, &["mlx5_core"]), None);
        assert_eq!(obsolete("ACTION==\"add|change|move\", ATTR{flags}==\"x\"", &vfs), None);
        assert!(rules("ACTION==\"add\", NAME=\"x\"")[0].obsolete(&seen(&vfs), &[]).is_none());
    }

    #[test]
    fn what_a_rule_leaves_out_another_of_its_file_may_take() {
        let judged = |lines: &[&str], drivers: &[&str]| {
            let text: Vec<_> = lines.iter().map(|line| format!("{line}, {MARK}")).collect();
            let text = text.join("\n");
            let rules = rules(&text);
            let file: Vec<_> = rules.iter().collect();
            rules.iter().find_map(|rule| rule.obsolete(&seen(drivers), &file))
        };
        let by_driver = ["ENV{ID_NET_DRIVER}==\"mana\"", "ENV{ID_NET_DRIVER}==\"mlx5_core\""];
        assert_eq!(judged(&by_driver, &["mlx5_core", "mana"]), None);
        let lacks = Some(Obsolete::DriverMissing("iavf".into()));
        assert_eq!(judged(&by_driver, &["mlx5_core", "iavf"]), lacks);
        let by_event = ["ACTION==\"add\"", "ACTION==\"change|move\""];
        assert_eq!(judged(&by_event, &["mana"]), None);
        assert_eq!(judged(&by_event[..1], &["mana"]), Some(Obsolete::AddOnly));
        // For another VF, that is of no use.
        let other = ["ACTION==\"add\"", "ENV{ID_NET_DRIVER}==\"mana\", ACTION==\"change\""];
        assert_eq!(judged(&other, &["mana", "mlx5_core"]), Some(Obsolete::AddOnly));
    }

    #[test]
    fn a_rule_is_about_vfs_if_one_could_fit_it() {
        for other in [
            "ENV{INTERFACE}==\"vboxnet[0-9]*\", MARK",
            "KERNEL==\"virbr*|vnet*\", MARK",
            "ATTR{address}==\"00:50:56:*\", MARK",
            "ENV{DEVTYPE}==\"gadget\", MARK",
            "ENV{ID_NET_DRIVER}==\"veth\", ENV{INTERFACE}!=\"eth[0-9]*\", MARK",
            "SUBSYSTEM!=\"net\", MARK",
            "ACTION==\"remove\", MARK",
            "SUBSYSTEMS==\"usb\", MARK",
            "ENV{INTERFACE}!=\"enP*\", MARK",
        ] {
            assert!(!means(other), "{other}");
        }
        for vfs in [
            "ENV{INTERFACE}==\"eth*|enP*\", MARK",
            "ENV{ID_NET_DRIVER}!=\"hv_netvsc\", MARK",
            "ATTR{address}==\"7c:1e:52:*\", ENV{DEVTYPE}!=\"?*\", MARK",
            "DRIVERS==\"hv_pci\", ENV{NOBODY_KNOWS}==\"1\", MARK",
            // Meant for VFs, whichever drivers they have.
            "ENV{ID_NET_DRIVER}==\"mlx4_en|mana\", MARK",
        ] {
            assert!(means(vfs), "{vfs}");
        }
    }

    #[test]
    fn what_jumps_over_a_rule_is_a_condition_of_it() {
        let file = |guard: &str| {
            format!("{guard}, GOTO=\"end\"\nDRIVERS==\"hv_pci\", {MARK}\nLABEL=\"end\"")
        };
        let vfs = seen(&["mlx5_core"]);
        let flagged = file("ATTR{flags}!=\"0x?[89ABCDEF]??\"");
        assert_eq!(marking(&flagged).obsolete(&vfs, &[]), None);
        let add = file("ACTION!=\"add\"");
        assert_eq!(marking(&add).obsolete(&vfs, &[]), Some(Obsolete::AddOnly));
        let several = file("SUBSYSTEM==\"net\", ACTION!=\"add\"");
        assert_eq!(marking(&several).obsolete(&vfs, &[]), Some(Obsolete::AddOnly));
        let list = file("ENV{ID_NET_DRIVER}!=\"mana\"").replace("hv_pci", "?*");
        assert_eq!(marking(&list).obsolete(&seen(&["mana"]), &[]), Some(Obsolete::BusAlone));
        for over in
            ["SUBSYSTEM==\"net\"", "ENV{INTERFACE}==\"enP*\"", "ENV{ID_NET_DRIVER}!=\"veth\""]
        {
            assert!(!means(&file(over).replace(MARK, "MARK")), "{over}");
        }
        // Whether a program succeeds is not known, and a jump to a label that is not there is none.
        for unknown in ["PROGRAM=\"/bin/x\"", "TEST==\"/run/x\"", "IMPORT{program}=\"/bin/x\""] {
            assert!(means(&file(unknown).replace(MARK, "MARK")), "{unknown}");
        }
        assert!(means("SUBSYSTEM==\"net\", GOTO=\"nowhere\"\nMARK"));
        assert!(means("LABEL=\"back\"\nMARK\nSUBSYSTEM==\"net\", GOTO=\"back\""));
    }
}
