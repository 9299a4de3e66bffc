//! Layers of the configuration: the file, and the environment variables over it.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::DeTable;

use super::error::{ConfigError, ConfigFault, ConfigFaults};
use super::interpret::{interpret, set_aside};
use super::missing_feature;
use super::places::{KeyLines, key_lines, line_at, place_of};
use super::settings::Config;

/// File that is read if none is named.
pub const DEFAULT_FILE: &str = "promptmill.toml";

const ENV_PREFIX: &str = "PROMPTMILL__";

impl Config {
    /// Reads the file (a missing default file counts as empty) and merges the environment over it.
    ///
    /// # Errors
    /// Tells all faults, each with its key, its line or variable, and the mend.
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
    lines: KeyLines,
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
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                String::new()
            }
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let (mut table, lines) = parse(path, &text)?;
        let mut set: Vec<_> = environment.filter(|(k, _)| k.starts_with(ENV_PREFIX)).collect();
        set.sort();
        let mut variables = BTreeMap::new();
        for (variable, value) in set {
            let keys = variable[ENV_PREFIX.len()..].to_ascii_lowercase();
            let keys: Vec<_> = keys.split("__").collect();
            set_at_path(&mut table, &keys, &value);
            variables.insert(keys.join("."), variable);
        }
        Ok(Self { table, file: path.display().to_string(), lines, variables })
    }

    /// Returns the whole configuration, checked.
    ///
    /// # Errors
    /// Tells all faults, each with its key, its line or variable, and the mend.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut table = self.table.clone();
        let mut faults = missing_feature::faults(&table);
        for fault in &faults {
            let path: Vec<_> = fault.key.split('.').map(str::to_owned).collect();
            set_aside(&mut table, &path);
        }
        let config = interpret(table, &mut faults);
        let unread = faults.len();
        for fault in config.iter().flat_map(Config::faults) {
            // What is said of a section whose setting was set aside may not be so.
            let is_doubtful = |told: &ConfigFault| told.is_within(&fault.key);
            if !faults[..unread].iter().any(is_doubtful) {
                faults.push(fault);
            }
        }
        for fault in &mut faults {
            fault.place = place_of(&fault.key, &self.file, &self.lines, &self.variables);
        }
        ConfigFaults::into_result(faults)?;
        config.ok_or_else(|| {
            let problem = "the settings can't be read".to_owned();
            ConfigError::Key { key: self.file.clone(), problem }
        })
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
}

/// Parses the file, with the line of each key.
fn parse(path: &Path, text: &str) -> Result<(toml::Table, KeyLines), ConfigError> {
    let (read, errors) = DeTable::parse_recoverable(text);
    let mut faults = Vec::new();
    let mut told = 0;
    for error in errors {
        let line = line_at(text, error.span().map_or(0, |span| span.start));
        // The parser goes on within the line, and finds more that is the same.
        if line > told {
            let (path, problem) = (path.to_owned(), error.message().to_owned());
            faults.push(ConfigFault::new("", ConfigError::Toml { path, line, problem }));
            told = line;
        }
    }
    ConfigFaults::into_result(faults)?;
    let table = text.parse().map_err(|error: toml::de::Error| ConfigError::Toml {
        path: path.to_owned(),
        line: line_at(text, error.span().map_or(0, |span| span.start)),
        problem: error.message().to_owned(),
    })?;
    Ok((table, key_lines(text, read.get_ref())))
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
