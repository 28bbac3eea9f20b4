//! How to mend something: in words, and where a program can do it, step by step.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

/// An interface as a step names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkName {
    /// Its number, by which it is changed.
    pub index: u32,
    /// Its name, by which people know it.
    pub name: String,
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Something to do, with what is needed to undo it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a configuration file.
    File {
        /// Where, from the root.
        path: String,
        /// What.
        contents: String,
        /// What it holds now; none if it is not there.
        before: Option<String>,
    },
    /// Write a value into a file of sysfs or proc.
    Value {
        /// Where, from the root.
        path: String,
        /// What.
        value: String,
        /// The value that takes it back; none if there is none.
        before: Option<String>,
    },
    /// Set an MTU, in bytes.
    Mtu {
        /// Of which interface.
        link: LinkName,
        /// To what.
        mtu: u32,
        /// What it is now.
        before: u32,
    },
    /// Take an interface from its master.
    Release {
        /// Which interface.
        link: LinkName,
        /// From which master.
        master: LinkName,
    },
    /// Set an interface up or down.
    Up {
        /// Which interface.
        link: LinkName,
        /// Whether up.
        up: bool,
    },
    /// Give an interface another name.
    Rename {
        /// Which interface.
        link: LinkName,
        /// Its name from now on.
        to: String,
    },
    /// Take an address from an interface.
    Address {
        /// From which interface.
        link: LinkName,
        /// The address.
        address: IpAddr,
        /// Length of its network's prefix, in bits.
        prefix: u8,
    },
    /// Load a module of the kernel.
    Module {
        /// Its name.
        name: &'static str,
    },
}

impl Step {
    /// The interface that it changes, if it is one.
    #[must_use]
    pub fn link(&self) -> Option<&LinkName> {
        match self {
            Self::Mtu { link, .. }
            | Self::Release { link, .. }
            | Self::Up { link, .. }
            | Self::Rename { link, .. }
            | Self::Address { link, .. } => Some(link),
            Self::File { .. } | Self::Value { .. } | Self::Module { .. } => None,
        }
    }

    /// The step as somebody has to take it from outside, if the guest is the tree below a directory: the files are there, and those of
    /// the same paths from the root are another machine's.
    #[must_use]
    pub fn below(&self, root: &Path) -> Self {
        let mut step = self.clone();
        if let Self::File { path, .. } | Self::Value { path, .. } = &mut step {
            let below = root.join(path.trim_start_matches('/'));
            *path = below.to_string_lossy().into_owned();
        }
        step
    }

    /// The command that takes it back; none where there is nothing to take back.
    #[must_use]
    pub fn undo(&self) -> Option<String> {
        Some(match self {
            Self::File { path, before: None, .. } => format!("rm {}", quoted(path)),
            Self::File { path, before: Some(before), .. } => write_file(path, before),
            Self::Value { path, before, .. } => write_value(path, before.as_deref()?),
            Self::Mtu { link, before, .. } => format!("ip link set dev {link} mtu {before}"),
            Self::Release { link, master } => format!("ip link set dev {link} master {master}"),
            Self::Up { .. } => return None,
            Self::Rename { link, to } => format!("ip link set dev {to} name {link}"),
            Self::Address { link, address, prefix } => {
                format!("ip address add {address}/{prefix} dev {link}")
            }
            Self::Module { name } => format!("modprobe -r {name}"),
        })
    }
}

/// The command that does it.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, contents, .. } => f.write_str(&write_file(path, contents)),
            Self::Value { path, value, .. } => f.write_str(&write_value(path, value)),
            Self::Mtu { link, mtu, .. } => write!(f, "ip link set dev {link} mtu {mtu}"),
            Self::Release { link, .. } => write!(f, "ip link set dev {link} nomaster"),
            Self::Up { link, up } => {
                write!(f, "ip link set dev {link} {}", if *up { "up" } else { "down" })
            }
            Self::Rename { link, to } => write!(f, "ip link set dev {link} name {to}"),
            Self::Address { link, address, prefix } => {
                write!(f, "ip address del {address}/{prefix} dev {link}")
            }
            Self::Module { name } => write!(f, "modprobe {name}"),
        }
    }
}

/// A here-document: nothing in it is expanded.
fn write_file(path: &str, contents: &str) -> String {
    let end = if contents.ends_with('\n') || contents.is_empty() { "" } else { "\n" };
    format!("cat > {} <<'END'\n{contents}{end}END", quoted(path))
}

fn write_value(path: &str, value: &str) -> String {
    format!("echo {value} > {}", quoted(path))
}

/// A path for a shell, which may lie in a directory of any name.
fn quoted(path: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if path.bytes().all(plain) {
        return path.into();
    }
    format!("'{}'", path.replace('\'', "'\\''")).into()
}

/// How to mend what a finding says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fix {
    /// In words: a command, a patch, or what cannot be mended from inside the guest.
    pub text: String,
    /// What a program can do about it, in order.
    pub steps: Vec<Step>,
    /// Whether the steps may be taken without a person who looks.
    pub safe: bool,
}

impl Fix {
    /// Something for a person to do.
    pub(super) fn advice(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Steps that a program may take by itself.
    pub(super) fn safe(text: impl Into<String>, steps: Vec<Step>) -> Self {
        Self { text: text.into(), safe: !steps.is_empty(), steps }
    }

    /// Steps that cost traffic for a moment, or undo what somebody may have wanted, so that a person has to take them.
    pub(super) fn rough(text: impl Into<String>, steps: Vec<Step>) -> Self {
        Self { text: text.into(), steps, safe: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_in_a_tree_names_the_files_that_are_there() {
        let (path, contents) = ("/etc/a.conf".to_owned(), "x\n".to_owned());
        let file = Step::File { path, contents, before: None };
        for (root, at) in [
            ("/", "/etc/a.conf"),
            ("/srv/image/", "/srv/image/etc/a.conf"),
            ("/srv/it's", "'/srv/it'\\''s/etc/a.conf'"),
            ("/srv/$(reboot)", "'/srv/$(reboot)/etc/a.conf'"),
        ] {
            let step = file.below(Path::new(root));
            assert_eq!(step.to_string(), format!("cat > {at} <<'END'\nx\nEND"));
            assert_eq!(step.undo(), Some(format!("rm {at}")));
        }
        let before = Some("Y".to_owned());
        let value = Step::Value { path: "/sys/mode".into(), value: "N".into(), before };
        let value = value.below(Path::new("/srv/tree"));
        assert_eq!(value.to_string(), "echo N > /srv/tree/sys/mode");
        assert_eq!(value.undo().as_deref(), Some("echo Y > /srv/tree/sys/mode"));
    }
}
