//! The example of each use in config/ is a configuration that the program takes.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::path::PathBuf;
use test_support as support;

use promptmill::config::Config;
use support::cli::{Ended, Place};

const CONNECTION: &str = "Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;\
                          SharedAccessKey=a2V5LW9mLXRoZS1idXM=";

/// What the examples leave to the environment.
const SECRETS: [(&str, &str, &str); 4] = [
    ("azure-keys.toml", "PROMPTMILL__QUEUE__SERVICE_BUS__CONNECTION_STRING", CONNECTION),
    ("azure-keys.toml", "PROMPTMILL__STORE__COSMOS__CREDENTIAL__KEY", "a2V5LW9mLWNvc21vcw=="),
    ("azure-keys.toml", "AZURE_OPENAI_API_KEY", "key-of-openai"),
    ("api-management.toml", "APIM_KEY", "key-of-apim"),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn examples() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let is_example = |name: &String| name.ends_with(".toml") && name != "prices.toml";
    let mut names: Vec<_> = names.filter(is_example).collect();
    names.sort();
    names
}

#[test]
fn every_example_is_taken_whole_and_its_secrets_stay_hidden() {
    for name in examples() {
        let place = Place::new();
        let path = folder().join(&name);
        let mut command = place.command(&["--config", path.to_str().unwrap(), "config"]);
        for (of, variable, secret) in SECRETS {
            if of == name {
                command.env(variable, secret);
            }
        }
        let ended = Ended::from(command.output().unwrap());
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.err);
        for (_, _, secret) in SECRETS {
            assert!(!ended.out.contains(secret), "{name} shows {secret}");
        }
        assert!(ended.out.parse::<toml::Table>().is_ok(), "{name}: {}", ended.out);
    }
}

#[test]
fn every_example_names_endpoints_that_can_be_called() {
    for name in examples() {
        let given = SECRETS.into_iter().filter(|(of, _, _)| *of == name);
        let variables = given.map(|(_, variable, secret)| (variable.into(), secret.into()));
        let mut config = Config::load(Some(&folder().join(&name)), variables).unwrap();
        // The variables of keys are this process's own, and not set here.
        config.deployments.iter_mut().for_each(|deployment| deployment.key_env = None);
        assert!(!config.targets().unwrap().is_empty(), "{name}");
    }
}

#[test]
fn the_readme_names_every_example() {
    let readme = std::fs::read_to_string(folder().with_file_name("README.md")).unwrap();
    for name in examples() {
        assert!(readme.contains(&format!("config/{name}")), "{name}");
    }
}

#[test]
fn one_start_tells_every_fault_of_file_and_environment_before_anything_is_enqueued() {
    let place = Place::new();
    place.write("in.jsonl", support::cli::chats(1));
    let text = "[worker]\nmax_trys = 3\n[[deployments]]\nendpoint = \"contoso\"\ntpm = 0\n";
    place.write("promptmill.toml", text);
    let mut command = place.command(&["enqueue", "in.jsonl"]);
    command.env("PROMPTMILL__POOL__SPILL_AFTER_SECONDS", "-1");
    let ended = Ended::from(command.output().unwrap());
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    for told in [
        "the configuration has 4 faults:",
        "worker.max_trys: unknown field `max_trys`, expected one of `max_tries`",
        "(promptmill.toml, line 2)",
        "deployments.0.endpoint: 'contoso' is not an endpoint",
        "(promptmill.toml, line 4)",
        "deployments.0.tpm must be at least 1 (promptmill.toml, line 5)",
        "spill_after_seconds must be from 0 to 86400 (PROMPTMILL__POOL__SPILL_AFTER_SECONDS)",
    ] {
        assert!(ended.err.contains(told), "{told}: {}", ended.err);
    }
    assert!(!place.path(".promptmill").exists(), "nothing may be opened");
}
