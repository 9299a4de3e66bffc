//! Model deployment: its name, the model properties derived from the name, and its capacity.
//!
//! Neighbours: `capacity` does its accounting, `deployments` finds it by name.

use std::sync::Mutex;

use bpe_openai::Tokenizer;
use hyper::header::HeaderValue;
use xxhash_rust::xxh3::xxh3_64;

use super::capacity::DeploymentCapacity;
use super::spec::is_deployment_name;

/// Model names and the version that answers under each; a longer name comes before its prefix.
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

/// Name prefixes of reasoning models.
const REASONING_PREFIXES: [&str; 4] = ["o1", "o3", "o4", "gpt-5"];

#[derive(Debug)]
pub struct SimulatedDeployment {
    pub name: HeaderValue,
    /// Model that answers report: the version, not the deployment's name.
    pub version: Box<str>,
    pub is_reasoning: bool,
    uses_cl100k: bool,
    /// Separates the prompt caches of deployments.
    pub cache_salt: u64,
    pub capacity: Mutex<DeploymentCapacity>,
}

impl SimulatedDeployment {
    /// Returns `None` if the name is not a valid deployment name.
    pub fn new(name: &str, capacity: DeploymentCapacity) -> Option<Self> {
        if !is_deployment_name(name) {
            return None;
        }
        let version = VERSIONS.iter().find(|(model, _)| name == *model);
        Some(Self {
            name: HeaderValue::from_str(name).ok()?,
            version: version.map_or(name, |(_, version)| version).into(),
            is_reasoning: REASONING_PREFIXES.iter().any(|model| name.starts_with(model)),
            uses_cl100k: counts_with_cl100k(name),
            cache_salt: xxh3_64(name.as_bytes()),
            capacity: Mutex::new(capacity),
        })
    }

    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokenizer().count(text)
    }

    fn tokenizer(&self) -> &'static Tokenizer {
        if self.uses_cl100k { bpe_openai::cl100k_base() } else { bpe_openai::o200k_base() }
    }
}

/// Returns true for models from before GPT-4o, which count with `cl100k_base`.
fn counts_with_cl100k(name: &str) -> bool {
    let is_gpt_4 = name == "gpt-4" || name.starts_with("gpt-4-");
    is_gpt_4
        || ["gpt-35-turbo", "gpt-3.5-turbo", "text-embedding-"].iter().any(|m| name.starts_with(m))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::settings::SimulatorSettings;
    use super::*;

    fn deployment(name: &str) -> Option<SimulatedDeployment> {
        let SimulatorSettings { window, request_slice, .. } = SimulatorSettings::default();
        let profile = SimulatorSettings::default().profile();
        SimulatedDeployment::new(
            name,
            DeploymentCapacity::new(Duration::ZERO, profile, window, request_slice),
        )
    }

    #[test]
    fn the_name_tells_the_model() {
        let about = |name: &str| {
            let deployment = deployment(name).unwrap();
            (deployment.version.to_string(), deployment.is_reasoning, deployment.uses_cl100k)
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
