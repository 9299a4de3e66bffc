//! Divides a document into parts, each the subject of one request.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::recipe::Recipe;
use super::split::{SplitOptions, split};
use reader::{Document, DocumentContent};

/// Subject of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentPart {
    pub text: String,
    /// Headings above it, outermost first, joined by ` > `.
    pub heading: String,
    /// Fields, if it is a row of a table.
    pub row: Option<Map<String, Value>>,
    pub image: Option<PartImage>,
}

/// An image in the form sent to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartImage {
    pub media_type: String,
    pub bytes: Bytes,
}

/// Returns a part for each row of a table, one for an image, and those of a split text.
pub fn parts(document: Document, recipe: &Recipe) -> Vec<DocumentPart> {
    match document.content {
        DocumentContent::Text { text, markdown } => parts_of_text(text, markdown, recipe),
        DocumentContent::Rows(rows) => rows.into_iter().map(part_of_row).collect(),
        DocumentContent::Image { media_type, bytes } => {
            let image = PartImage { media_type, bytes };
            let (text, heading) = (String::new(), String::new());
            vec![DocumentPart { text, heading, row: None, image: Some(image) }]
        }
    }
}

fn parts_of_text(text: String, headings: bool, recipe: &Recipe) -> Vec<DocumentPart> {
    let part = |text, heading| DocumentPart { text, heading, row: None, image: None };
    let Some(tokens) = recipe.part_tokens else { return vec![part(text, String::new())] };
    let cut = SplitOptions { max_tokens: tokens, overlap_tokens: recipe.overlap_tokens, headings };
    let pieces = split(&text, cut, &|text| tokens::count(text));
    pieces.into_iter().map(|piece| part(piece.text, piece.heading)).collect()
}

/// Returns a part whose text has a line for each field that is not empty.
fn part_of_row(row: Map<String, Value>) -> DocumentPart {
    let line = |(name, value): (&String, &Value)| match value {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(format!("{name}: {text}\n")),
        Value::Null => None,
        other => Some(format!("{name}: {other}\n")),
    };
    let text = row.iter().filter_map(line).collect();
    DocumentPart { text, heading: String::new(), row: Some(row), image: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cut(content: DocumentContent, recipe: &str) -> Vec<DocumentPart> {
        let recipe = toml::from_str(&format!("model = \"m\"\nprompt = \"p\"\n{recipe}")).unwrap();
        parts(Document { content, metadata: Map::new() }, &recipe)
    }

    #[test]
    fn a_table_has_a_part_for_each_row() {
        let row = json!({"name": "佐藤", "age": 7, "note": "", "none": null});
        let rows = vec![row.as_object().unwrap().clone(); 2];
        let parts = cut(DocumentContent::Rows(rows), "part_tokens = 1");
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].text, "age: 7\nname: 佐藤\n");
        assert_eq!(parts[0].row.as_ref().unwrap()["age"], 7);
    }

    #[test]
    fn a_text_is_whole_where_the_recipe_cuts_none() {
        let text =
            || DocumentContent::Text { text: "# A\n\none\n\n# B\n\ntwo\n".into(), markdown: true };
        assert_eq!(cut(text(), "").len(), 1);
        let parts = cut(text(), "part_tokens = 6");
        assert_eq!((parts.len(), parts[1].heading.as_str()), (2, "B"));
    }
}
