//! From merged settings to the configuration: what can't be read is told and set aside, so that
//! one run tells all faults.

use toml::{Table, Value};

use super::error::{ConfigError, ConfigFault};
use super::settings::Config;

/// Settings under which the parser's words would quote a secret.
const SECRETS: [&str; 5] =
    ["credential", "connection_string", "serve.tokens", "documents.sas", "webhook.secret"];

/// Reads the settings. What can't be read is added to `faults` and left out.
///
/// Returns `None` if what remains can't be read either.
pub(super) fn interpret(mut table: Table, faults: &mut Vec<ConfigFault>) -> Option<Config> {
    loop {
        let error = match serde_path_to_error::deserialize::<_, Config>(table.clone()) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let path: Vec<String> = error.path().iter().map(ToString::to_string).collect();
        let path: Vec<String> =
            path.into_iter().map(|part| part.trim_matches(['[', ']']).to_owned()).collect();
        let key = path.join(".");
        // A missing field may be one that was just set aside.
        if !faults.iter().any(|told| told.is_within(&key)) {
            let problem = if SECRETS.iter().any(|name| key.contains(name)) {
                "it does not have the form shown by the examples in config/".to_owned()
            } else {
                error.inner().message().to_owned()
            };
            faults.push(ConfigFault::new(key.clone(), ConfigError::Key { key, problem }));
        }
        if !set_aside(&mut table, &path) {
            return None;
        }
    }
}

/// Takes one setting out, and the tables that it leaves empty. Entries of lists keep their
/// numbers. Returns whether anything changed.
pub(super) fn set_aside(table: &mut Table, path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return table.remove(first).is_some();
    }
    let Some(value) = table.get_mut(first) else { return false };
    let has_changed = set_aside_in(value, rest);
    if value.as_table().is_some_and(Table::is_empty) {
        table.remove(first);
        return true;
    }
    has_changed || table.remove(first).is_some()
}

fn set_aside_in(value: &mut Value, path: &[String]) -> bool {
    match value {
        Value::Table(inner) => set_aside(inner, path),
        Value::Array(items) => {
            let is_of_tables = items.iter().any(Value::is_table);
            let Some((index, rest)) = path.split_first() else { return false };
            let item = index.parse().ok().and_then(|n: usize| items.get_mut(n));
            match (item, rest) {
                (Some(Value::Table(inner)), [_, ..]) => set_aside(inner, rest),
                (Some(item), []) => {
                    let empty = if is_of_tables {
                        Value::Table(Table::new())
                    } else {
                        Value::String(String::new())
                    };
                    let has_changed = *item != empty;
                    *item = empty;
                    has_changed
                }
                _ => false,
            }
        }
        _ => false,
    }
}
