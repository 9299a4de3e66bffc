//! Functions and schemas: the figures of OpenAI's cookbook ("How to count tokens with tiktoken").
//!
//! The service writes a function in a form of its own, so white space and the order of keys cost
//! nothing. The cookbook knows one level of properties; deeper ones count alike. A schema for the
//! answer counts as a function without a name; for both the bill may differ by some tokens.

use serde_json::value::RawValue;

use super::fields::{JsonObject, items};

const PROPERTIES: usize = 3;
const PROPERTY: usize = 3;
const ENUM_ITEM: usize = 3;
const END: usize = 12;

/// Deepest property that is looked at.
const DEEPEST: usize = 16;

/// Counts the functions of a model.
pub(super) struct FunctionCounter<'c> {
    pub(super) count: &'c dyn Fn(&str) -> usize,
    /// Tokens around a function: 10 for the models of the encoding cl100k, 7 since.
    pub(super) around: usize,
}

impl FunctionCounter<'_> {
    /// Counts a list of tools or functions.
    pub(super) fn tools(&self, list: &RawValue) -> usize {
        let all: usize = items(list).into_iter().map(|tool| self.tool(tool)).sum();
        if all == 0 { 0 } else { all + END }
    }

    /// Counts a schema that the answer is to have: `response_format` or `text.format`.
    pub(super) fn format(&self, format: &JsonObject<'_>) -> usize {
        // Chat nests it, Responses does not.
        let nested = format.object("json_schema");
        let schema = nested.as_ref().unwrap_or(format);
        schema.object("schema").map_or(0, |schema_of| {
            let name = self.line(&[schema.text("name"), schema.text("description")]);
            self.around + name + self.properties(&schema_of, 0) + END
        })
    }

    fn tool(&self, raw: &RawValue) -> usize {
        let Some(tool) = JsonObject::read(raw.get()) else { return 0 };
        // Chat's tools nest the function; those of Responses and `functions` do not.
        let nested = tool.object("function");
        let function = nested.as_ref().unwrap_or(&tool);
        if function.get("name").is_none() {
            // A tool that the service runs: the model reads a few words of it.
            return (self.count)(&compact(raw));
        }
        let name = self.line(&[function.text("name"), function.text("description")]);
        let parameters = function.object("parameters");
        self.around + name + parameters.map_or(0, |parameters| self.properties(&parameters, 0))
    }

    fn properties(&self, schema: &JsonObject<'_>, depth: usize) -> usize {
        let Some(properties) = schema.object("properties").filter(|_| depth < DEEPEST) else {
            return 0;
        };
        let each = properties.iter().map(|(name, raw)| self.property(name, raw, depth));
        match each.sum::<usize>() {
            0 => 0,
            all => PROPERTIES + all,
        }
    }

    fn property(&self, name: &str, raw: &RawValue, depth: usize) -> usize {
        let Some(property) = JsonObject::read(raw.get()) else { return 0 };
        let values = property.get("enum").map_or_else(Vec::new, items);
        let values: usize = values
            .iter()
            .map(|value| ENUM_ITEM + (self.count)(value.get().trim_matches('"')))
            .sum();
        let line = [Some(name.into()), property.text("type"), property.text("description")];
        // The first value of an enum has no separator.
        let values = values.saturating_sub(if values > 0 { ENUM_ITEM } else { 0 });
        let items = property.object("items");
        let below = self.properties(&property, depth + 1)
            + items.map_or(0, |items| self.properties(&items, depth + 1));
        PROPERTY + values + self.line(&line) + below
    }

    /// Counts texts with colons between them, without a full stop at the end.
    fn line(&self, texts: &[Option<std::borrow::Cow<'_, str>>]) -> usize {
        let texts: Vec<&str> =
            texts.iter().map(|text| text.as_deref().unwrap_or_default()).collect();
        let line = texts.join(":");
        (self.count)(line.strip_suffix('.').unwrap_or(&line))
    }
}

/// Returns a JSON value without white space between its parts.
pub(super) fn compact(raw: &RawValue) -> String {
    let value: Result<serde_json::Value, _> = serde_json::from_str(raw.get());
    value.map_or_else(|_| raw.get().to_owned(), |value| value.to_string())
}
