//! A model deployment: its name, what the name tells about the model, and what it can take.
//!
//! Neighbours: `capacity` counts for it, `deployments` finds it by name.

use std::sync::Mutex;

use bpe_openai::Tokenizer;
use hyper::header::HeaderValue;
use xxhash_rust::xxh3::xxh3_64;

use super::capacity::Capacity;
use super::settings::is_deployment_name;

/// Model names and the version that answers under them; a longer name stands before its beginning.
const VERSIONS: [(&str, &str); 12] = [
    ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
    ("gpt-4o", "gpt-4o-2024-08-06"),
    ("gpt-4.1-nano", "gpt-4.1-nano-2025-04-14"),
    ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"),
    ("gpt-4.1", "gpt-4.1-2025-04-14"),
    ("gpt-5-nano", "gpt-5-nano-2025-08-07"),
    ("gpt-5-mini", "gpt-5-mini-2025-08-07"),
    ("gpt-5", "gpt-5-2025-08-07"),
    ("o4-mini", "o4-mini-2025-04-16"),
    ("o3-mini", "o3-mini-2025-01-31"),
    ("o3", "o3-2025-04-16"),
    ("o1", "o1-2024-12-17"),
];

/// Names that begin like this are models that think before they answer.
const REASONING: [&str; 4] = ["o1", "o3", "o4", "gpt-5"];

#[derive(Debug)]
pub struct Deployment {
    pub name: HeaderValue,
    /// What answers report as their model: the version, not the deployment's name.
    pub version: Box<str>,
    pub reasons: bool,
    older_tokens: bool,
    /// Keeps the prompt caches of deployments apart.
    pub cache_salt: u64,
    pub capacity: Mutex<Capacity>,
}

impl Deployment {
    /// `None` if nothing can be deployed under this name.
    pub fn new(name: &str, capacity: Capacity) -> Option<Self> {
        if !is_deployment_name(name) {
            return None;
        }
        let version = VERSIONS.iter().find(|(model, _)| name == *model);
        Some(Self {
            name: HeaderValue::from_str(name).ok()?,
            version: version.map_or(name, |(_, version)| version).into(),
            reasons: REASONING.iter().any(|model| name.starts_with(model)),
            older_tokens: has_older_tokens(name),
            cache_salt: xxh3_64(name.as_bytes()),
            capacity: Mutex::new(capacity),
        })
    }

    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer().count(text)
    }

    fn tokenizer(&self) -> &'static Tokenizer {
        if self.older_tokens { bpe_openai::cl100k_base() } else { bpe_openai::o200k_base() }
    }
}

/// Models from before GPT-4o count with `cl100k_base`.
fn has_older_tokens(name: &str) -> bool {
    let is_gpt_4 = name == "gpt-4" || name.starts_with("gpt-4-");
    is_gpt_4
        || ["gpt-35-turbo", "gpt-3.5-turbo", "text-embedding-"].iter().any(|m| name.starts_with(m))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::settings::Settings;
    use super::*;

    fn deployment(name: &str) -> Option<Deployment> {
        let Settings { window, request_slice, .. } = Settings::default();
        let profile = Settings::default().profile();
        Deployment::new(name, Capacity::new(Duration::ZERO, profile, window, request_slice))
    }

    #[test]
    fn the_name_tells_the_model() {
        let about = |name: &str| {
            let deployment = deployment(name).unwrap();
            (deployment.version.to_string(), deployment.reasons, deployment.older_tokens)
        };
        assert_eq!(about("gpt-4o-mini"), ("gpt-4o-mini-2024-07-18".to_owned(), false, false));
        assert_eq!(about("gpt-5-nightly"), ("gpt-5-nightly".to_owned(), true, false));
        assert_eq!(about("gpt-4"), ("gpt-4".to_owned(), false, true));
        assert!(about("text-embedding-3-small").2);
    }

    #[test]
    fn a_name_that_would_need_escaping_is_none() {
        assert!(deployment("a\"b").is_none());
        assert!(deployment("").is_none());
    }
}
