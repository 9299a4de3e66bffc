//! Layers of the configuration: the file, and the environment variables over it.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::ConfigError;
use super::missing_feature;
use super::settings::Config;

/// File that is read if none is named.
pub const DEFAULT_FILE: &str = "promptmill.toml";

const ENV_PREFIX: &str = "PROMPTMILL__";

impl Config {
    /// Reads the file (a missing default file counts as empty) and merges the environment over it.
    ///
    /// # Errors
    /// Names the key, the problem and, for a value of the wrong form, the sources that were read.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        ConfigLayers::read(file, environment)?.config()
    }
}

/// Merged settings before they are interpreted, with the origin of each.
pub struct ConfigLayers {
    table: toml::Table,
    /// Path of the file, for messages.
    pub(super) file: String,
    /// Variable that set a key, by the key's dotted path.
    pub(super) variables: BTreeMap<String, String>,
}

impl ConfigLayers {
    /// # Errors
    /// If the file can't be read or is no TOML.
    pub fn read(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let mut table = match std::fs::read_to_string(path) {
            Ok(text) => text.parse::<toml::Table>().map_err(|error| ConfigError::Toml {
                path: path.to_owned(),
                line: line_of(&text, &error),
                problem: error.message().to_owned(),
            })?,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                toml::Table::new()
            }
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let mut set: Vec<_> = environment.filter(|(k, _)| k.starts_with(ENV_PREFIX)).collect();
        set.sort();
        let mut variables = BTreeMap::new();
        for (variable, value) in set {
            let keys = variable[ENV_PREFIX.len()..].to_ascii_lowercase();
            let keys: Vec<_> = keys.split("__").collect();
            set_at_path(&mut table, &keys, &value);
            variables.insert(keys.join("."), variable);
        }
        Ok(Self { table, file: path.display().to_string(), variables })
    }

    /// Returns the whole configuration, checked.
    ///
    /// # Errors
    /// Names the key, the problem and, for a value of the wrong form, the sources that were read.
    pub fn config(&self) -> Result<Config, ConfigError> {
        missing_feature::check(&self.table)?;
        let read = serde_path_to_error::deserialize(self.table.clone());
        let config: Config = read.map_err(|error| {
            let key = error.path().to_string();
            // The parser quotes what it did not expect. Here that may be the secret itself.
            let problem = if ["credential", "connection_string", "serve.tokens", "documents.sas"]
                .iter()
                .any(|name| key.contains(name))
            {
                "it does not have the form shown by the examples in config/".to_owned()
            } else {
                error.inner().message().to_owned()
            };
            ConfigError::Key { key, problem, origin: self.origins() }
        })?;
        config.check()?;
        Ok(config)
    }

    pub(super) fn is_in_file(&self, path: &[String]) -> bool {
        let mut value = path.first().and_then(|key| self.table.get(key));
        for key in path.iter().skip(1) {
            value = value.and_then(|value| match key.parse::<usize>() {
                Ok(index) if value.is_array() => value.get(index),
                _ => value.get(key),
            });
        }
        value.is_some()
    }

    fn origins(&self) -> String {
        let parts = std::iter::once(&self.file).chain(self.variables.values());
        parts.cloned().collect::<Vec<_>>().join(", ")
    }
}

fn line_of(text: &str, error: &toml::de::Error) -> usize {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Sets one key from the environment; text that parses as a TOML non-string becomes that value.
fn set_at_path(table: &mut toml::Table, keys: &[&str], value: &str) {
    let scalar = || {
        let parsed = format!("v = {value}").parse::<toml::Table>().ok();
        let parsed = parsed.and_then(|mut t| t.remove("v"));
        parsed.filter(|v| !v.is_str()).unwrap_or_else(|| value.into())
    };
    match keys {
        [] => {}
        [last] => {
            table.insert((*last).to_owned(), scalar());
        }
        // A number after a name is an index in a list.
        [list, index, rest @ ..] if let Ok(index) = index.parse::<usize>() => {
            let entry = table.entry(*list).or_insert_with(|| toml::Value::Array(Vec::new()));
            if let toml::Value::Array(items) = entry {
                let empty = || toml::Value::Table(toml::Table::new());
                items.resize_with(items.len().max(index.min(999) + 1), empty);
                if let Some(toml::Value::Table(item)) = items.get_mut(index) {
                    set_at_path(item, rest, value);
                }
            }
        }
        [section, rest @ ..] => {
            let empty = || toml::Value::Table(toml::Table::new());
            let entry = table.entry(*section).or_insert_with(empty);
            // `queue = "local"` in the file gives way to a variable of `queue.service_bus`.
            if !entry.is_table() {
                *entry = empty();
            }
            if let toml::Value::Table(inner) = entry {
                set_at_path(inner, rest, value);
            }
        }
    }
}
