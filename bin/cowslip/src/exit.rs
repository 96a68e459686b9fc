//! How a command ends: its exit code, and a failure as one line, its causes and the next step.

use std::fmt;
use std::io;

use cowslip_model::api::{ErrorBody, ErrorCode, exit};

/// Exit code of a command on several objects of which some failed.
pub(crate) const PARTLY_FAILED: u8 = 1;
/// Exit code where the reader of our output went away: as if SIGPIPE had ended us.
pub(crate) const OUTPUT_CLOSED: u8 = exit::SIGNAL_BASE + 13;

/// A command that failed, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What went wrong; an empty message is not shown.
    pub(crate) error: ErrorBody,
    /// The exit code.
    pub(crate) exit: u8,
}

impl Failure {
    /// A failure of this kind, with the exit code of an engine error.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let error = ErrorBody {
            code,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
        };
        Self {
            error,
            exit: exit::ENGINE,
        }
    }

    /// What was typed cannot be done.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Invalid, message)
    }

    /// `operation` (with its object) failed because of `source`.
    pub(crate) fn io(operation: impl Into<String>, source: &io::Error) -> Self {
        let code = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
            io::ErrorKind::PermissionDenied => ErrorCode::Forbidden,
            io::ErrorKind::NotFound => ErrorCode::NotFound,
            _ => ErrorCode::Internal,
        };
        Self::new(code, format!("{}: {}", operation.into(), describe(source)))
    }

    /// Ends the command with this code and says nothing.
    pub(crate) fn silent(exit: u8) -> Self {
        let mut failure = Self::new(ErrorCode::Internal, "");
        failure.exit = exit;
        failure
    }

    /// The next step.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.error.hint = Some(hint.into());
        self
    }

    /// A cause, below those there are.
    #[must_use]
    pub(crate) fn because(mut self, cause: impl fmt::Display) -> Self {
        self.error.causes.push(cause.to_string());
        self
    }

    /// The same failure of a session with a command in the guest, whose exit codes say more.
    #[must_use]
    pub(crate) fn of_command(mut self) -> Self {
        self.exit = match self.error.code {
            ErrorCode::CommandNotFound => exit::NOT_FOUND,
            ErrorCode::CommandNotExecutable => exit::NOT_EXECUTABLE,
            ErrorCode::TimedOut => exit::TIMED_OUT,
            _ => self.exit,
        };
        self
    }
}

impl From<ErrorBody> for Failure {
    fn from(error: ErrorBody) -> Self {
        Self {
            error,
            exit: exit::ENGINE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cowslip: {}", one_line(&self.error.message))?;
        for cause in &self.error.causes {
            // A cause that the message already ends with tells nothing new.
            if !self.error.message.contains(cause.as_str()) {
                write!(f, "\n  because: {}", one_line(cause))?;
            }
        }
        if let Some(hint) = &self.error.hint {
            write!(f, "\n  hint: {}", one_line(hint))?;
        }
        Ok(())
    }
}

/// Text from outside on one line of a terminal: no control characters reach it.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in without_numbers(text).chars() {
        match character {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

/// A system error without Rust's "(os error N)".
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// Text without any "(os error N)", which says again in numbers what stands before it.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(part.split_once(')').map_or("", |(_, rest)| rest));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_its_causes_and_a_hint() {
        let failure = Failure::usage("start \"web\": no such\nsandbox")
            .because("the ledger \u{1b}[31mhas none")
            .hint("did you mean \"web-1\"?");
        assert_eq!(
            failure.to_string(),
            "cowslip: start \"web\": no such sandbox\n  because: the ledger \\u{1b}[31mhas none\n  \
             hint: did you mean \"web-1\"?"
        );
    }

    #[test]
    fn a_command_that_cannot_run_has_dockers_codes() {
        let exit = |code| Failure::new(code, "").of_command().exit;
        assert_eq!(exit(ErrorCode::CommandNotFound), 127);
        assert_eq!(exit(ErrorCode::CommandNotExecutable), 126);
        assert_eq!(exit(ErrorCode::TimedOut), 124);
        assert_eq!(exit(ErrorCode::NotFound), 125);
        assert_eq!(Failure::new(ErrorCode::TimedOut, "").exit, 125);
    }

    #[test]
    fn error_numbers_are_left_out() {
        let text = "open \"/x\": No such file (os error 2): and No space (os error 28)";
        assert_eq!(one_line(text), "open \"/x\": No such file: and No space");
    }

    #[test]
    fn system_errors_read_like_sentences() {
        let error = io::Error::from_raw_os_error(28);
        let failure = Failure::io("write \"/s\"", &error);
        assert_eq!(
            failure.error.message,
            "write \"/s\": no space left on device"
        );
        assert_eq!(failure.error.code, ErrorCode::NoSpace);
    }
}
