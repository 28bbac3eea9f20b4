//! The session in which an operator works: what he would cut himself off from.

use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;

/// How many processes above this one are asked.
const ANCESTORS: usize = 32;
/// How much of a process's environment is read, in bytes.
const ENVIRONMENT: u64 = 256 << 10;
/// The variable in which sshd says who talks with whom.
const VARIABLE: &str = "SSH_CONNECTION=";

/// The addresses of the other end and of this end of the session that this runs in. `sudo` takes the variable away, so
/// that the processes above this one are asked as well.
#[must_use]
pub fn session() -> Option<(IpAddr, IpAddr)> {
    let mut process = "self".to_owned();
    for _ in 0..ANCESTORS {
        let mut environment = Vec::new();
        if let Ok(file) = File::open(format!("/proc/{process}/environ"))
            && file.take(ENVIRONMENT).read_to_end(&mut environment).is_ok()
            && let Some(ends) = in_environment(&environment)
        {
            return Some(ends);
        }
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        process = parent.trim().to_owned();
    }
    None
}

fn in_environment(bytes: &[u8]) -> Option<(IpAddr, IpAddr)> {
    bytes
        .split(|byte| *byte == 0)
        .find_map(|variable| addresses(std::str::from_utf8(variable).ok()?.strip_prefix(VARIABLE)?))
}

/// Reads `192.0.2.7 50022 10.0.0.4 22`.
fn addresses(connection: &str) -> Option<(IpAddr, IpAddr)> {
    let mut words = connection.split_whitespace();
    let address = |word: &str| {
        // A link-local address carries the name of its interface; a socket for both families says so of IPv4.
        let address: IpAddr = word.split('%').next()?.parse().ok()?;
        Some(address.to_canonical())
    };
    let theirs = address(words.next()?)?;
    Some((theirs, address(words.nth(1)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_a_session_are_read() {
        let of = |text: &str| addresses(text).map(|(a, b)| (a.to_string(), b.to_string()));
        let ends = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(of("192.0.2.7 50022 10.0.0.4 22"), ends("192.0.2.7", "10.0.0.4"));
        assert_eq!(of("fe80::1%eth0 50022 fe80::2%eth0 22"), ends("fe80::1", "fe80::2"));
        assert_eq!(of("::ffff:192.0.2.1 9 ::ffff:192.0.2.2 22"), ends("192.0.2.1", "192.0.2.2"));
        for bad in ["", "x 1 y 2", "192.0.2.7 1"] {
            assert_eq!(addresses(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_variable_is_found_among_others_that_may_be_anything() {
        let environment = b"HOME=/\0SSH_CONNECTION=192.0.2.1 9 192.0.2.2 22\0\xff";
        assert!(in_environment(environment).is_some());
        assert_eq!(in_environment(b"XSSH_CONNECTION=192.0.2.1 9 192.0.2.2 22"), None);
        assert_eq!(in_environment(b""), None);
    }
}
