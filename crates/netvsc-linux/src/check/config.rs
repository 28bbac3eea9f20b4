//! Small readers of configuration: sections with keys, and patterns of names.

/// Keys with their values, and the section that each is in, of a file such as systemd and NetworkManager have.
pub(super) fn ini(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut section = "";
    text.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
            return None;
        }
        if line.starts_with(['#', ';']) {
            return None;
        }
        let (key, value) = line.split_once('=')?;
        Some((section, key.trim(), unquoted(value.trim())))
    })
}

/// A value without the quotes around it.
pub(super) fn unquoted(value: &str) -> &str {
    let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    quoted('"').or_else(|| quoted('\'')).unwrap_or(value)
}

/// Whether a name fits a pattern of the shell: `*`, `?`, `[a-z]`, `[!a-z]`.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on if the last star has to take one character more.
    let mut retry = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            retry = Some((p + 1, n + 1));
            p += 1;
            continue;
        }
        match pattern.get(p..).and_then(|rest| one(rest, name[n])) {
            Some(taken) => (p, n) = (p + taken, n + 1),
            None => match retry {
                Some((after, next)) => {
                    (p, n) = (after, next);
                    retry = Some((after, next + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether a word passes a list of patterns as systemd reads them: none after a `!` may fit, and one of the others has to, if
/// there are others. What has no such word passes a list of exceptions only.
pub(super) fn passes(patterns: &[String], word: Option<&str>) -> bool {
    let mut wanted = false;
    let mut found = false;
    for pattern in patterns {
        let excepted = pattern.strip_prefix('!');
        let fits = word.is_some_and(|word| fits(excepted.unwrap_or(pattern), word));
        match excepted {
            Some(_) if fits => return false,
            Some(_) => {}
            None => (wanted, found) = (true, found || fits),
        }
    }
    found || !wanted
}

/// How much of a pattern one character takes; none if it does not fit.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '[' => {
            let end = pattern.iter().skip(2).position(|c| *c == ']')? + 2;
            let inside = &pattern[1..end];
            let (negated, set) = match inside {
                ['!' | '^', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut at = 0;
            let mut found = false;
            while at < set.len() {
                if set.len() > at + 2 && set[at + 1] == '-' {
                    found |= (set[at]..=set[at + 2]).contains(&c);
                    at += 3;
                } else {
                    found |= set[at] == c;
                    at += 1;
                }
            }
            (found != negated).then_some(end + 1)
        }
        other => (other == c).then_some(1),
    }
}

/// Whether a name is one that systemd gives to a function on a virtual bus: `enP30832s1`, `enP37498p0s2np0`.
pub(super) fn is_vf_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("enP") else { return false };
    let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    after.len() < rest.len()
        && after.starts_with(['s', 'p'])
        && after.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_the_shell() {
        for (pattern, name) in [
            ("enP*", "enP1s1"),
            ("*", ""),
            ("e*0", "eth0"),
            ("eth?", "eth7"),
            ("eth[0-3]", "eth2"),
            ("eth[!0-3]", "eth4"),
            ("[em]n*s*", "enP1s1"),
            ("*s*s", "asbss"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("enP*", "eth0"), ("eth?", "eth10"), ("eth[0-3]", "eth4"), ("", "a"), ("eth[", "eth0")]
        {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_after_an_exclamation_mark_are_exceptions() {
        let passes = |patterns: &str, word| {
            let patterns: Vec<_> = patterns.split_whitespace().map(str::to_owned).collect();
            passes(&patterns, word)
        };
        assert!(passes("eth* en*", Some("enP1s1")) && passes("!lo !veth*", Some("enP1s1")));
        assert!(passes("e* !eth0", Some("eth1")) && passes("", Some("eth0")));
        assert!(passes("!*", None) && !passes("!*", Some("bridge")) && !passes("vlan", None));
        assert!(!passes("e* !eth0", Some("eth0")) && !passes("!lo", Some("lo")));
    }

    #[test]
    fn sections_keys_and_comments_are_told_apart() {
        let text = "a=1\n# b=2\n[Match]\nName = \"eth0\"\n; c=3\n[Link]\nUnmanaged=yes\nnothing";
        let all: Vec<_> = ini(text).collect();
        assert_eq!(all, [("", "a", "1"), ("Match", "Name", "eth0"), ("Link", "Unmanaged", "yes")]);
    }

    #[test]
    fn names_of_vfs_are_known() {
        assert!(is_vf_name("enP30832s1") && is_vf_name("enP37498p0s2np0"));
        for other in ["eth0", "enp0s3", "enP", "enPs1", "enP1", "enP1s1.7"] {
            assert!(!is_vf_name(other), "{other}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_makes_it_fail(pattern in "[a-c*?\\[\\]!-]{0,20}", name in "[a-c]{0,40}") {
            let _ = fits(&pattern, &name);
        }
    }
}
