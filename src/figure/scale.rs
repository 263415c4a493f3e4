//! From values to places on an axis, and where its ticks go.

use super::text::{Label, minus};

/// How values are spaced along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spacing {
    /// Evenly.
    Linear,
    /// By their logarithm; values that are not above zero cannot be shown.
    Log,
    /// By the logarithm of their size on both sides of zero, evenly within about this distance of it (inverse hyperbolic
    /// sine): for values of both signs and many orders of magnitude.
    Signed(f64),
}

/// The ticks of an axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ticks {
    /// Long ticks with their labels.
    pub major: Vec<(f64, Label)>,
    /// Short ticks.
    pub minor: Vec<f64>,
}

impl Spacing {
    /// Whether the axis can show `value`.
    pub fn shows(self, value: f64) -> bool {
        value.is_finite() && (self != Spacing::Log || value > 0.0)
    }

    /// Where `value` lies between `low` (0) and `high` (1).
    pub fn share(self, value: f64, (low, high): (f64, f64)) -> f64 {
        match self {
            Spacing::Linear => (value - low) / (high - low),
            Spacing::Log => libm::log(value / low) / libm::log(high / low),
            Spacing::Signed(even) => {
                let [value, low, high] = [value, low, high].map(|v| libm::asinh(v / even));
                (value - low) / (high - low)
            }
        }
    }

    /// The range that shows values from `low` to `high` with `margin` (a share of the axis) free at each end.
    pub fn widen(self, (low, high): (f64, f64), margin: f64) -> (f64, f64) {
        match self {
            Spacing::Linear => {
                let span = high - low;
                // A single value stands in the middle of a range of its own size.
                let free =
                    if span > low.abs().max(high.abs()) * 1e-9 { span * margin } else { (low.abs() / 2.0).max(0.5) };
                (low - free, high + free)
            }
            Spacing::Log => {
                let ratio = high / low;
                let free = if ratio > 1.0 + 1e-9 { libm::pow(ratio, margin) } else { 3.0 };
                (low / free, high * free)
            }
            Spacing::Signed(even) => {
                let (low, high) = (libm::asinh(low / even), libm::asinh(high / even));
                let free = if high > low { (high - low) * margin } else { 1.0 };
                (even * libm::sinh(low - free), even * libm::sinh(high + free))
            }
        }
    }

    /// About `target` ticks between `low` and `high`; at whole numbers only, if `whole`.
    pub fn ticks(self, range: (f64, f64), target: usize, whole: bool) -> Ticks {
        match self {
            Spacing::Linear => linear(range, target.max(2), whole),
            Spacing::Log => log(range, target.max(2)),
            Spacing::Signed(even) => signed(range, even, target.max(2)),
        }
    }
}

fn linear((low, high): (f64, f64), target: usize, whole: bool) -> Ticks {
    let rough = (high - low) / target as f64;
    let power = libm::floor(libm::log10(rough)) as i32;
    let ten = libm::pow(10.0, f64::from(power));
    let (factor, power) = match rough / ten {
        f if f <= 1.0 + 1e-9 => (1.0, power),
        f if f <= 2.0 + 1e-9 => (2.0, power),
        f if f <= 5.0 + 1e-9 => (5.0, power),
        _ => (1.0, power + 1),
    };
    let (factor, power) = if whole && power < 0 { (1.0, 0) } else { (factor, power) };
    let step = factor * libm::pow(10.0, f64::from(power));
    let first = libm::ceil(low / step - 1e-6) as i64;
    let last = libm::floor(high / step + 1e-6) as i64;
    let largest = low.abs().max(high.abs());
    let label = |k: i64| -> Label {
        // Exact: a small whole number times a power of ten.
        let units = k * factor as i64;
        match power {
            _ if units == 0 => Label::plain("0"),
            _ if (1e-3..1e5).contains(&largest) && power >= -4 => {
                let value = units as f64 * libm::pow(10.0, f64::from(power));
                Label::plain(minus(&format!("{value:.*}", usize::try_from(-power).unwrap_or(0))))
            }
            _ => Label::power(Some(&minus(&units.to_string())), power),
        }
    };
    Ticks { major: (first..=last).map(|k| (k as f64 * step, label(k))).collect(), minor: Vec::new() }
}

fn log((low, high): (f64, f64), target: usize) -> Ticks {
    let decade = |value: f64| libm::floor(libm::log10(value) + 1e-9) as i32;
    let (first, last) = (decade(low), decade(high));
    let inside = |value: f64| value >= low * (1.0 - 1e-9) && value <= high * (1.0 + 1e-9);
    let value = |factor: i32, power: i32| f64::from(factor) * libm::pow(10.0, f64::from(power));
    let decades: Vec<i32> = (first..=last).filter(|&power| inside(value(1, power))).collect();
    let plain = first >= -4 && last <= 4;
    let label = |factor: i32, power: i32| {
        if plain {
            Label::plain(format!("{:.*}", usize::try_from(-power).unwrap_or(0), value(factor, power)))
        } else {
            Label::power((factor != 1).then(|| factor.to_string()).as_deref(), power)
        }
    };
    let all = |factors: &[i32]| -> Vec<(i32, i32)> {
        let pairs = (first..=last).flat_map(|power| factors.iter().map(move |&factor| (factor, power)));
        pairs.filter(|&(factor, power)| inside(value(factor, power))).collect()
    };
    // Few decades: 1, 2, 5; many: every second, third, ...
    let major: Vec<(i32, i32)> = match decades.len() {
        0 | 1 if all(&[1, 2, 5]).len() < 2 => all(&[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        0..=2 => all(&[1, 2, 5]),
        n => {
            let every = i32::try_from(n.div_ceil(target)).unwrap_or(1);
            all(&[1]).into_iter().filter(|(_, power)| power.rem_euclid(every) == 0).collect()
        }
    };
    let minor = if decades.len() <= 6 { all(&[2, 3, 4, 5, 6, 7, 8, 9]) } else { all(&[1]) };
    let minor = minor.into_iter().filter(|pair| !major.contains(pair)).map(|(f, p)| value(f, p)).collect();
    Ticks { major: major.into_iter().map(|(f, p)| (value(f, p), label(f, p))).collect(), minor }
}

/// Zero, and powers of ten on both sides of it.
fn signed((low, high): (f64, f64), even: f64, target: usize) -> Ticks {
    let power_of = |value: f64| libm::floor(libm::log10(value) + 1e-9) as i32;
    let ten = |power: i32| libm::pow(10.0, f64::from(power));
    let first = libm::ceil(libm::log10(even) - 1e-9) as i32;
    let powers = |end: f64| if end > 0.0 { (first..=power_of(end)).collect() } else { Vec::new() };
    let (below, above): (Vec<i32>, Vec<i32>) = (powers(-low), powers(high));
    let every = (below.len() + above.len() + 1).div_ceil(target).max(1) as i32;
    let last = below.iter().chain(&above).copied().max().unwrap_or(first);
    let plain = first >= -3 && last <= 4;
    let label = |sign: f64, power: i32| match (plain, sign < 0.0) {
        (true, _) => Label::plain(minus(&format!("{:.*}", usize::try_from(-power).unwrap_or(0), sign * ten(power)))),
        (false, false) => Label::power(None, power),
        (false, true) => Label::power(Some(&minus("-1")), power),
    };
    let mut ticks = Ticks::default();
    for (sign, powers) in [(-1.0, below.iter().rev().copied().collect()), (1.0, above)] {
        for power in powers {
            // From the largest down.
            match (last - power) % every {
                0 => ticks.major.push((sign * ten(power), label(sign, power))),
                _ => ticks.minor.push(sign * ten(power)),
            }
        }
        if sign < 0.0 && low <= 0.0 && high >= 0.0 {
            ticks.major.push((0.0, Label::plain("0")));
        }
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spacing: Spacing, range: (f64, f64), target: usize, labels: &[&str]) {
        let ticks = spacing.ticks(range, target, false);
        let expected: Vec<Label> = labels.iter().map(|&l| Label::plain(l)).collect();
        let got: Vec<Label> = ticks.major.into_iter().map(|(_, label)| label).collect();
        assert_eq!(got, expected, "{spacing:?} {range:?}");
    }

    #[test]
    fn linear_ticks() {
        check(
            Spacing::Linear,
            (0.0, 1.0),
            5,
            &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"].map(|l| if l == "0.0" { "0" } else { l }),
        );
        check(Spacing::Linear, (-3.0, 103.0), 6, &["0", "20", "40", "60", "80", "100"]);
        check(Spacing::Linear, (-0.3, 0.3), 3, &["−0.2", "0", "0.2"]);
        check(Spacing::Linear, (3.41, 3.44), 3, &["3.41", "3.42", "3.43", "3.44"]);
        check(Spacing::Linear, (0.0, 120.0), 4, &["0", "50", "100"]);
    }

    #[test]
    fn linear_ticks_of_extreme_ranges_have_powers() {
        let ticks = Spacing::Linear.ticks((0.0, 4e-6), 4, false);
        assert_eq!(ticks.major[1].1, Label::power(Some("1"), -6));
        assert_eq!(ticks.major.len(), 5);
    }

    #[test]
    fn whole_ticks_never_split_a_unit() {
        let ticks = Spacing::Linear.ticks((1.0, 3.0), 10, true);
        assert_eq!(ticks.major.iter().map(|t| t.0).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn log_ticks() {
        check(Spacing::Log, (0.02, 12.0), 4, &["0.1", "1", "10"]);
        check(Spacing::Log, (0.4, 3.0), 4, &["0.5", "1", "2"]);
        check(Spacing::Log, (3.2, 4.5), 4, &["4"]);
        let wide = Spacing::Log.ticks((1e-8, 1e4), 5, false);
        assert_eq!(
            wide.major.iter().map(|t| t.1.clone()).collect::<Vec<_>>(),
            [-6, -3, 0, 3].map(|e| Label::power(None, e))
        );
    }

    #[test]
    fn signed_ticks() {
        check(Spacing::Signed(0.1), (-2.0, 300.0), 8, &["−1", "−0.1", "0", "0.1", "1", "10", "100"]);
        check(Spacing::Signed(1.0), (-5.0, 2e3), 4, &["0", "10", "1000"]);
        check(Spacing::Signed(1.0), (2.0, 40.0), 8, &["1", "10"]);
        let spacing = Spacing::Signed(0.5);
        assert_eq!(spacing.share(0.0, (-3.0, 3.0)), 0.5);
        assert!(spacing.share(30.0, (-300.0, 300.0)) > 0.8 && spacing.shows(-1.0));
        let (low, high) = spacing.widen((-1.0, 100.0), 0.05);
        assert!(low < -1.0 && high > 100.0 && high < 150.0);
    }

    #[test]
    fn ranges_are_never_empty() {
        assert_eq!(Spacing::Linear.widen((0.0, 0.0), 0.05), (-0.5, 0.5));
        assert_eq!(Spacing::Linear.widen((10.0, 10.0), 0.05), (5.0, 15.0));
        let (low, high) = Spacing::Log.widen((2.0, 2.0), 0.05);
        assert!(low < 2.0 && high > 2.0);
        assert!((Spacing::Log.share(1.0, (0.1, 10.0)) - 0.5).abs() < 1e-12);
    }
}
