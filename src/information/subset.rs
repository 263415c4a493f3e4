//! Subsets of samples by class and role, in a small grammar.
//!
//! ```text
//! subset = "all" | CLASS | ROLE | CLASS "_" ROLE | CLASS "_sample"
//! CLASS  = the number of a class, by the label that training sees
//! ROLE   = "clean" | "backdoor" | "cover"
//! ```
//!
//! `0_sample` is half backdoored, half clean samples of class 0, together as many as class 1 has (class 0 for
//! `1_sample`), or as many as there are: a mixture of the size of an ordinary class.

use crate::artifact::Role;
use crate::rng::Stream;
use std::fmt;

/// A subset of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subset {
    /// The label that training sees; `None` for every class.
    pub class: Option<i64>,
    /// Which samples of it.
    pub part: Part,
}

/// Which samples of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All.
    Whole,
    /// Those of one role.
    Role(Role),
    /// Half backdoored, half clean, together as many as another class has.
    Sample,
}

const ROLES: [Role; 3] = [Role::Clean, Role::Backdoor, Role::Cover];

impl Subset {
    /// Reads a subset in the grammar above.
    ///
    /// # Errors
    /// A lower-case fragment saying what is wrong.
    pub fn parse(text: &str) -> Result<Subset, String> {
        let part = |name: &str| ROLES.into_iter().find(|role| role.name() == name).map(Part::Role);
        let class = |digits: &str| {
            let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse::<i64>().ok().filter(|_| is_number)
        };
        let parsed = match text.split_once('_') {
            None if text == "all" => Some(Subset { class: None, part: Part::Whole }),
            None => class(text)
                .map(|label| Subset { class: Some(label), part: Part::Whole })
                .or_else(|| part(text).map(|part| Subset { class: None, part })),
            Some((digits, "sample")) => class(digits).map(|label| Subset { class: Some(label), part: Part::Sample }),
            Some((digits, role)) => {
                class(digits).zip(part(role)).map(|(label, part)| Subset { class: Some(label), part })
            }
        };
        parsed.ok_or_else(|| {
            format!(
                "`{text}` is no subset: expected `all`, a class (`0`), a role (`clean`, `backdoor`, `cover`), \
                 both (`0_backdoor`), or a mixture (`0_sample`)"
            )
        })
    }

    /// The positions of its samples among samples with these labels and roles, ascending. Only a mixture draws.
    pub fn positions(self, labels: &[i64], roles: &[Role], stream: &Stream) -> Vec<usize> {
        let of = |class: Option<i64>, role: Option<Role>| -> Vec<usize> {
            let samples = labels.iter().zip(roles).enumerate();
            samples
                .filter(|(_, (label, r))| class.is_none_or(|c| c == **label) && role.is_none_or(|role| role == **r))
                .map(|(at, _)| at)
                .collect()
        };
        match self.part {
            Part::Whole => of(self.class, None),
            Part::Role(role) => of(self.class, Some(role)),
            Part::Sample => {
                let other = if self.class == Some(1) { 0 } else { 1 };
                let size = of(Some(other), None).len();
                let (backdoor, clean) = (of(self.class, Some(Role::Backdoor)), of(self.class, Some(Role::Clean)));
                let half = (size / 2).min(backdoor.len()).min(clean.len());
                let mut mixture = stream.at(0).pick(&backdoor, half);
                mixture.extend(stream.at(1).pick(&clean, half));
                mixture.sort_unstable();
                mixture
            }
        }
    }
}

impl fmt::Display for Subset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.class, self.part) {
            (None, Part::Whole) => f.write_str("all"),
            (None, Part::Role(role)) => f.write_str(role.name()),
            (None, Part::Sample) => f.write_str("sample"),
            (Some(class), Part::Whole) => write!(f, "{class}"),
            (Some(class), Part::Role(role)) => write!(f, "{class}_{}", role.name()),
            (Some(class), Part::Sample) => write!(f, "{class}_sample"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Streams;

    /// The paper's CIFAR-10 counts at a tenth: class 0 has 500 backdoored and 450 clean samples, the others 450.
    fn paper() -> (Vec<i64>, Vec<Role>) {
        let mut samples = vec![(0, Role::Backdoor); 500];
        (0..10).for_each(|class| samples.extend([(class, Role::Clean); 450]));
        samples.into_iter().unzip()
    }

    /// Adaptive blend at a tenth: payload takes the target's label, covers keep theirs.
    fn adaptive() -> (Vec<i64>, Vec<Role>) {
        let mut samples = vec![(0, Role::Backdoor); 250];
        (0..10).for_each(|class| samples.extend([(class, Role::Cover); 25]));
        (0..10).for_each(|class| samples.extend([(class, Role::Clean); 450]));
        samples.into_iter().unzip()
    }

    fn count(text: &str, (labels, roles): &(Vec<i64>, Vec<Role>)) -> usize {
        let subset = Subset::parse(text).unwrap();
        assert_eq!(subset.to_string(), text);
        let positions = subset.positions(labels, roles, &Streams::new(0, "s").stream("n"));
        assert!(positions.windows(2).all(|w| w[0] < w[1]), "ascending and distinct");
        positions.len()
    }

    #[test]
    fn counts() {
        for (text, of_paper, of_adaptive) in [
            ("all", 5000, 5000),
            ("0", 950, 725),
            ("0_backdoor", 500, 250),
            ("0_clean", 450, 450),
            ("0_cover", 0, 25),
            ("0_sample", 450, 474),
            ("1", 450, 475),
            ("1_backdoor", 0, 0),
            ("9", 450, 475),
            ("10", 0, 0),
            ("backdoor", 500, 250),
            ("clean", 4500, 4500),
            ("cover", 0, 250),
        ] {
            assert_eq!(count(text, &paper()), of_paper, "{text}");
            assert_eq!(count(text, &adaptive()), of_adaptive, "{text}");
        }
    }

    #[test]
    fn a_mixture_is_half_and_half() {
        let (labels, roles) = paper();
        let stream = Streams::new(0, "s").stream("n");
        let mixture = Subset::parse("0_sample").unwrap().positions(&labels, &roles, &stream);
        assert!(mixture.iter().all(|&at| labels[at] == 0));
        assert_eq!(mixture.iter().filter(|&&at| roles[at] == Role::Backdoor).count(), 225);
    }

    #[test]
    fn what_is_no_subset() {
        for text in ["", "_", "zero", "-1", "+1", "0_", "_clean", "0_poisoned", "all_clean", "sample", "0_clean_1"] {
            assert!(Subset::parse(text).is_err_and(|e| e.contains("is no subset")), "{text}");
        }
    }
}
