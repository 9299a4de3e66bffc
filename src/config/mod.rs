//! The one configuration: defaults, a TOML file, the environment, then flags.
//!
//! Every key of the file can be set by a variable `PROMPTMILL__SECTION__KEY`. Unknown keys are
//! errors, so that a misspelt setting is found at start and not by its missing effect.
//! `layers` merges the environment over the file; `explain` shows the origin of each value.

mod deployment;
mod error;
mod explain;
mod layers;
mod missing_feature;
mod sections;
mod settings;

pub use deployment::{DEFAULT_CONCURRENCY, DeploymentConfig};
pub use error::ConfigError;
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
        assert_eq!(said, "worker.max_tries must be at least 1");
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
