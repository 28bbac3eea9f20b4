//! Tables and colours.

use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Table, presets};

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

/// Text without what a terminal would obey: names and files are somebody else's.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
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

/// Least width of the last column of a table for which the others are not taken apart.
const LAST: usize = 24;

/// A table without lines, its columns as wide as they need to be. On a terminal that is too narrow the last column is wrapped, and where
/// that does not help either every row becomes a block of its own, with a line for each column.
#[must_use]
pub fn table(headers: &[String], rows: &[Vec<String>], style: Style) -> String {
    let Some(room) = style.width.map(usize::from) else { return lined_up(headers, rows, style) };
    let wide = |cell: &String| cell.chars().count();
    let columns = rows.iter().map(Vec::len).chain([headers.len()]).max().unwrap_or(0);
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).chain(headers.get(at));
        cells.map(wide).max().unwrap_or(0)
    };
    let first: usize = (0..columns.saturating_sub(1)).map(|at| width(at) + GAP).sum();
    if first + width(columns.saturating_sub(1)).min(LAST) <= room || headers.is_empty() {
        return lined_up(headers, rows, style);
    }
    let block = |row: &Vec<String>| {
        let lines = headers.iter().zip(row).map(|(name, cell)| vec![name.clone(), cell.clone()]);
        lined_up(&[], &lines.collect::<Vec<_>>(), style)
    };
    rows.iter().map(block).collect::<Vec<_>>().join("\n")
}

/// Between two columns.
const GAP: usize = 2;

fn lined_up(headers: &[String], rows: &[Vec<String>], style: Style) -> String {
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
        let header = |word: &String| Cell::new(plain(word)).add_attribute(Attribute::Bold);
        table.set_header(headers.iter().map(header));
    }
    for row in rows {
        table.add_row(row.iter().map(|word| match color(word) {
            Some(color) => Cell::new(word).fg(color),
            None => Cell::new(plain(word)),
        }));
    }
    let last = table.column_count().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at == last { 0 } else { GAP as u16 }));
        if at < last {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
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
    fn a_narrow_terminal_wraps_the_last_column_and_leaves_words_whole() {
        let headers = ["CHECK", "FINDS"].map(str::to_owned);
        let row =
            vec!["own.netns".to_owned(), "a VF and its NIC are in different places".to_owned()];
        let text = table(&headers, &[row], Style { color: false, width: Some(40) });
        let expected =
            "CHECK      FINDS\nown.netns  a VF and its NIC are in\n           different places\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn one_that_is_too_narrow_for_that_gets_a_block_for_each_row_and_loses_nothing() {
        let (headers, rows) = two();
        let text = table(&headers, &rows, Style { color: false, width: Some(20) });
        let expected = "NIC    eth0\nSTATE  accelerated\n\nNIC    a-longer-name\nSTATE  -\n";
        assert_eq!(text, expected);
        // Not even a block fits: what is too long is taken apart.
        let text = table(&headers, &rows, Style { color: false, width: Some(14) });
        assert!(text.lines().all(|line| line.chars().count() <= 14), "{text}");
        let letters: String = text.chars().filter(|c| c.is_alphabetic()).collect();
        assert_eq!(letters, "NICethSTATEacceleratedNICalongernameSTATE");
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
