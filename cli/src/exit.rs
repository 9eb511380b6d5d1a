//! Exit codes, and how a failure is told.

use std::process::ExitCode;

use gleaner::{AcquireError, ConnectError, FunctionError, HarvesterError};
use gleaner_config::ConfigError;

use crate::output;

/// What the exit code says; scripts rely on the numbers, which the help and the man page list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Something on this machine: a file, a terminal.
    Local = 1,
    /// The configuration is wrong.
    Configuration = 3,
    /// The harvester or an executor cannot be reached, or is too slow.
    Unreachable = 4,
    /// The harvester said no.
    Refused = 5,
    /// A call did not end as OK.
    Call = 6,
    /// `doctor` found something that must be repaired.
    Unhealthy = 7,
}

/// The table of exit codes for the help.
pub(crate) const CODES_HELP: &str = "Exit codes:
  0  done
  1  something on this machine failed, such as reading a file
  2  the command line is wrong
  3  the configuration is wrong
  4  the harvester or an executor cannot be reached, or did not answer in time
  5  the harvester refused: no node free, a quota, not an admin
  6  a call ended as FAILED, EVICTED or UNKNOWN
  7  doctor found a problem";

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a verb came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Tells people on standard error, programs on standard output.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if json {
            let error = serde_json::json!({ "code": self.code as u8, "message": self.message });
            output::json("error", &error);
        } else {
            for line in self.message.lines() {
                eprintln!("gleaner: {line}");
            }
        }
        self.code.into()
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Code::Local, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Code::Configuration, error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let code = match &error {
            ConnectError::Address { .. } => Code::Configuration,
            ConnectError::Identity(_) => Code::Unreachable,
            _ => Code::Local,
        };
        Self::new(code, error.to_string())
    }
}

impl From<HarvesterError> for Failure {
    fn from(error: HarvesterError) -> Self {
        let code = match &error {
            HarvesterError::Refused { .. } => Code::Refused,
            HarvesterError::Random(_) => Code::Local,
            _ => Code::Unreachable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<AcquireError> for Failure {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::Harvester(error) => error.into(),
            AcquireError::Request(_) => Self::new(Code::Refused, error.to_string()),
            error => Self::new(Code::Unreachable, error.to_string()),
        }
    }
}

impl From<FunctionError> for Failure {
    fn from(error: FunctionError) -> Self {
        let code = match &error {
            FunctionError::Read { .. } | FunctionError::TooLarge { .. } => Code::Local,
            FunctionError::Refused { .. } => Code::Call,
            _ => Code::Unreachable,
        };
        Self::new(code, error.to_string())
    }
}
