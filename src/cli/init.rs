//! `runner init NAME`: a commented pipeline to start from.

use crate::error::{Error, Result};

/// The main job on embedded images. `NAME` stands for the pipeline's name.
const STARTER: &str = include_str!("init.toml");

/// The text of a pipeline called `name`.
///
/// # Errors
/// A name with other characters than letters, digits, `.`, `_` and `-`.
pub fn text(name: &str) -> Result<String> {
    let is_good = !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !is_good {
        return Err(Error::user(format!("\"{}\" cannot name a pipeline", name.escape_debug()))
            .hint("use letters, digits, `.`, `_` and `-`; the file is called NAME.toml"));
    }
    Ok(STARTER.replace("NAME", name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::plan::plan_text;
    use std::path::Path;

    #[test]
    fn the_starter_is_a_good_pipeline() {
        for profile in [None, Some("quick".to_string())] {
            let text = text("first").expect("a good name");
            let options = Options { profile, ..Options::default() };
            let plan = plan_text(Path::new("first.toml"), text, &options).expect("a good pipeline");
            assert_eq!((plan.identity.name.as_str(), plan.nodes.len()), ("first", 11));
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["", "../x", "a b", ".hidden"] {
            assert!(text(name).is_err(), "{name}");
        }
    }
}
