// SPDX-License-Identifier: Apache-2.0
//! Aligned columns as kubectl prints them: upper-case headings, three spaces between, no borders, so that a table
//! can be read by people and cut with awk.

/// Space between two columns.
const GAP: &str = "   ";

/// What stands in a cell that has no value, so that every row has as many words as columns.
const EMPTY: &str = "-";

/// A table under construction.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Table { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Adds a row; an empty cell shows as `-`.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.rows[0].len(), "a row has as many cells as the table has headings");
        self.rows.push(cells.map(|cell| if cell.is_empty() { EMPTY.to_owned() } else { cell }).to_vec());
    }

    /// The table as lines, or `nothing` with a newline where there are no rows.
    pub(crate) fn render(&self, nothing: &str) -> String {
        if self.rows.len() == 1 {
            return format!("{nothing}\n");
        }
        let columns = self.rows[0].len();
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            format!("{}\n", cells.join(GAP).trim_end())
        };
        self.rows.iter().map(line).collect()
    }
}

/// Several values in one cell.
pub(crate) fn list<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_carry_no_trailing_space() {
        let mut table = Table::new(["NAME", "UNDERLAY", "BLOCKS"]);
        table.row(["n1".into(), "10.0.0.1".into(), "10.244.0.0/26,10.244.0.64/26".into()]);
        table.row(["a-long-name".into(), "10.0.0.200".into(), String::new()]);
        assert_eq!(
            table.render("no nodes"),
            "NAME          UNDERLAY     BLOCKS\n\
             n1            10.0.0.1     10.244.0.0/26,10.244.0.64/26\n\
             a-long-name   10.0.0.200   -\n"
        );
    }

    #[test]
    fn no_rows_say_so() {
        assert_eq!(Table::new(["NAME"]).render("no pods"), "no pods\n");
    }

    #[test]
    fn width_counts_characters_not_bytes() {
        let mut table = Table::new(["A", "B"]);
        table.row(["größe".into(), "1".into()]);
        table.row(["abcde".into(), "2".into()]);
        assert_eq!(table.render(""), "A       B\ngröße   1\nabcde   2\n");
    }
}
