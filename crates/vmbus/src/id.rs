//! The numbers by which guest and host name things, each a type of its own.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id! {
    /// A channel's number on one connection, the "relid" of the control messages: 1..=2047.
    ///
    /// Chosen by the host, reused after `RELID_RELEASED`; never an identity over time.
    ChannelId(u32), "{}"
}

id! {
    /// A guest-physical-address descriptor list: memory of the guest that the host may use. Non-zero, chosen by
    /// the guest.
    GpadlId(u32), "{:#x}"
}

id! {
    /// Where a posted message or a signal goes (`HvPostMessage`, `HvSignalEvent`). Opaque to a guest.
    ConnectionId(u32), "{:#x}"
}

id! {
    /// Number of one 4,096-byte page of guest physical memory, whatever the guest's own page size.
    Pfn(u64), "{:#x}"
}

id! {
    /// The number by which the host says that a synthetic NIC and a virtual function belong together.
    ///
    /// Neither unique in a system nor stable over time; 0 is an ordinary value.
    Serial(u32), "{}"
}

/// Defines an open enumeration: a newtype over a wire integer with named constants.
///
/// A peer may send any number, so a Rust `enum` would be the wrong type; this one prints its name where it has
/// one and its number where not.
#[macro_export]
macro_rules! open_enum {
    (
        $(#[$doc:meta])*
        $vis:vis struct $name:ident($inner:ty) {
            $($(#[$vdoc:meta])* $variant:ident = $value:expr,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name(pub $inner);

        impl $name {
            $($(#[$vdoc])* pub const $variant: Self = Self($value);)*

            /// The name of this value in the protocol, if it has one.
            #[must_use]
            pub fn name(self) -> ::core::option::Option<&'static str> {
                match self {
                    $(Self::$variant => Some(stringify!($variant)),)*
                    _ => None,
                }
            }
        }

        impl ::core::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => ::core::write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }

        impl ::core::fmt::Display for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Debug::fmt(self, f)
            }
        }
    };
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    open_enum! {
        /// A test's enumeration.
        pub struct Colour(u16) {
            /// The first.
            RED = 1,
        }
    }

    #[test]
    fn open_enum_prints_name_or_number() {
        assert_eq!(format!("{:?} {:?}", Colour::RED, Colour(0x20)), "RED Colour(0x20)");
    }

    #[test]
    fn ids_print_as_people_write_them() {
        assert_eq!(format!("{} {:?}", Serial(7), GpadlId(0xe1e10)), "7 GpadlId(0xe1e10)");
    }
}
