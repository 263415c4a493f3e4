//! Which device stages compute on.

use crate::error::{Error, Result};
use crate::nn::Place;
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

/// A device in use.
pub struct Resolved {
    /// The device.
    pub place: Place,
    /// Why it is not the GPU that the machine has, where `auto` did not take it.
    pub note: Option<String>,
}

impl Choice {
    /// Whether it can be used at all, before anything runs. `auto` always can, and costs nothing.
    ///
    /// # Errors
    /// If a GPU is asked for and this build or machine has none: nothing falls back silently.
    pub fn check(self) -> Result<()> {
        match self {
            Choice::Auto | Choice::Cpu => Ok(()),
            Choice::Cuda(number) => self.find(number),
        }
    }

    #[cfg(feature = "cuda")]
    fn find(self, number: usize) -> Result<()> {
        let hint = "check `nvidia-smi`; leave `--device` out for the best device that there is";
        match crate::kernels::cuda::devices() {
            Err(missing) => Err(Error::user(format!("`--device {self}`: {missing}")).hint(hint)),
            Ok(names) if number >= names.len() => {
                Err(Error::user(format!("`--device {self}`: this machine has {} GPUs, numbered from 0", names.len()))
                    .hint(hint))
            }
            Ok(_) => Ok(()),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn find(self, _: usize) -> Result<()> {
        Err(Error::user(format!("`--device {self}`: this build of `runner` computes on the CPU only"))
            .hint("build it with `cargo build --release --features cuda`, or leave `--device` out"))
    }

    /// The device, ready for use.
    ///
    /// # Errors
    /// If a GPU is asked for and cannot be used: what is missing.
    pub fn resolve(self) -> Result<Resolved> {
        match self {
            Choice::Cpu => Ok(Resolved { place: Place::Cpu, note: None }),
            Choice::Auto => Ok(best()),
            Choice::Cuda(number) => {
                self.find(number)?;
                Ok(Resolved { place: gpu(number)?, note: None })
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn gpu(number: usize) -> Result<Place> {
    crate::kernels::cuda::Gpu::new(number).map(Place::Gpu)
}

#[cfg(feature = "cuda")]
fn best() -> Resolved {
    let on_cpu = |note| Resolved { place: Place::Cpu, note };
    match crate::kernels::cuda::devices() {
        // No driver, no GPU: nothing to tell.
        Err(_) => on_cpu(None),
        Ok(_) => match gpu(0) {
            Ok(place) => Resolved { place, note: None },
            Err(error) => on_cpu(Some(format!("computing on the CPU: {error}"))),
        },
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<Place> {
    Ok(Place::Cpu)
}

#[cfg(not(feature = "cuda"))]
fn best() -> Resolved {
    Resolved { place: Place::Cpu, note: None }
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
    }

    #[test]
    fn a_gpu_that_is_asked_for_is_never_replaced() {
        // No machine has as many.
        let choice = Choice::Cuda(usize::MAX);
        assert!(choice.check().unwrap_err().message().starts_with("`--device cuda:18446744073709551615`: "));
        assert!(choice.resolve().is_err());
        assert!(Choice::Auto.check().is_ok() && Choice::Cpu.resolve().is_ok());
    }
}
