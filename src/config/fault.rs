//! All faults of one configuration, told at once: each with its key, its place and the mend.

use std::error::Error;
use std::fmt;

use super::error::ConfigError;

/// One fault, and the place where a person mends it.
#[derive(Debug)]
pub struct ConfigFault {
    /// Dotted path of the setting; empty for a fault of the whole file.
    pub key: String,
    /// Line of the file, or variable; `None` where neither is known.
    pub place: Option<String>,
    pub cause: ConfigError,
}

/// Every fault that was found, at least one.
#[derive(Debug)]
pub struct ConfigFaults(Vec<ConfigFault>);

impl ConfigFault {
    pub(super) fn new(key: impl Into<String>, cause: impl Into<ConfigError>) -> Self {
        Self { key: key.into(), place: None, cause: cause.into() }
    }

    /// Returns whether the setting is another's part, or the same one.
    pub(super) fn is_within(&self, key: &str) -> bool {
        let rest = self.key.strip_prefix(key);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl ConfigFaults {
    /// # Errors
    /// If there is a fault.
    pub(super) fn into_result(faults: Vec<ConfigFault>) -> Result<(), ConfigError> {
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Faults(Self(faults))) }
    }
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.cause.to_string();
        // Faults in a list have no chain of causes that the caller could print.
        let mut cause = self.cause.source();
        while let Some(inner) = cause {
            let said = inner.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = inner.source();
        }
        match &self.place {
            Some(place) => write!(f, "{text} ({place})"),
            None => f.write_str(&text),
        }
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return only.fmt(f);
        }
        write!(f, "the configuration has {} faults:", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl Error for ConfigFaults {}
