//! The one configuration: defaults, a TOML file, the environment, then flags.
//!
//! Every key of the file can be set by a variable `PROMPTMILL__SECTION__KEY`. Unknown keys are
//! errors, so that a misspelt setting is found at start and not by its missing effect. All faults
//! are told at once.
//! `layers` merges the environment over the file; `explain` shows the origin of each value.

mod deployment;
mod error;
mod explain;
mod interpret;
mod layers;
mod missing_feature;
mod places;
mod sections;
mod settings;

pub use deployment::{DEFAULT_CONCURRENCY, DeploymentConfig};
pub use error::{ConfigError, ConfigFault, ConfigFaults};
pub use layers::{ConfigLayers, DEFAULT_FILE};
pub use sections::{
    InputConfig, LogConfig, LogFormat, PoolConfig, PricesConfig, QueueBackend, StateConfig,
    StoreBackend, WorkerConfig,
};
#[cfg(feature = "serve")]
pub use serve::settings::{Role, ServeConfig, ServeToken, ServerConfig};
pub use settings::Config;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(file.path()), env)
    }

    #[test]
    fn the_environment_lies_over_the_file() {
        let file = "[worker]\nmax_tries = 3\n[[deployments]]\nendpoint = \"http://a\"\ntpm = 5\n";
        let env = [
            ("PROMPTMILL__WORKER__MAX_DELIVERIES", "4"),
            ("PROMPTMILL__DEPLOYMENTS__0__TPM", "6"),
            ("PROMPTMILL__STATE__DIR", "/tmp/x"),
            ("OTHER", "1"),
        ];
        let config = load(file, &env).unwrap();
        assert_eq!((config.worker.max_tries, config.worker.max_deliveries), (3, 4));
        assert_eq!(config.deployments[0].tpm, Some(6));
        assert_eq!(config.state.dir, Path::new("/tmp/x"));
    }

    #[test]
    fn a_wrong_key_is_named() {
        let said = load("[worker]\nmax_trys = 3\n", &[]).unwrap_err().to_string();
        assert!(said.contains("worker") && said.contains("max_trys"), "{said}");
        let said = load("[worker]\nmax_tries = \"x\"\n", &[]).unwrap_err().to_string();
        assert!(said.starts_with("worker.max_tries: invalid type"), "{said}");
        let said = load("", &[("PROMPTMILL__WORKER__MAX_TRIES", "0")]).unwrap_err().to_string();
        assert_eq!(said, "worker.max_tries must be at least 1 (PROMPTMILL__WORKER__MAX_TRIES)");
    }

    /// Returns the lines of what is said, without the file's own name.
    fn said(text: &str, env: &[(&str, &str)]) -> Vec<String> {
        let said = load(text, env).unwrap_err().to_string();
        let place = |line: &str| {
            let Some((said, place)) = line.rsplit_once(" (") else { return line.to_owned() };
            format!("{said} ({}", place.rsplit_once(", ").map_or(place, |(_, line)| line))
        };
        said.lines().map(|line| place(line.trim())).collect()
    }

    #[test]
    fn one_run_tells_every_fault_with_its_line_or_variable() {
        let text = "colour = 1\n[worker]\nmax_trys = 3\nmax_deliveries = \"x\"\n\
                    [pool]\nspill_after_seconds = -1.0\n\
                    [[deployments]]\nendpoint = \"http://a\"\ntpm = \"many\"\nreserve = 2.0\n\
                    [[deployments]]\nendpoint = \"b\"\nrpm = 0\n";
        let env = [
            ("PROMPTMILL__DEPLOYMENTS__0__WEIGHT", "-1"),
            ("PROMPTMILL__INPUT__MAX_LINE_MIB", "0"),
        ];
        let lines = said(text, &env);
        let expected = [
            ("the configuration has 10 faults:", ""),
            ("colour: unknown field", "(line 1)"),
            ("worker.max_trys: unknown field `max_trys`, expected one of `max_tries`", "(line 3)"),
            ("worker.max_deliveries: invalid type: string \"x\", expected u32", "(line 4)"),
            ("deployments.0.tpm: invalid type", "(line 9)"),
            ("pool.spill_after_seconds must be from 0 to 86400", "(line 6)"),
            ("input.max_line_mib must be at least 1", "(PROMPTMILL__INPUT__MAX_LINE_MIB)"),
            ("deployments.0.reserve must be from 0 to below 1", "(line 10)"),
            ("deployments.0.weight must be above 0", "(PROMPTMILL__DEPLOYMENTS__0__WEIGHT)"),
            ("deployments.1.rpm must be at least 1", "(line 13)"),
            ("deployments.1.endpoint: 'b' is not an endpoint", "(line 12)"),
        ];
        for (start, place) in expected {
            let is_told = |line: &String| line.starts_with(start) && line.ends_with(place);
            assert!(lines.iter().any(is_told), "{start} {place}: {lines:#?}");
        }
        assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    }

    #[test]
    fn a_fault_brings_no_second_one_that_is_none() {
        // The URL is there; that it is of the wrong type does not make the secret lonely.
        let secret = "secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"";
        let lines = said(&format!("[webhook]\nurl = 5\n{secret}\n"), &[]);
        assert!(matches!(&lines[..], [one] if one.starts_with("webhook.url")), "{lines:#?}");
        let text =
            "[[deployments]]\nmodels = [1, \"m\", 2]\nendpoint = 3\n[[deployments]]\nx = 1\n";
        let lines = said(text, &[]);
        let keys = ["deployments.0.models.0", "deployments.0.models.2", "deployments.0.endpoint"];
        for key in keys.iter().chain(&["deployments.1.x"]) {
            assert!(lines.iter().any(|line| line.starts_with(key)), "{key}: {lines:#?}");
        }
        assert_eq!(lines.len(), 5, "{lines:#?}");
    }

    #[test]
    fn every_line_that_is_no_toml_is_told() {
        let lines = said("[worker]\nmax_tries = \n[pool]\nspill_after_seconds = 1 2\n", &[]);
        assert!(lines.iter().any(|line| line.contains("line 2: ")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("line 4: ")), "{lines:#?}");
    }

    #[test]
    fn no_error_shows_a_secret() {
        let secrets = [
            "[queue.service_bus]\nqueue = \"q\"\nconnection_string = \"s3cret",
            "[queue.service_bus]\nqueue = \"q\"\nconnection_string = \"s3cret\"",
            "[store.cosmos]\nendpoint = \"https://a\"\ncredential = \"s3cret\"",
            "[store.cosmos]\nendpoint = \"https://a\"\ncredential = { kye = \"s3cret\" }",
        ];
        for text in secrets {
            let error = load(text, &[]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn backends_are_local_until_a_table_says_otherwise() {
        assert!(matches!(load("", &[]).unwrap().queue, QueueBackend::Local));
        let env = [
            ("PROMPTMILL__QUEUE__SERVICE_BUS__QUEUE", "jobs"),
            ("PROMPTMILL__QUEUE__SERVICE_BUS__NAMESPACE", "h"),
        ];
        let said = load("queue = \"local\"", &env).unwrap_err().to_string();
        assert!(said.starts_with("queue.service_bus: 'namespace' needs"), "{said}");
        let text = "[queue.service_bus]\nqueue = \"q\"\nnamespace = \"h\"\n\
                    credential = \"workload_identity\"";
        assert!(matches!(load(text, &[]).unwrap().queue, QueueBackend::ServiceBus(_)));
    }

    #[test]
    fn models_are_known_only_if_every_deployment_says_its_own() {
        let one = "[[deployments]]\nendpoint = \"http://a\"\nmodel = \"m\"\n";
        let any = "[[deployments]]\nendpoint = \"http://b\"\n";
        assert_eq!(load(one, &[]).unwrap().reading().models, Some(vec!["m".to_owned()]));
        assert_eq!(load(&format!("{one}{any}"), &[]).unwrap().reading().models, None);
        assert_eq!(load("", &[]).unwrap().reading().models, None);
    }
}
