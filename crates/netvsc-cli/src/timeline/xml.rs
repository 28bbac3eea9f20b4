//! Text that may stand in XML.

use std::fmt;

/// A text as content or attribute of an XML element: markup is escaped, what XML forbids becomes U+FFFD.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\n' | '\t' => f.write_char(letter)?,
                '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                _ if letter.is_control() => f.write_char('\u{fffd}')?,
                _ => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped_and_what_xml_forbids_replaced() {
        let hostile = "<a b=\"c\">&]]>\0\u{1b}\u{ffff}é\n";
        let text = format!("<t a=\"{}\">{}</t>", Text(hostile), Text(hostile));
        let tree = roxmltree::Document::parse(&text).expect("well-formed");
        let seen = tree.root_element().text().expect("a text");
        assert_eq!(seen, "<a b=\"c\">&]]>\u{fffd}\u{fffd}\u{fffd}é\n");
    }
}
