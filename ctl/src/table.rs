//! A table whose columns are aligned: text to the left, numbers to the right.

use std::fmt;

/// Spaces between two columns.
const GAP: usize = 2;

/// Rows under a heading; shown with `Display`, one line each.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|cell| (*cell).to_owned()).collect()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.rows[0].len());
        self.rows.push(cells.into());
    }

    /// A column of numbers, and of dashes where there is none.
    fn is_number(&self, column: usize) -> bool {
        let number = |cell: &str| !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        self.rows.len() > 1 && self.rows[1..].iter().all(|row| number(&row[column]))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let numbers: Vec<bool> = (0..columns).map(|column| self.is_number(column)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line.push_str(&if numbers[column] {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                });
                line.push_str(&" ".repeat(GAP));
            }
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["TOPIC", "LAG"]);
        table.row(["payments".to_owned(), "7".to_owned()]);
        table.row(["x".to_owned(), "12345".to_owned()]);
        table.row(["y".to_owned(), "-".to_owned()]);
        assert_eq!(
            table.to_string(),
            "TOPIC       LAG\npayments      7\nx         12345\ny             -\n"
        );
    }

    #[test]
    fn an_empty_table_is_its_heading() {
        assert_eq!(Table::new(&["GROUP", "STATE"]).to_string(), "GROUP  STATE\n");
    }
}
