//! The effective configuration as TOML: every value with its origin, secrets hidden.

use std::fmt::Write;

use toml::{Table, Value};

use super::layers::ConfigLayers;
use super::settings::Config;

impl ConfigLayers {
    /// Renders `config` with the origin of every value. Secrets are hidden before rendering.
    ///
    /// # Errors
    /// If a setting has no TOML form; none is known.
    pub fn explain(&self, config: &Config) -> Result<String, toml::ser::Error> {
        let table = Table::try_from(config)?;
        let mut text = String::new();
        self.write_section(&mut text, &mut Vec::new(), &table, "");
        Ok(text)
    }

    /// Writes values first, then subtables: values after a subtable would belong to it in TOML.
    fn write_section(
        &self,
        text: &mut String,
        path: &mut Vec<String>,
        table: &Table,
        heading: &str,
    ) {
        let is_section = |value: &Value| value.is_table() || is_list_of_tables(value);
        let has_values = table.is_empty() || !table.values().all(is_section);
        if !heading.is_empty() && has_values {
            let _ = writeln!(text, "\n{heading}");
        }
        for (key, value) in table.iter().filter(|(_, value)| !is_section(value)) {
            path.push(key.clone());
            let _ = writeln!(text, "{key} = {value}  # {}", self.origin(path));
            path.pop();
        }
        for (key, value) in table.iter().filter(|(_, value)| is_section(value)) {
            path.push(key.clone());
            match value {
                Value::Table(inner) => {
                    self.write_section(text, path, inner, &format!("[{}]", path.join(".")));
                }
                Value::Array(items) => {
                    for (n, item) in items.iter().enumerate() {
                        let heading = format!("[[{}]]", path.join("."));
                        path.push(n.to_string());
                        if let Value::Table(inner) = item {
                            self.write_section(text, path, inner, &heading);
                        }
                        path.pop();
                    }
                }
                _ => {}
            }
            path.pop();
        }
    }

    fn origin(&self, path: &[String]) -> String {
        let dotted = path.join(".");
        match self.variables.get(&dotted) {
            Some(variable) => variable.clone(),
            None if self.is_in_file(path) => self.file.clone(),
            None => "default".to_owned(),
        }
    }
}

fn is_list_of_tables(value: &Value) -> bool {
    value.as_array().is_some_and(|items| items.first().is_some_and(Value::is_table))
}
