//! A trigger that is added to an image: one whole number for every value, and values that leave 0..255 are clipped.
//!
//! The sum is clipped before it becomes a byte. Published code that casts first wraps around: 250 + 40 became 34 in
//! BackdoorBench's TrojanNN and in FIP's triggers, a dark speck where the trigger is meant to be bright.

use crate::artifact::Table;
use crate::artifact::table::Column;

/// What is added to images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    size: (usize, usize),
    /// [H, W, 3], each in -255..=255.
    values: Vec<i16>,
}

impl Offsets {
    /// The offset of the value at (row, column, channel) is `offset(row, column, channel)`, in pixel units, rounded to
    /// the nearest whole number, halves upwards.
    pub fn of(size: (usize, usize), offset: impl Fn(usize, usize, usize) -> f64) -> Offsets {
        let mut values = Vec::with_capacity(size.0 * size.1 * 3);
        for row in 0..size.0 {
            for column in 0..size.1 {
                values.extend((0..3).map(|channel| round(offset(row, column, channel))));
            }
        }
        Offsets { size, values }
    }

    /// Adds them to an image, [H, W, 3].
    pub fn stamp(&self, image: &mut [u8]) {
        for (value, &offset) in image.iter_mut().zip(&self.values) {
            *value = (i16::from(*value) + offset).clamp(0, 255) as u8;
        }
    }

    /// [H, W, 3]
    pub fn values(&self) -> &[i16] {
        &self.values
    }

    /// A row for each pixel.
    pub fn table(&self) -> Table {
        let offset = |name, channel: &str| {
            let definition = format!("what the trigger adds to {channel}, before values are clipped to 0 to 255");
            Column::new(name, &definition).unit("pixel values")
        };
        let mut table = Table::new(vec![
            Column::new("row", "row of the pixel, from 0"),
            Column::new("column", "its column, from 0"),
            offset("red", "red"),
            offset("green", "green"),
            offset("blue", "blue"),
        ]);
        for (i, pixel) in self.values.chunks_exact(3).enumerate() {
            let (row, column) = (i / self.size.1, i % self.size.1);
            let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(i64::from);
            table.push(vec![row.into(), column.into(), red.into(), green.into(), blue.into()]);
        }
        table
    }
}

fn round(offset: f64) -> i16 {
    /// A sine has no exact binary form: what should be a half may come out just below it.
    const SLACK: f64 = 1e-9;
    (offset + 0.5 + SLACK).floor().clamp(-255.0, 255.0) as i16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_clipped_and_do_not_wrap() {
        let check = |image: u8, offset: f64, expected: u8| {
            let mut values = [image; 3];
            Offsets::of((1, 1), |_, _, _| offset).stamp(&mut values);
            assert_eq!(values, [expected; 3], "{image} and {offset}");
        };
        check(100, 40.0, 140);
        check(250, 40.0, 255);
        check(3, -40.0, 0);
        check(100, 0.5, 101);
        check(100, -0.5, 100);
        check(100, -1.5, 99);
        check(100, 1e9, 255);
        check(0, 0.49, 0);
    }

    #[test]
    fn a_table_lists_pixels_row_by_row() {
        let offsets = Offsets::of((2, 3), |row, column, channel| (100 * row + 10 * column + channel) as f64);
        let table = offsets.table();
        assert_eq!(table.rows.len(), 6);
        let numbers: Vec<f64> = table.rows[5].iter().filter_map(|cell| cell.number()).collect();
        assert_eq!(numbers, [1.0, 2.0, 120.0, 121.0, 122.0]);
    }
}
