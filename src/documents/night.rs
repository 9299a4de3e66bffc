//! One night's prompts: files found, read, cut and put into the template.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::read::{self, Content, Limits, ReadError};
use super::recipe::{Example, Recipe};
use super::split::{Cut, Part, split};

/// Why no night could be planned.
#[derive(Debug, thiserror::Error)]
pub enum NightError {
    #[error("'{glob}' in the recipe's include is no glob: {source}")]
    Glob { glob: String, source: glob::PatternError },
    #[error("the source {} is no folder", path.display())]
    NoFolder { path: PathBuf },
    #[error("the recipe's {name} can't be filled in: {what}")]
    Template { name: &'static str, what: String },
    #[error("a request can't be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// A document without text, and why.
#[derive(Debug)]
pub struct Unread {
    pub document: String,
    pub why: ReadError,
}

/// A request, and the parts of documents that ask it.
#[derive(Debug)]
pub struct Prompt {
    /// The hash of the body, in hexadecimal digits.
    pub key: String,
    /// The request body, JSON.
    pub body: String,
    /// Tokens of the messages' texts by o200k_base.
    pub tokens: u64,
    /// Each with its document's path under the source, its place from 1, and how many there are.
    pub places: Vec<Value>,
}

/// All prompts, held in memory.
#[derive(Debug, Default)]
pub struct Night {
    pub prompts: Vec<Prompt>,
    pub documents: u64,
    /// Parts of documents; more than prompts where some are equal.
    pub parts: u64,
    pub unread: Vec<Unread>,
}

/// Reads the folder and fills in the templates.
///
/// # Errors
/// If the folder, a glob or a template is wrong; a document that can't be read is in the result.
pub fn gather(source: &Path, recipe: &Recipe) -> Result<Night, NightError> {
    let templates = templates(recipe)?;
    let mut night = Night::default();
    let mut known = HashMap::new();
    for path in files(source, &recipe.include)? {
        let document = path.strip_prefix(source).unwrap_or(&path).to_string_lossy().into_owned();
        night.documents += 1;
        let text = match text(&path, &document, recipe) {
            Ok(text) => text,
            Err(why) => {
                night.unread.push(Unread { document, why });
                continue;
            }
        };
        let parts = parts(&path, text, recipe);
        for (n, part) in parts.iter().enumerate() {
            let place = json!({"document": document, "part": n + 1, "parts": parts.len()});
            let prompt = prompt(recipe, &templates, part, &place)?;
            night.parts += 1;
            let at = *known.entry(prompt.key.clone()).or_insert(night.prompts.len());
            if at == night.prompts.len() {
                night.prompts.push(prompt);
            }
            night.prompts[at].places.push(place);
        }
    }
    Ok(night)
}

impl Night {
    /// Writes the prompts as a batch file, whose lines name their documents in `metadata`.
    ///
    /// # Errors
    /// If `to` fails.
    pub fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        for Prompt { key, body, places, .. } in &self.prompts {
            let metadata = json!({ "places": places });
            writeln!(
                to,
                r#"{{"custom_id":"{key}","method":"POST","url":"/v1/chat/completions","body":{body},"metadata":{metadata}}}"#
            )?;
        }
        Ok(())
    }
}

fn templates(recipe: &Recipe) -> Result<Environment<'_>, NightError> {
    let mut templates = Environment::new();
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    let system = recipe.system.as_deref().map(|text| ("system", text));
    for (name, text) in system.into_iter().chain([("prompt", recipe.prompt.as_str())]) {
        templates.add_template(name, text).map_err(|error| failed(name, &error))?;
    }
    Ok(templates)
}

fn failed(name: &'static str, error: &minijinja::Error) -> NightError {
    NightError::Template { name, what: error.to_string() }
}

/// All files that a glob finds, each once, in the order of their names.
fn files(source: &Path, include: &[String]) -> Result<Vec<PathBuf>, NightError> {
    if !source.is_dir() {
        return Err(NightError::NoFolder { path: source.to_owned() });
    }
    let folder = glob::Pattern::escape(&source.to_string_lossy());
    let mut files = Vec::new();
    for glob in include {
        let found = glob::glob(&format!("{folder}/{glob}"))
            .map_err(|source| NightError::Glob { glob: glob.clone(), source })?;
        // A folder that can't be listed comes as a path too, and is told when it is read.
        let paths = found.map(|path| path.unwrap_or_else(|error| error.path().to_owned()));
        files.extend(paths.filter(|path| path.is_file() || std::fs::read_dir(path).is_err()));
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// A document's text, rows as JSON lines.
fn text(path: &Path, document: &str, recipe: &Recipe) -> Result<String, ReadError> {
    let limits = Limits { file_bytes: recipe.max_file_mib << 20, ..Limits::default() };
    match read::read(path, document, &limits)?.content {
        Content::Text { text, .. } => Ok(text),
        Content::Rows(rows) => {
            Ok(rows.into_iter().map(|row| format!("{}\n", json!(row))).collect())
        }
        Content::Image { media_type, .. } => Err(ReadError::Unsupported {
            kind: format!("an image ({media_type})"),
            mend: "leave it out by the recipe's include".into(),
        }),
    }
}

fn parts(path: &Path, text: String, recipe: &Recipe) -> Vec<Part> {
    let extension = path.extension().unwrap_or_default();
    let headings =
        ["md", "markdown"].iter().any(|markdown| extension.eq_ignore_ascii_case(markdown));
    match recipe.part_tokens {
        Some(tokens) => {
            let cut = Cut { tokens, overlap: recipe.overlap_tokens, headings };
            split(&text, cut, &|text| bpe_openai::o200k_base().count(text))
        }
        None => vec![Part { text, heading: String::new() }],
    }
}

fn prompt(
    recipe: &Recipe,
    templates: &Environment<'_>,
    Part { text, heading }: &Part,
    place: &Value,
) -> Result<Prompt, NightError> {
    let number = |name: &str| place[name].as_u64().unwrap_or_default();
    let document = place["document"].as_str().unwrap_or_default();
    let (part, parts) = (number("part"), number("parts"));
    let names = minijinja::context! { text, heading, document, part, parts };
    let render = |name: &'static str| {
        let template = templates.get_template(name).map_err(|error| failed(name, &error))?;
        template.render(&names).map_err(|error| failed(name, &error))
    };
    let mut messages = Vec::new();
    let mut tokens = 0;
    let mut say = |role: &str, content: &str| {
        tokens += bpe_openai::o200k_base().count(content) as u64;
        messages.push(json!({"role": role, "content": content}));
    };
    if recipe.system.is_some() {
        say("system", &render("system")?);
    }
    for Example { user, assistant } in &recipe.examples {
        say("user", user);
        say("assistant", assistant);
    }
    say("user", &render("prompt")?);
    let mut body = Map::from_iter([("model".to_owned(), json!(recipe.model))]);
    body.insert("messages".to_owned(), messages.into());
    body.extend(recipe.parameters.clone());
    let body = serde_json::to_string(&body)?;
    let key = Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Prompt { key, body, tokens, places: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        toml::from_str(text).unwrap()
    }

    const PLAIN: &str = "model = \"m\"\nprompt = \"Sum up: {{ text }}\"\ninclude = [\"**/*.txt\"]";

    fn keys(night: &Night) -> Vec<String> {
        night.prompts.iter().map(|prompt| prompt.key.clone()).collect()
    }

    #[test]
    fn only_what_changed_has_a_new_name() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        put("a.txt", "one");
        put("b.txt", "two");
        put("same.txt", "one");
        put("broken.txt", "\0");
        put("other.bin", "not asked for");
        let first = gather(folder.path(), &recipe(PLAIN)).unwrap();
        assert_eq!((first.documents, first.parts, first.prompts.len()), (4, 3, 2));
        assert_eq!(first.unread[0].document, "broken.txt");
        assert_eq!(first.prompts[0].places.len(), 2, "equal parts are asked once");
        put("b.txt", "two, changed");
        let second = gather(folder.path(), &recipe(PLAIN)).unwrap();
        assert_eq!(keys(&first)[0], keys(&second)[0]);
        assert_ne!(keys(&first)[1], keys(&second)[1]);
        let warmer = format!("{PLAIN}\nparameters = {{ temperature = 1 }}");
        let third = gather(folder.path(), &recipe(&warmer)).unwrap();
        assert_ne!(keys(&second)[0], keys(&third)[0], "parameters count too");
    }

    #[test]
    fn examples_come_before_the_question_and_parts_know_their_heading() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.md"), "# Top\n\none\n\n# End\n\ntwo\n").unwrap();
        let text = "model = \"m\"\npart_tokens = 6\nsystem = \"Be brief\"\n\
                    prompt = \"{{ heading }}: {{ text }}\"\n\
                    [[examples]]\nuser = \"{{ 1 }}\"\nassistant = \"uno\"";
        let night = gather(folder.path(), &recipe(text)).unwrap();
        let asked = |n: usize| serde_json::from_str::<Value>(&night.prompts[n].body).unwrap();
        assert_eq!(
            asked(0)["messages"],
            json!([
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "{{ 1 }}"},
                {"role": "assistant", "content": "uno"},
                {"role": "user", "content": "Top: # Top\n\none\n\n"},
            ])
        );
        assert_eq!(asked(1)["messages"][3]["content"], "End: # End\n\ntwo\n");
    }

    #[test]
    fn an_undefined_name_in_a_template_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), "one").unwrap();
        let wrong = recipe("model = \"m\"\nprompt = \"{{ txet }}\"");
        let said = gather(folder.path(), &wrong).unwrap_err().to_string();
        assert!(said.contains("prompt") && said.contains("undefined"), "{said}");
    }
}
