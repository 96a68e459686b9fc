//! Tables: aligned columns, with colour on a terminal and plain otherwise.

use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, presets};

use crate::exit::one_line;

/// What a table is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    /// With colour.
    pub(crate) colour: bool,
    /// The columns of the terminal; none: as wide as it gets.
    pub(crate) width: Option<u16>,
}

impl Style {
    /// No terminal.
    pub(crate) const PLAIN: Self = Self {
        colour: false,
        width: None,
    };

    /// What standard output is.
    pub(crate) fn of_stdout() -> Self {
        if !std::io::stdout().is_terminal() {
            return Self::PLAIN;
        }
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            colour,
            width: Some(crate::terminal::size().columns),
        }
    }
}

/// How a cell's content is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As any other.
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warning,
    /// Wrong.
    Bad,
}

/// A table to be.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    /// A table with these column heads.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// One more row.
    pub(crate) fn row(&mut self, cells: Vec<(String, Tone)>) {
        self.rows.push(cells);
    }

    /// The table as text, each line ended.
    pub(crate) fn render(&self, style: Style) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        // The terminal's own properties were looked at above, and tests have none.
        if style.colour {
            table.force_no_tty().enforce_styling();
        } else {
            table.force_no_tty();
        }
        match style.width {
            Some(width) => {
                table
                    .set_content_arrangement(ContentArrangement::Dynamic)
                    .set_width(width);
            }
            None => {
                table.set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        let bold = |head: &&str| {
            let cell = Cell::new(head);
            if style.colour {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        };
        table.set_header(self.heads.iter().map(bold));
        for row in &self.rows {
            table.add_row(row.iter().map(|(text, tone)| paint(text, *tone, style)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
            .lines()
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }
}

fn paint(text: &str, tone: Tone, style: Style) -> Cell {
    let cell = Cell::new(one_line(text));
    match tone {
        _ if !style.colour => cell,
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Warning => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piped_table_is_aligned_and_has_no_colour() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec![
            ("web".into(), Tone::Plain),
            ("failed".into(), Tone::Bad),
        ]);
        table.row(vec![
            ("a-longer-name".into(), Tone::Plain),
            ("running\u{7}".into(), Tone::Good),
        ]);
        assert_eq!(
            table.render(Style::PLAIN),
            "NAME           STATE\nweb            failed\na-longer-name  running\\u{7}\n"
        );
        let coloured = table.render(Style {
            colour: true,
            width: Some(80),
        });
        assert!(coloured.contains("\u{1b}["), "{coloured:?}");
    }

    #[test]
    fn an_empty_table_is_its_heads() {
        assert_eq!(
            Table::new(&["NAME", "ID"]).render(Style::PLAIN),
            "NAME  ID\n"
        );
    }
}
