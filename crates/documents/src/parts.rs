//! A document becomes parts: what one request is about.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::recipe::Recipe;
use super::split::{Cut, split};
use reader::{Content, Document};

/// What a request is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub text: String,
    /// The headings that it stands under, outermost first, joined by ` > `.
    pub heading: String,
    /// The fields, where it is a row of a table.
    pub row: Option<Map<String, Value>>,
    pub picture: Option<Picture>,
}

/// A picture, as the model gets to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub media_type: String,
    pub bytes: Bytes,
}

/// A table has a part for each row, a picture is one, and a text is cut as the recipe says.
pub fn parts(document: Document, recipe: &Recipe) -> Vec<Part> {
    match document.content {
        Content::Text { text, markdown } => parts_of_text(text, markdown, recipe),
        Content::Rows(rows) => rows.into_iter().map(part_of_row).collect(),
        Content::Image { media_type, bytes } => {
            let picture = Picture { media_type, bytes };
            let (text, heading) = (String::new(), String::new());
            vec![Part { text, heading, row: None, picture: Some(picture) }]
        }
    }
}

fn parts_of_text(text: String, headings: bool, recipe: &Recipe) -> Vec<Part> {
    let part = |text, heading| Part { text, heading, row: None, picture: None };
    let Some(tokens) = recipe.part_tokens else { return vec![part(text, String::new())] };
    let cut = Cut { tokens, overlap: recipe.overlap_tokens, headings };
    let pieces = split(&text, cut, &|text| bpe_openai::o200k_base().count(text));
    pieces.into_iter().map(|piece| part(piece.text, piece.heading)).collect()
}

/// Its text is a line for each field that is not empty.
fn part_of_row(row: Map<String, Value>) -> Part {
    let line = |(name, value): (&String, &Value)| match value {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(format!("{name}: {text}\n")),
        Value::Null => None,
        other => Some(format!("{name}: {other}\n")),
    };
    let text = row.iter().filter_map(line).collect();
    Part { text, heading: String::new(), row: Some(row), picture: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cut(content: Content, recipe: &str) -> Vec<Part> {
        let recipe = toml::from_str(&format!("model = \"m\"\nprompt = \"p\"\n{recipe}")).unwrap();
        parts(Document { content, metadata: Map::new() }, &recipe)
    }

    #[test]
    fn a_table_has_a_part_for_each_row() {
        let row = json!({"name": "佐藤", "age": 7, "note": "", "none": null});
        let rows = vec![row.as_object().unwrap().clone(); 2];
        let parts = cut(Content::Rows(rows), "part_tokens = 1");
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].text, "age: 7\nname: 佐藤\n");
        assert_eq!(parts[0].row.as_ref().unwrap()["age"], 7);
    }

    #[test]
    fn a_text_is_whole_where_the_recipe_cuts_none() {
        let text = || Content::Text { text: "# A\n\none\n\n# B\n\ntwo\n".into(), markdown: true };
        assert_eq!(cut(text(), "").len(), 1);
        let parts = cut(text(), "part_tokens = 6");
        assert_eq!((parts.len(), parts[1].heading.as_str()), (2, "B"));
    }
}
