//! What a person sees while the demo runs: a line for each engine that moves on a terminal, plain lines elsewhere,
//! nothing with `--json`.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How the demo speaks.
#[derive(Clone)]
pub(super) enum Show {
    /// Only the JSON at the end.
    Silent,
    /// One line for each step.
    Lines,
    /// One moving line for each part.
    Moving(MultiProgress),
}

impl Show {
    /// The way that suits standard error.
    pub(super) fn choose(json: bool) -> Self {
        if json {
            Self::Silent
        } else if std::io::stderr().is_terminal() {
            Self::Moving(MultiProgress::new())
        } else {
            Self::Lines
        }
    }

    /// A part of the demo that tells what it is doing.
    pub(super) fn part(&self, name: &'static str) -> Part {
        let bar = match self {
            Self::Moving(all) => {
                let bar = all.add(ProgressBar::new_spinner());
                let style = ProgressStyle::with_template("{spinner:.cyan} {prefix:<10} {msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner())
                    .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ");
                bar.set_style(style);
                bar.set_prefix(name);
                bar.enable_steady_tick(Duration::from_millis(80));
                Some(bar)
            }
            Self::Silent | Self::Lines => None,
        };
        Part {
            name,
            bar,
            lines: matches!(self, Self::Lines),
        }
    }
}

/// One part's line.
pub(super) struct Part {
    name: &'static str,
    bar: Option<ProgressBar>,
    lines: bool,
}

impl Part {
    /// Something begins or has happened.
    pub(super) fn step(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
        if self.lines {
            eprintln!("{:<10} {text}", self.name);
        }
    }

    /// The part has ended.
    pub(super) fn end(&self, ok: bool, text: &str) {
        let mark = if ok { "✔" } else { "✘" };
        if let Some(bar) = &self.bar {
            if let Ok(style) = ProgressStyle::with_template("{prefix:<12} {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(format!("{mark} {}", self.name));
            bar.finish_with_message(text.to_owned());
        }
        if self.lines {
            eprintln!("{:<10} {mark} {text}", self.name);
        }
    }
}
