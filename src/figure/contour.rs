//! Lines along which a function that is known on a grid has one value: marching squares, with straight lines between.

use std::collections::BTreeMap;

/// Values on a grid: `values[row * xs.len() + column]` at `(xs[column], ys[row])`.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Of the columns.
    pub xs: Vec<f64>,
    /// Of the rows.
    pub ys: Vec<f64>,
    /// [rows, columns]; cells with a corner that is not finite have no lines.
    pub values: Vec<f64>,
}

/// A side of a cell, numbered.
type Side = usize;

impl Grid {
    /// The lines of `level`, each as long as it goes; a closed one ends where it begins.
    ///
    /// # Panics
    /// If there is not a value for every point.
    pub fn lines(&self, level: f64) -> Vec<Vec<(f64, f64)>> {
        let (columns, rows) = (self.xs.len(), self.ys.len());
        assert_eq!(self.values.len(), columns * rows, "values of a grid");
        let mut links: BTreeMap<Side, Vec<Side>> = BTreeMap::new();
        for row in 0..rows.saturating_sub(1) {
            for column in 0..columns.saturating_sub(1) {
                for (from, to) in self.segments(row, column, level) {
                    links.entry(from).or_default().push(to);
                    links.entry(to).or_default().push(from);
                }
            }
        }
        // Open lines from their ends first, then what is closed.
        let ends: Vec<Side> = links.iter().filter(|(_, next)| next.len() == 1).map(|(&side, _)| side).collect();
        let all: Vec<Side> = links.keys().copied().collect();
        let mut lines = Vec::new();
        for start in ends.into_iter().chain(all) {
            let mut line = vec![self.crossing(start, level)];
            let mut at = start;
            while let Some(next) = links.get_mut(&at).and_then(Vec::pop) {
                if let Some(back) = links.get_mut(&next)
                    && let Some(place) = back.iter().position(|&side| side == at)
                {
                    back.swap_remove(place);
                }
                line.push(self.crossing(next, level));
                at = next;
            }
            if line.len() > 1 {
                lines.push(line);
            }
        }
        lines
    }

    /// Pairs of sides that a line connects within a cell.
    fn segments(&self, row: usize, column: usize, level: f64) -> Vec<(Side, Side)> {
        let columns = self.xs.len();
        let corner = |down: usize, right: usize| self.values[(row + down) * columns + column + right];
        let corners = [corner(0, 0), corner(0, 1), corner(1, 0), corner(1, 1)];
        if corners.iter().any(|value| !value.is_finite()) {
            return Vec::new();
        }
        let at = 2 * (row * columns + column);
        let (top, left, right, bottom) = (at, at + 1, at + 3, at + 2 * columns);
        let is_above = corners.map(|value| value > level);
        let sides = [(top, 0, 1), (left, 0, 2), (right, 1, 3), (bottom, 2, 3)];
        let crossed: Vec<Side> =
            sides.into_iter().filter(|&(_, a, b)| is_above[a] != is_above[b]).map(|side| side.0).collect();
        match crossed.as_slice() {
            &[from, to] => vec![(from, to)],
            [] => Vec::new(),
            // A saddle: the middle decides which corners hang together.
            _ if (corners.iter().sum::<f64>() > 4.0 * level) == is_above[0] => vec![(top, right), (left, bottom)],
            _ => vec![(top, left), (right, bottom)],
        }
    }

    /// Where the line crosses a side.
    fn crossing(&self, side: Side, level: f64) -> (f64, f64) {
        let columns = self.xs.len();
        let (from, is_upright) = (side / 2, side % 2 == 1);
        let to = from + if is_upright { columns } else { 1 };
        let (a, b) = (self.values[from], self.values[to]);
        let share = (level - a) / (b - a);
        let between = |from: f64, to: f64| from + share * (to - from);
        (
            between(self.xs[from % columns], self.xs[to % columns]),
            between(self.ys[from / columns], self.ys[to / columns]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(n: usize, f: impl Fn(f64, f64) -> f64) -> Grid {
        let xs: Vec<f64> = (0..n).map(|i| -1.0 + 2.0 * i as f64 / (n - 1) as f64).collect();
        let values = xs.iter().flat_map(|&y| xs.iter().map(move |&x| (x, y))).map(|(x, y)| f(x, y)).collect();
        Grid { ys: xs.clone(), xs, values }
    }

    #[test]
    fn circles_are_closed_and_round() {
        let lines = grid(41, |x, y| x * x + y * y).lines(0.25);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].len() > 40 && lines[0].first() == lines[0].last());
        for &(x, y) in &lines[0] {
            assert!((libm::hypot(x, y) - 0.5).abs() < 2e-3, "{x} {y}");
        }
    }

    #[test]
    fn planes_have_straight_open_lines() {
        let lines = grid(5, |x, y| x + 0.5 * y).lines(0.1);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].iter().all(|&(x, y)| (x + 0.5 * y - 0.1).abs() < 1e-12));
        let (first, last) = (lines[0][0], lines[0][lines[0].len() - 1]);
        assert_eq!((first.1 - last.1).abs(), 2.0);
        assert!(grid(5, |x, _| x).lines(7.0).is_empty());
    }

    /// x y = 0.1 has two branches, one to either side of the saddle, none through it.
    #[test]
    fn saddles_are_not_crossed() {
        let lines = grid(10, |x, y| x * y).lines(0.001);
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().flatten().all(|&(x, y)| x * y > -0.02));
        let holes = grid(11, |x, y| if x > 0.5 { f64::INFINITY } else { x + y }).lines(0.0);
        assert!(!holes.is_empty() && holes.iter().flatten().all(|p| p.0 <= 0.5));
    }
}
