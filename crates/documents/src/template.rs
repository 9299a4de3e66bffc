//! Fills in templates to make the messages of requests. Unknown names are refused.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value, json};

use super::parts::DocumentPart;
use super::recipe::{Recipe, RecipeExample};

/// Facts about a document beside its text.
pub struct DocumentContext<'a> {
    /// Its path under the source.
    pub document: &'a str,
    /// Metadata of its format: title, author and the like.
    pub metadata: &'a Map<String, Value>,
}

/// Names allowed in the templates of parts.
const PART_VARIABLES: [&str; 8] =
    ["text", "heading", "document", "name", "part", "parts", "metadata", "row"];

/// Names allowed in the templates of `[reduce]`.
const REDUCE_VARIABLES: [&str; 6] = ["answers", "document", "name", "metadata", "level", "last"];

/// Reason why a template can't be filled in.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("'{name}' is not a valid template: {what}")]
    Wrong { name: &'static str, what: String },
    #[error("'{name}' names '{unknown}', which is unknown; it can name {known}")]
    Unknown { name: &'static str, unknown: String, known: String },
    #[error(
        "'{name}' can't be filled in: {what}; values that some documents lack need a default(…)"
    )]
    Fill { name: &'static str, what: String },
}

/// A recipe's templates, parsed once.
pub struct RecipeTemplates<'r> {
    environment: Environment<'r>,
    recipe: &'r Recipe,
}

/// Checks that all templates of a recipe can be parsed and use only known names.
///
/// # Errors
/// Names the first that is wrong.
pub fn check(recipe: &Recipe) -> Result<(), TemplateError> {
    let templates = RecipeTemplates::new(recipe)?;
    let of_parts = [("prompt", &PART_VARIABLES[..]), ("system", &PART_VARIABLES)];
    let of_answers =
        [("reduce.prompt", &REDUCE_VARIABLES[..]), ("reduce.system", &REDUCE_VARIABLES)];
    for (name, known) in of_parts.into_iter().chain(of_answers) {
        let Ok(template) = templates.environment.get_template(name) else { continue };
        let named = template.undeclared_variables(false);
        let mut unknown: Vec<_> = named.into_iter().filter(|n| !known.contains(&&**n)).collect();
        unknown.sort_unstable();
        if let Some(unknown) = unknown.into_iter().next() {
            return Err(TemplateError::Unknown { name, unknown, known: known.join(", ") });
        }
    }
    Ok(())
}

impl<'r> RecipeTemplates<'r> {
    /// # Errors
    /// If one of them can't be read.
    pub fn new(recipe: &'r Recipe) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let reduce = recipe.reduce.as_ref();
        let texts = [
            ("system", recipe.system.as_deref()),
            ("prompt", Some(recipe.prompt.as_str())),
            ("reduce.system", reduce.and_then(|reduce| reduce.system.as_deref())),
            ("reduce.prompt", reduce.map(|reduce| reduce.prompt.as_str())),
        ];
        for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text?))) {
            let wrong =
                |error: minijinja::Error| TemplateError::Wrong { name, what: error_text(&error) };
            environment.add_template(name, text).map_err(wrong)?;
        }
        Ok(Self { environment, recipe })
    }

    /// Returns the request body about a part.
    ///
    /// # Errors
    /// If a template needs something that this document lacks.
    pub fn part_request(
        &self,
        about: &DocumentContext<'_>,
        part: &DocumentPart,
        (number, of): (usize, usize),
    ) -> Result<Value, TemplateError> {
        let names = minijinja::context! {
            text => part.text.as_str(),
            heading => part.heading.as_str(),
            row => Serde(&part.row),
            part => number,
            parts => of,
            ..document_variables(about)
        };
        let mut messages = Vec::new();
        if self.recipe.system.is_some() {
            messages.push(message("system", self.fill("system", &names)?));
        }
        for RecipeExample { user, assistant } in &self.recipe.examples {
            messages.push(message("user", user.clone()));
            messages.push(message("assistant", assistant.clone()));
        }
        let prompt = self.fill("prompt", &names)?;
        messages.push(match &part.image {
            None => message("user", prompt),
            Some(picture) => {
                let data = BASE64.encode(&picture.bytes);
                let url = format!("data:{};base64,{data}", picture.media_type);
                json!({"role": "user", "content": [
                    {"type": "text", "text": prompt},
                    {"type": "image_url", "image_url": {"url": url}},
                ]})
            }
        });
        Ok(self.body(messages))
    }

    /// Returns the request body that combines answers; the recipe has a `[reduce]`.
    ///
    /// # Errors
    /// The same as those of [`Self::part_request`].
    pub fn reduce_request(
        &self,
        about: &DocumentContext<'_>,
        answers: &[String],
        (level, last): (u32, bool),
    ) -> Result<Value, TemplateError> {
        let names = minijinja::context! {
            answers => Serde(answers),
            level,
            last,
            ..document_variables(about)
        };
        let mut messages = Vec::new();
        let own_system = self.recipe.reduce.as_ref().is_some_and(|reduce| reduce.system.is_some());
        if own_system {
            messages.push(message("system", self.fill("reduce.system", &names)?));
        }
        messages.push(message("user", self.fill("reduce.prompt", &names)?));
        Ok(self.body(messages))
    }

    fn fill(&self, name: &'static str, names: &minijinja::Value) -> Result<String, TemplateError> {
        let failed =
            |error: minijinja::Error| TemplateError::Fill { name, what: error_text(&error) };
        self.environment.get_template(name).and_then(|t| t.render(names)).map_err(failed)
    }

    fn body(&self, messages: Vec<Value>) -> Value {
        let mut body = Map::from_iter([("model".to_owned(), json!(self.recipe.model))]);
        body.insert("messages".to_owned(), messages.into());
        body.extend(self.recipe.parameters.clone());
        if let Some(schema) = &self.recipe.schema {
            body.insert("response_format".to_owned(), schema.response_format());
        }
        body.into()
    }
}

/// Returns the request that asks once more, after an answer that did not fit its schema.
pub fn repair_request(body: &Value, answer: &str, fault: &str) -> Value {
    let mut body = body.clone();
    if let Some(messages) = body["messages"].as_array_mut() {
        messages.push(message("assistant", answer.to_owned()));
        let again = format!(
            "That answer does not fit the JSON schema: {fault}. \
             Answer again with JSON that fits it, and nothing else."
        );
        messages.push(message("user", again));
    }
    body
}

fn document_variables(about: &DocumentContext<'_>) -> minijinja::Value {
    let name = about.document.rsplit('/').next().unwrap_or_default();
    let metadata = Serde(about.metadata);
    minijinja::context! { document => about.document, name, metadata }
}

fn message(role: &str, content: String) -> Value {
    json!({"role": role, "content": content})
}

/// Returns the error and its line, without the excerpt of the template.
fn error_text(error: &minijinja::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        toml::from_str(&format!("name = \"r\"\nmodel = \"m\"\n{text}")).unwrap()
    }

    fn part(text: &str) -> DocumentPart {
        DocumentPart { text: text.into(), heading: "Top".into(), row: None, image: None }
    }

    fn about(metadata: &Map<String, Value>) -> DocumentContext<'_> {
        DocumentContext { document: "a/b.md", metadata }
    }

    #[test]
    fn examples_come_before_the_question() {
        let recipe = recipe(
            "system = \"Be brief\"\nprompt = \"{{ name }} {{ heading }} {{ part }}/{{ parts }}: {{ text }}\"\n\
             [[examples]]\nuser = \"{{ 1 }}\"\nassistant = \"uno\"\n[parameters]\ntemperature = 0",
        );
        let templates = RecipeTemplates::new(&recipe).unwrap();
        let body = templates.part_request(&about(&Map::new()), &part("one"), (1, 2)).unwrap();
        let expected = json!({"model": "m", "temperature": 0, "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "{{ 1 }}"},
            {"role": "assistant", "content": "uno"},
            {"role": "user", "content": "b.md Top 1/2: one"},
        ]});
        assert_eq!(body, expected);
    }

    #[test]
    fn a_name_that_there_is_not_is_found_before_any_document_is_read() {
        let said = check(&recipe("prompt = \"{{ txet }}\"")).unwrap_err().to_string();
        assert!(said.contains("'txet'") && said.contains("text, heading"), "{said}");
        let loops = "prompt = \"{% for key, v in metadata|items %}{{ key }}={{ v }}{% endfor %}{{ text }}\"";
        check(&recipe(loops)).unwrap();
        let reduce = "prompt = \"{{ text }}\"\n[reduce]\nprompt = \"{{ text }}\"";
        let said = check(&recipe(reduce)).unwrap_err().to_string();
        assert!(said.contains("'reduce.prompt' names 'text'"), "{said}");
        assert!(check(&recipe("prompt = \"{% if %}\"")).is_err());
    }

    #[test]
    fn what_a_document_lacks_is_its_fault_alone() {
        let recipe = recipe("prompt = \"{{ metadata.title }}: {{ text }}\"");
        let templates = RecipeTemplates::new(&recipe).unwrap();
        let fill = |metadata: Value| {
            let metadata = metadata.as_object().unwrap().clone();
            templates.part_request(&about(&metadata), &part("x"), (1, 1))
        };
        assert_eq!(fill(json!({"title": "T"})).unwrap()["messages"][0]["content"], "T: x");
        let said = fill(json!({})).unwrap_err().to_string();
        assert!(said.contains("default"), "{said}");
    }

    #[test]
    fn answers_are_combined_and_repaired() {
        let recipe = recipe(
            "prompt = \"{{ text }}\"\npart_tokens = 9\n[reduce]\n\
             prompt = \"{% for a in answers %}<{{ a }}>{% endfor %}{% if last %}!{% endif %}\"",
        );
        let templates = RecipeTemplates::new(&recipe).unwrap();
        let answers = ["a".to_owned(), "b".to_owned()];
        let none = Map::new();
        let body = templates.reduce_request(&about(&none), &answers, (1, true)).unwrap();
        assert_eq!(body["messages"], json!([{"role": "user", "content": "<a><b>!"}]));
        let again = repair_request(&body, "no", "it is not JSON");
        let last = again["messages"][2]["content"].as_str().unwrap();
        assert!(last.contains("it is not JSON"), "{last}");
        assert_eq!(again["messages"][1], json!({"role": "assistant", "content": "no"}));
    }
}
