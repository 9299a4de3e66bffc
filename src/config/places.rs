//! Places of settings: the line of the file or the environment variable that set each key.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

/// Line of each key of a file, by the key's dotted path.
pub(super) type KeyLines = BTreeMap<String, usize>;

/// Returns the line of every key and list entry of a file.
pub(super) fn key_lines(text: &str, table: &DeTable<'_>) -> KeyLines {
    let mut lines = KeyLines::new();
    add_table(&mut lines, text, "", table);
    lines
}

/// Returns the number of the line in which a byte stands, from 1.
pub(super) fn line_at(text: &str, byte: usize) -> usize {
    let before = &text.as_bytes()[..byte.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Returns the place that set `key`: its own, that of a part of it, or that of what it lies in.
pub(super) fn place_of(
    key: &str,
    file: &str,
    lines: &KeyLines,
    variables: &BTreeMap<String, String>,
) -> Option<String> {
    let mut outer = key;
    loop {
        if let Some(variable) = variables.get(outer) {
            return Some(variable.clone());
        }
        if let Some(line) = lines.get(outer) {
            return Some(format!("{file}, line {line}"));
        }
        let inner = format!("{outer}.");
        let parts: Vec<_> = variables.iter().filter(|(path, _)| path.starts_with(&inner)).collect();
        if !parts.is_empty() {
            let names: Vec<_> = parts.into_iter().map(|(_, name)| name.as_str()).collect();
            return Some(names.join(", "));
        }
        outer = outer.rsplit_once('.')?.0;
    }
}

fn add_table(lines: &mut KeyLines, text: &str, path: &str, table: &DeTable<'_>) {
    for (key, value) in table {
        let name = key.get_ref();
        let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        lines.insert(path.clone(), line_at(text, key.span().start));
        add_value(lines, text, &path, value.get_ref());
    }
}

fn add_value(lines: &mut KeyLines, text: &str, path: &str, value: &DeValue<'_>) {
    match value {
        DeValue::Table(inner) => add_table(lines, text, path, inner),
        DeValue::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                let path = format!("{path}.{n}");
                lines.insert(path.clone(), line_at(text, item.span().start));
                add_value(lines, text, &path, item.get_ref());
            }
        }
        _ => {}
    }
}
