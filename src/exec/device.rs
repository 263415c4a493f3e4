//! Which device stages compute on.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The best that this build and this machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => match text.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(number) => Ok(Choice::Cuda(number)),
                None => Err(format!("expected `auto`, `cpu` or `cuda:N`, got `{text}`")),
            },
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl Choice {
    /// The device to use.
    ///
    /// # Errors
    /// If a GPU is asked for and this build cannot use one: nothing falls back silently.
    pub fn resolve(self) -> Result<candle_core::Device> {
        match self {
            Choice::Auto | Choice::Cpu => Ok(candle_core::Device::Cpu),
            Choice::Cuda(_) => {
                Err(Error::user(format!("`--device {self}`: this build of `runner` computes on the CPU only"))
                    .hint("leave `--device` out, or say `--device cpu`"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse() {
        assert_eq!("auto".parse(), Ok(Choice::Auto));
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(Choice::Cuda(3)));
        assert!("gpu".parse::<Choice>().is_err());
        assert!("cuda:x".parse::<Choice>().is_err());
        assert!(Choice::Cuda(0).resolve().is_err());
    }
}
