//! Templates become the messages of requests. Only names that there are may stand in them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value, json};

use super::parts::Part;
use super::recipe::{Example, Recipe};

/// What is known of a document beside its text.
pub struct About<'a> {
    /// Its path under the source.
    pub document: &'a str,
    /// What its format knows: title, author and the like.
    pub metadata: &'a Map<String, Value>,
}

/// Names in the templates of parts.
const OF_PARTS: [&str; 8] =
    ["text", "heading", "document", "name", "part", "parts", "metadata", "row"];

/// Names in the templates of `[reduce]`.
const OF_ANSWERS: [&str; 6] = ["answers", "document", "name", "metadata", "level", "last"];

/// Why a template can't be filled in.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("'{name}' is no template: {what}")]
    Wrong { name: &'static str, what: String },
    #[error("'{name}' names '{unknown}', which there is not: it can name {known}")]
    Unknown { name: &'static str, unknown: String, known: String },
    #[error("'{name}' can't be filled in: {what}; what some documents lack needs a default(…)")]
    Fill { name: &'static str, what: String },
}

/// A recipe's templates, read once.
pub struct Templates<'r> {
    environment: Environment<'r>,
    recipe: &'r Recipe,
}

/// Whether all templates of a recipe can be read and name only what there is.
///
/// # Errors
/// Names the first that is wrong.
pub fn check(recipe: &Recipe) -> Result<(), TemplateError> {
    let templates = Templates::new(recipe)?;
    let of_parts = [("prompt", &OF_PARTS[..]), ("system", &OF_PARTS)];
    let of_answers = [("reduce.prompt", &OF_ANSWERS[..]), ("reduce.system", &OF_ANSWERS)];
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

impl<'r> Templates<'r> {
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
            let wrong = |error: minijinja::Error| TemplateError::Wrong { name, what: said(&error) };
            environment.add_template(name, text).map_err(wrong)?;
        }
        Ok(Self { environment, recipe })
    }

    /// The request body about a part.
    ///
    /// # Errors
    /// If a template asks for what this document lacks.
    pub fn about_part(
        &self,
        about: &About<'_>,
        part: &Part,
        (number, of): (usize, usize),
    ) -> Result<Value, TemplateError> {
        let names = minijinja::context! {
            text => part.text.as_str(),
            heading => part.heading.as_str(),
            row => Serde(&part.row),
            part => number,
            parts => of,
            ..of_document(about)
        };
        let mut messages = Vec::new();
        if self.recipe.system.is_some() {
            messages.push(message("system", self.fill("system", &names)?));
        }
        for Example { user, assistant } in &self.recipe.examples {
            messages.push(message("user", user.clone()));
            messages.push(message("assistant", assistant.clone()));
        }
        let prompt = self.fill("prompt", &names)?;
        messages.push(match &part.picture {
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

    /// The request body that combines answers; the recipe has a `[reduce]`.
    ///
    /// # Errors
    /// As [`Self::about_part`].
    pub fn about_answers(
        &self,
        about: &About<'_>,
        answers: &[String],
        (level, last): (u32, bool),
    ) -> Result<Value, TemplateError> {
        let names = minijinja::context! {
            answers => Serde(answers),
            level,
            last,
            ..of_document(about)
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
        let failed = |error: minijinja::Error| TemplateError::Fill { name, what: said(&error) };
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

/// The request that asks once more, after an answer that did not fit its schema.
pub fn repair(body: &Value, answer: &str, fault: &str) -> Value {
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

fn of_document(about: &About<'_>) -> minijinja::Value {
    let name = about.document.rsplit('/').next().unwrap_or_default();
    let metadata = Serde(about.metadata);
    minijinja::context! { document => about.document, name, metadata }
}

fn message(role: &str, content: String) -> Value {
    json!({"role": role, "content": content})
}

/// The error and its line, without the excerpt of the template.
fn said(error: &minijinja::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        toml::from_str(&format!("name = \"r\"\nmodel = \"m\"\n{text}")).unwrap()
    }

    fn part(text: &str) -> Part {
        Part { text: text.into(), heading: "Top".into(), row: None, picture: None }
    }

    fn about(metadata: &Map<String, Value>) -> About<'_> {
        About { document: "a/b.md", metadata }
    }

    #[test]
    fn examples_come_before_the_question() {
        let recipe = recipe(
            "system = \"Be brief\"\nprompt = \"{{ name }} {{ heading }} {{ part }}/{{ parts }}: {{ text }}\"\n\
             [[examples]]\nuser = \"{{ 1 }}\"\nassistant = \"uno\"\n[parameters]\ntemperature = 0",
        );
        let templates = Templates::new(&recipe).unwrap();
        let body = templates.about_part(&about(&Map::new()), &part("one"), (1, 2)).unwrap();
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
        let templates = Templates::new(&recipe).unwrap();
        let fill = |metadata: Value| {
            let metadata = metadata.as_object().unwrap().clone();
            templates.about_part(&about(&metadata), &part("x"), (1, 1))
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
        let templates = Templates::new(&recipe).unwrap();
        let answers = ["a".to_owned(), "b".to_owned()];
        let none = Map::new();
        let body = templates.about_answers(&about(&none), &answers, (1, true)).unwrap();
        assert_eq!(body["messages"], json!([{"role": "user", "content": "<a><b>!"}]));
        let again = repair(&body, "no", "it is not JSON");
        let last = again["messages"][2]["content"].as_str().unwrap();
        assert!(last.contains("it is not JSON"), "{last}");
        assert_eq!(again["messages"][1], json!({"role": "assistant", "content": "no"}));
    }
}
