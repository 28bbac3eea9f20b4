//! Names of interfaces, checked before the kernel sees them.

use std::fmt;
use std::str::FromStr;

/// Bytes in the kernel's field for a name, the final zero included (`IFNAMSIZ`).
pub(super) const NAME_FIELD: usize = 16;

/// The longest name in bytes.
pub const NAME_MAX: usize = NAME_FIELD - 1;

/// A name that an interface can have: 1 to 15 bytes, no whitespace, none of `/`, `:` and `%`, neither `.` nor `..`.
///
/// `%` is legal in the kernel's eyes but makes it a pattern (`tap%d` becomes `tap0`); who gives a name here means
/// that name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TapName(Box<str>);

/// Why a text is not the name of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TapNameError {
    /// Nothing was given.
    #[error("an interface name has 1 to 15 bytes, this one is empty; give a name such as tap0")]
    Empty,
    /// Longer than the kernel's field.
    #[error("an interface name has at most 15 bytes, `{name}` has {len}; give a shorter one")]
    TooLong {
        /// What was given.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character that the kernel refuses or would interpret.
    #[error(
        "an interface name has no whitespace, control character, `/`, `:` or `%`, but `{name}` has {character:?}; leave it out"
    )]
    Character {
        /// What was given.
        name: String,
        /// The first character at fault.
        character: char,
    },
    /// `.` or `..`, which are directories in sysfs.
    #[error("an interface cannot be called `{name}`; give a name such as tap0")]
    Reserved {
        /// What was given.
        name: String,
    },
}

impl TapName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as the kernel wants it: padded with zeros.
    pub(super) fn field(&self) -> [u8; NAME_FIELD] {
        let mut field = [0; NAME_FIELD];
        for (to, from) in field.iter_mut().zip(self.0.bytes().take(NAME_MAX)) {
            *to = from;
        }
        field
    }
}

impl FromStr for TapName {
    type Err = TapNameError;

    fn from_str(name: &str) -> Result<Self, TapNameError> {
        let owned = || name.to_owned();
        if name.is_empty() {
            return Err(TapNameError::Empty);
        }
        if name.len() > NAME_MAX {
            return Err(TapNameError::TooLong { name: owned(), len: name.len() });
        }
        let illegal =
            |c: &char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
        if let Some(character) = name.chars().find(illegal) {
            return Err(TapNameError::Character { name: owned(), character });
        }
        if name == "." || name == ".." {
            return Err(TapNameError::Reserved { name: owned() });
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_name_is_taken_as_it_is() {
        for name in ["t", "tap0", "netvsc-peer.100", "fifteen-bytes-x"] {
            assert_eq!(name.parse::<TapName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_name_fills_the_kernels_field_with_zeros_behind() {
        let field = "tap0".parse::<TapName>().unwrap().field();
        assert_eq!(&field, b"tap0\0\0\0\0\0\0\0\0\0\0\0\0");
        let longest = "fifteen-bytes-x".parse::<TapName>().unwrap().field();
        assert_eq!(longest[NAME_MAX], 0);
    }

    #[test]
    fn length_is_counted_in_bytes_and_told() {
        let error = "sixteen-bytes-xx".parse::<TapName>().unwrap_err();
        assert!(matches!(error, TapNameError::TooLong { len: 16, .. }));
        assert!(error.to_string().contains("at most 15 bytes"));
        assert!("ääääääää".parse::<TapName>().is_err(), "eight letters, sixteen bytes");
    }

    #[test]
    fn nothing_is_not_a_name() {
        assert_eq!("".parse::<TapName>(), Err(TapNameError::Empty));
    }

    #[test]
    fn characters_that_mean_something_else_are_refused() {
        for (name, character) in [
            ("a b", ' '),
            ("a\tb", '\t'),
            ("a/b", '/'),
            ("eth0:1", ':'),
            ("tap%d", '%'),
            ("a\0b", '\0'),
        ] {
            let error = name.parse::<TapName>().unwrap_err();
            assert!(
                matches!(&error, TapNameError::Character { character: c, .. } if *c == character),
                "{name:?}: {error}"
            );
        }
    }

    #[test]
    fn directories_are_not_names() {
        for name in [".", ".."] {
            assert!(matches!(name.parse::<TapName>(), Err(TapNameError::Reserved { .. })));
        }
        assert!("...".parse::<TapName>().is_ok());
    }
}
