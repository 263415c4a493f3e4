//! Sizes and colours of every figure. Lengths are in points (1/72 in), as papers give them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How wide a figure is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Width {
    /// One column of a two-column paper, 3.4 in.
    Column,
    /// Both columns, 7 in.
    Page,
}

impl Width {
    /// The width in points.
    pub fn points(self) -> f64 {
        match self {
            Width::Column => 244.8,
            Width::Page => 504.0,
        }
    }
}

/// Font size of titles.
pub const TITLE: f64 = 9.0;
/// Font size of axis labels and panel headings.
pub const LABEL: f64 = 8.0;
/// Font size of ticks and legends.
pub const SMALL: f64 = 7.0;
/// Font size of notes within a figure: the smallest that a column-wide print leaves legible.
pub const NOTE: f64 = 6.0;
/// Distance between the paper's edge and anything drawn.
pub const MARGIN: f64 = 3.0;

/// An opaque sRGB colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub u32);

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:06x}", self.0)
    }
}

/// Text and axes: not quite black, so that data stand out.
pub const INK: Colour = Colour(0x262626);
/// Paths that only connect marks, error bars, notes.
pub const GREY: Colour = Colour(0x8c8c8c);
/// Grid lines.
pub const GRID: Colour = Colour(0xe8e8e8);
/// The paper.
pub const PAPER: Colour = Colour(0xffffff);

/// Clean samples, and accuracy on them, in every figure.
pub const CLEAN: Colour = Colour(0x0072b2);
/// Backdoor samples, and the attack's success, in every figure.
pub const BACKDOOR: Colour = Colour(0xd55e00);
/// Cover samples in every figure.
pub const COVER: Colour = Colour(0x009e73);
/// All samples together in every figure.
pub const ALL: Colour = INK;

/// Colours of series that have none of their own: M. Okabe and K. Ito, "Color Universal Design" (2008), which
/// readers with any colour vision can tell apart, in an order that keeps the faint ones for last.
pub const SERIES: [Colour; 8] =
    [CLEAN, BACKDOOR, COVER, Colour(0xe69f00), Colour(0x56b4e9), Colour(0xcc79a7), Colour(0x262626), Colour(0xf0e442)];

/// Series number `i` of any number.
pub fn series(i: usize) -> Colour {
    SERIES[i % SERIES.len()]
}

/// Colours of up to ten classes: the scheme "muted" of P. Tol, "Colour schemes" (SRON technical note, 2021), which leaves
/// vermilion to backdoor samples.
pub const CLASSES: [Colour; 10] = [
    Colour(0x332288),
    Colour(0x88ccee),
    Colour(0x117733),
    Colour(0xddcc77),
    Colour(0xaa4499),
    Colour(0x44aa99),
    Colour(0x882255),
    Colour(0x999933),
    Colour(0xcc6677),
    Colour(0x777777),
];

/// `colour` mixed with this share of white.
pub fn pale(colour: Colour, share: f64) -> Colour {
    let channel = |shift: u32| {
        let value = f64::from(colour.0 >> shift & 0xff);
        ((value + (255.0 - value) * share.clamp(0.0, 1.0)).round() as u32) << shift
    };
    Colour(channel(16) | channel(8) | channel(0))
}

/// Dash patterns, in points; the first is a full line.
pub const DASHES: [&str; 4] = ["", "4 1.6", "1.2 1.2", "4 1.4 1.2 1.4"];

/// Every sixteenth colour of viridis (N. Smith and S. van der Walt, 2015; CC0): even steps of perceived lightness.
const VIRIDIS: [u32; 17] = [
    0x440154, 0x48186a, 0x472d7b, 0x424086, 0x3b528b, 0x33638d, 0x2c728e, 0x26828e, 0x21918c, 0x1f9f88, 0x27ad81,
    0x3dbc74, 0x5cc863, 0x81d34d, 0xaadc32, 0xd5e21a, 0xfde725,
];

/// Viridis at `share` in [0, 1], dark to light.
pub fn viridis(share: f64) -> Colour {
    let place = share.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f64;
    let below = (place.floor() as usize).min(VIRIDIS.len() - 2);
    let weight = place - below as f64;
    let channel = |shift: u32| {
        let part = |colour: u32| f64::from(colour >> shift & 0xff);
        let value = part(VIRIDIS[below]) * (1.0 - weight) + part(VIRIDIS[below + 1]) * weight;
        (value.round() as u32) << shift
    };
    Colour(channel(16) | channel(8) | channel(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viridis_runs_from_end_to_end() {
        assert_eq!(viridis(0.0).to_string(), "#440154");
        assert_eq!(viridis(0.5).to_string(), "#21918c");
        assert_eq!(viridis(1.0).to_string(), "#fde725");
        assert_eq!(viridis(7.0), viridis(1.0));
    }

    #[test]
    fn pale_colours_go_to_white() {
        assert_eq!(pale(CLEAN, 0.0), CLEAN);
        assert_eq!(pale(CLEAN, 1.0), PAPER);
        assert_eq!(pale(Colour(0x0000ff), 0.2).to_string(), "#3333ff");
    }
}
