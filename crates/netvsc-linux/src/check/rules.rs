//! Rules of udev, as far as they say which interfaces managers leave alone.

/// One part of a rule: key, operator, value.
type Part<'a> = (&'a str, &'a str, &'a str);

/// A rule: the parts of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    /// The number of its line, from 1.
    pub(super) line: usize,
    parts: Vec<Part<'a>>,
}

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
    /// What it compares.
    pub(super) fn matches(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.parts.iter().filter(|part| part.1 == "==").map(|part| (part.0, part.2))
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
        self.has(|key, _| matches!(key, "ATTR{flags}" | "ENV{NETVSC_ROLE}" | "ATTRS{flags}"))
    }

    /// What is obsolete about it, in a guest whose VFs have these drivers.
    pub(super) fn obsolete(&self, drivers: &[&str]) -> Option<Obsolete> {
        if !self.marks() {
            return None;
        }
        if self.has(|key, value| key == "ACTION" && value == "add") {
            return Some(Obsolete::AddOnly);
        }
        let bus = |key: &str, value: &str| key == "DRIVERS" && value == "hv_pci";
        if self.has(bus) && !self.decides() {
            return Some(Obsolete::BusAlone);
        }
        let mut lists = self.matches().filter(|(key, value)| {
            matches!(*key, "ENV{ID_NET_DRIVER}" | "DRIVERS" | "ATTRS{driver}") && *value != "hv_pci"
        });
        lists.find_map(|(_, list)| {
            let listed =
                |driver: &str| list.split('|').any(|known| super::config::fits(known, driver));
            let missing = drivers.iter().find(|driver| !listed(driver))?;
            Some(Obsolete::DriverMissing((*missing).to_owned()))
        })
    }

    /// By what it finds VFs, to compare it with another rule.
    pub(super) fn conditions(&self) -> Vec<(&'a str, &'a str)> {
        let mut conditions: Vec<_> =
            self.matches().filter(|(key, _)| *key != "SUBSYSTEM").collect();
        conditions.sort_unstable();
        conditions
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
        let rule = open.get_or_insert(Rule { line: number + 1, parts: Vec::new() });
        rule.parts.extend(parts(code));
        if !goes_on {
            rules.extend(open.take().filter(|rule| !rule.parts.is_empty()));
        }
    }
    rules.extend(open.filter(|rule| !rule.parts.is_empty()));
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

    fn obsolete(conditions: &str, drivers: &[&str]) -> Option<Obsolete> {
        let text = format!("SUBSYSTEM==\"net\", {conditions}, {MARK}");
        let rules = rules(&text);
        assert_eq!(rules.len(), 1);
        rules[0].obsolete(drivers)
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
        assert!(rules("ACTION==\"add\", NAME=\"x\"")[0].obsolete(&vfs).is_none());
    }
}
