//! How the program ends: the codes of `sysexits.h`, and an error that carries one.

use std::fmt;
use std::process::ExitCode;

/// Wrong arguments, or a mistake in the configuration file.
pub(crate) const USAGE: u8 = 64;
/// What was named does not exist, or cannot be changed in this way.
pub(crate) const DATA: u8 = 65;
/// No gateway runs here, or it cannot answer now.
pub(crate) const UNAVAILABLE: u8 = 69;
/// A fault of the program itself.
pub(crate) const SOFTWARE: u8 = 70;
/// A file or directory cannot be made.
pub(crate) const CANT_CREATE: u8 = 73;
/// A file cannot be read or written.
pub(crate) const IO: u8 = 74;
/// Somebody else is at work here; it may succeed when they have finished.
pub(crate) const TEMPORARY: u8 = 75;
/// Not allowed.
pub(crate) const NO_PERMISSION: u8 = 77;
/// The house is not furnished: a data directory that is missing, empty, or another's.
pub(crate) const CONFIG: u8 = 78;

/// The end of a command that did not succeed.
#[derive(Debug)]
pub(crate) struct Fail {
    /// The exit code.
    pub code: u8,
    /// What happened and what to do, for a person.
    pub message: String,
}

/// Shorthand for a command's result.
pub(crate) type Outcome<T = ()> = Result<T, Fail>;

impl Fail {
    /// A failure with its code.
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Something that cannot be read or written.
    pub(crate) fn io(what: impl fmt::Display, source: &std::io::Error) -> Self {
        let code = match source.kind() {
            std::io::ErrorKind::PermissionDenied => NO_PERMISSION,
            _ => IO,
        };
        Self::new(code, format!("{what}: {source}"))
    }

    /// Says it on standard error and gives the code to the operating system.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("tasuki: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
