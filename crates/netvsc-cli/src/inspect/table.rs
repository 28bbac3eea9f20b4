//! Tables and colours.

use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};

use super::args::ColorChoice;

/// How the output looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether with colours.
    pub color: bool,
    /// How wide; none where nothing is to be wrapped.
    pub width: Option<u16>,
}

impl Style {
    /// Plain text of any width, as for a file.
    pub const PLAIN: Self = Self { color: false, width: None };

    /// The style that fits standard output.
    #[must_use]
    pub fn choose(choice: ColorChoice) -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = std::io::stdout().is_terminal();
        let forced =
            set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE") != Some("0".into());
        let color = Self::colored(choice, set("NO_COLOR"), forced, terminal);
        let size = terminal.then(|| rustix::termios::tcgetwinsize(std::io::stdout()).ok());
        // A terminal that does not know how wide it is says 0.
        let width = size.flatten().map(|size| size.ws_col).filter(|width| *width > 0);
        Self { color, width }
    }

    const fn colored(choice: ColorChoice, refused: bool, forced: bool, terminal: bool) -> bool {
        match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => !refused && (forced || terminal),
        }
    }
}

/// The colour of a state's or a severity's word. The word is always there as well.
fn color(word: &str) -> Option<Color> {
    match word {
        "accelerated" | "ok" => Some(Color::Green),
        "waiting" | "pending" | "paired" | "unknown" | "warn" => Some(Color::Yellow),
        "conflict" | "critical" => Some(Color::Red),
        _ => None,
    }
}

/// A word in its colour, if there are colours.
#[must_use]
pub fn paint(word: &str, style: Style) -> String {
    let code = match color(word).filter(|_| style.color) {
        Some(Color::Green) => 32,
        Some(Color::Yellow) => 33,
        Some(Color::Red) => 31,
        _ => return word.to_owned(),
    };
    format!("\u{1b}[{code}m{word}\u{1b}[0m")
}

/// A table without lines, its columns as wide as they need to be, or wrapped to fit the terminal.
#[must_use]
pub fn table(headers: &[String], rows: &[Vec<String>], style: Style) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if style.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_content_arrangement(match style.width {
        Some(_) => ContentArrangement::Dynamic,
        None => ContentArrangement::Disabled,
    });
    if let Some(width) = style.width {
        table.set_width(width);
    }
    if !headers.is_empty() {
        table.set_header(headers.iter().map(|word| Cell::new(word).add_attribute(Attribute::Bold)));
    }
    for row in rows {
        table.add_row(row.iter().map(|word| match color(word) {
            Some(color) => Cell::new(word).fg(color),
            None => Cell::new(word),
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Vec<String>, Vec<Vec<String>>) {
        let row = |words: [&str; 2]| words.map(str::to_owned).to_vec();
        (row(["NIC", "STATE"]), vec![row(["eth0", "accelerated"]), row(["a-longer-name", "-"])])
    }

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let (headers, rows) = two();
        let text = table(&headers, &rows, Style::PLAIN);
        assert_eq!(text, "NIC            STATE\neth0           accelerated\na-longer-name  -\n");
    }

    #[test]
    fn a_state_has_its_word_and_a_colour_beside() {
        let (headers, rows) = two();
        let text = table(&headers, &rows, Style { color: true, width: None });
        assert!(text.contains("accelerated") && text.contains("\u{1b}["), "{text:?}");
    }

    #[test]
    fn a_narrow_terminal_wraps_and_loses_nothing() {
        let (headers, rows) = two();
        let text = table(&headers, &rows, Style { color: false, width: Some(18) });
        assert!(text.lines().all(|line| line.chars().count() <= 18), "{text}");
        let letters: String = text.chars().filter(|c| c.is_alphabetic()).collect();
        assert_eq!(letters.len(), "NICSTATEethacceleratedalongername".len());
    }

    #[test]
    fn colour_is_the_users_choice_then_the_environments_then_the_terminals() {
        let auto = ColorChoice::Auto;
        for (choice, refused, forced, terminal, expected) in [
            (ColorChoice::Always, true, false, false, true),
            (ColorChoice::Never, false, true, true, false),
            (auto, true, true, true, false),
            (auto, false, true, false, true),
            (auto, false, false, true, true),
            (auto, false, false, false, false),
        ] {
            assert_eq!(Style::colored(choice, refused, forced, terminal), expected);
        }
    }
}
