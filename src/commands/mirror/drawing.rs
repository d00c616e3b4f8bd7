//! A picture of a disk as lines of text. Pure: what the terminal is like comes as an argument.

use std::fmt::Write as _;

use mirror::picture::{CellState, Picture};

use crate::size;

/// What the lines are for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Canvas {
    /// Columns.
    pub(super) width: usize,
    /// Whether other characters than those of ASCII are shown.
    pub(super) unicode: bool,
    /// Whether escape codes for colours are obeyed.
    pub(super) color: bool,
}

/// How a state is drawn, and what it is called.
struct Brush {
    state: CellState,
    unicode: char,
    ascii: char,
    /// Of the escape code that begins its colour.
    color: &'static str,
    name: &'static str,
}

const BRUSHES: [Brush; 7] = [
    brush(CellState::Unallocated, ('·', '.'), "2", "not allocated"),
    brush(CellState::Unknown, ('?', '?'), "2", "not looked at yet"),
    brush(CellState::Copied, ('█', '#'), "32", "copied"),
    brush(CellState::ToCopy, ('░', '-'), "34", "to be copied"),
    brush(CellState::Dirty, ('▒', 'd'), "33", "dirty"),
    brush(CellState::Hot, ('▓', 'H'), "31", "hot"),
    brush(CellState::Sending, ('►', '>'), "36", "on its way"),
];

const fn brush(
    state: CellState,
    (unicode, ascii): (char, char),
    color: &'static str,
    name: &'static str,
) -> Brush {
    Brush {
        state,
        unicode,
        ascii,
        color,
        name,
    }
}

impl Canvas {
    /// The picture, its scale and its legend.
    pub(super) fn draw(self, picture: &Picture) -> String {
        let mut text = String::new();
        let mut column = 0;
        for run in &picture.runs {
            let mut left = run.cells as usize;
            while left > 0 {
                let here = left.min(self.width.max(1) - column);
                text += &self.cells(run.state, here);
                left -= here;
                column += here;
                if column >= self.width.max(1) {
                    text.push('\n');
                    column = 0;
                }
            }
        }
        if column > 0 {
            text.push('\n');
        }
        let (disk, cell) = (size::show(picture.size), size::show(picture.cell_bytes));
        let _ = writeln!(text, "{disk} in {} cells of {cell}", picture.cells);
        text + &self.legend(picture)
    }

    fn cells(self, state: CellState, count: usize) -> String {
        let brush = BRUSHES.iter().find(|brush| brush.state == state);
        let Some(brush) = brush else {
            return " ".repeat(count);
        };
        let one = if self.unicode {
            brush.unicode
        } else {
            brush.ascii
        };
        let cells: String = std::iter::repeat_n(one, count).collect();
        if self.color {
            format!("\x1b[{}m{cells}\x1b[0m", brush.color)
        } else {
            cells
        }
    }

    /// What the cells mean, and how many there are of each, in lines that fit.
    fn legend(self, picture: &Picture) -> String {
        let (mut text, mut column) = (String::new(), 0);
        for brush in &BRUSHES {
            let count = picture.counts.get(&brush.state).copied().unwrap_or(0);
            let said = format!(" {} {count}", brush.name);
            let long = said.chars().count() + 1;
            if column > 0 && column + 2 + long > self.width {
                text.push('\n');
                column = 0;
            } else if column > 0 {
                text += "  ";
                column += 2;
            }
            text += &self.cells(brush.state, 1);
            text += &said;
            column += long;
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use mirror::picture::Run;

    fn picture(cells: &[u8]) -> Picture {
        let mut picture = Picture {
            size: 1 << 40,
            cells: cells.len() as u32,
            cell_bytes: 1 << 30,
            ..Picture::default()
        };
        for cell in cells {
            let state = BRUSHES[*cell as usize % BRUSHES.len()].state;
            *picture.counts.entry(state).or_default() += 1;
            picture.runs.push(Run { state, cells: 1 });
        }
        picture
    }

    proptest! {
        #[test]
        fn every_cell_is_drawn_once_in_its_place_and_no_line_is_too_long(
            cells in prop::collection::vec(any::<u8>(), 1..500),
            width in 20_usize..200,
        ) {
            let plain = Canvas { width, unicode: false, color: false };
            let text = plain.draw(&picture(&cells));
            prop_assert!(text.is_ascii() && !text.contains('\x1b'));
            let drawn: String = text.lines().take(cells.len().div_ceil(width)).collect();
            let wanted: String = cells.iter().map(|cell| BRUSHES[*cell as usize % 7].ascii).collect();
            prop_assert_eq!(drawn, wanted);
            let long = text.lines().take(cells.len().div_ceil(width)).all(|line| line.len() <= width);
            prop_assert!(long);
            for brush in &BRUSHES {
                prop_assert!(text.contains(brush.name));
            }
            // Colours change nothing else.
            let colored = Canvas { color: true, ..plain }.draw(&picture(&cells));
            let mut bare = colored.replace("\x1b[0m", "");
            for brush in &BRUSHES {
                bare = bare.replace(&format!("\x1b[{}m", brush.color), "");
            }
            prop_assert_eq!(bare, text);
        }
    }
}
