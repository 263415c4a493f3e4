//! Colour, when it is wanted. Meaning never hangs on it.

use std::io::IsTerminal;

/// Whether to write ANSI colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    on: bool,
}

/// What `--color` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// Where the output is a terminal, unless NO_COLOR is set or TERM is `dumb`.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Style {
    /// No colour.
    pub const PLAIN: Style = Style { on: false };

    /// The style for standard error.
    pub fn for_stderr(when: When) -> Style {
        Style::decide(when, std::io::stderr().is_terminal())
    }

    /// The style for standard output.
    pub fn for_stdout(when: When) -> Style {
        Style::decide(when, std::io::stdout().is_terminal())
    }

    fn decide(when: When, is_terminal: bool) -> Style {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let on = match when {
            When::Always => true,
            When::Never => false,
            When::Auto if set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|t| t == "dumb") => false,
            When::Auto => is_terminal || set("CLICOLOR_FORCE") || set("FORCE_COLOR"),
        };
        Style { on }
    }

    /// Whether colours are written.
    pub fn is_on(self) -> bool {
        self.on
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// Done, good.
    pub fn green(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// Wrong.
    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Worth a look.
    pub fn yellow(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// Help.
    pub fn cyan(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}
