//! Telemetry settings: what to export and where to; OpenTelemetry's variables override the file.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use domain::build_feature::MissingFeatureError;

/// Default service name.
const DEFAULT_SERVICE_NAME: &str = "promptmill";

/// Limit of one request to the receiver; the standard's own default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Section `[telemetry]`. The standard variables (`OTEL_...`) override it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// Base URL of an OTLP receiver over HTTP, such as `http://localhost:4318`. Without one, here
    /// or in `OTEL_EXPORTER_OTLP_ENDPOINT`, nothing is sent.
    pub endpoint: Option<Url>,
    /// Name of this service at the receiver.
    pub service_name: Option<String>,
    /// Sends prompts and answers as well.
    pub content: bool,
}

/// Reason why telemetry can't be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("{variable} is '{value}', and it must be {must}")]
    Variable { variable: &'static str, value: String, must: &'static str },
    #[error("telemetry.endpoint must begin with http:// or https://")]
    Scheme,
    #[error(
        "telemetry.endpoint must hold no user or password; \
         set OTEL_EXPORTER_OTLP_HEADERS=authorization=... instead"
    )]
    Credentials,
    #[error(transparent)]
    Feature(#[from] MissingFeatureError),
    #[cfg(feature = "otlp")]
    #[error("the telemetry's exporter can't be set up: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[cfg(feature = "otlp")]
    #[error("the telemetry's HTTP client can't be set up")]
    Client(#[source] reqwest::Error),
}

/// Signals to export and their targets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExportPlan {
    pub(super) traces: Option<SignalTarget>,
    pub(super) metrics: Option<SignalTarget>,
    pub(super) service_name: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct SignalTarget {
    /// `None` leaves it to the variables, which the exporter reads itself.
    pub(super) url: Option<String>,
    pub(super) timeout: Duration,
}

impl TelemetrySettings {
    /// Returns `None` if telemetry is off.
    pub(super) fn plan(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<ExportPlan>, TelemetryError> {
        // By the specification an empty variable means an absent one.
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        if self.endpoint.as_ref().is_some_and(|url| !matches!(url.scheme(), "http" | "https")) {
            return Err(TelemetryError::Scheme);
        }
        let has_user = |url: &Url| !url.username().is_empty() || url.password().is_some();
        if self.endpoint.as_ref().is_some_and(has_user) {
            return Err(TelemetryError::Credentials);
        }
        let traces = self.signal("TRACES", &variable)?;
        let metrics = self.signal("METRICS", &variable)?;
        if traces.is_none() && metrics.is_none() {
            return Ok(None);
        }
        check_sampler(&variable)?;
        let service_name =
            self.service_name.clone().unwrap_or_else(|| DEFAULT_SERVICE_NAME.to_owned());
        Ok(Some(ExportPlan { traces, metrics, service_name }))
    }

    fn signal(
        &self,
        name: &'static str,
        variable: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<SignalTarget>, TelemetryError> {
        let exporter =
            if name == "TRACES" { "OTEL_TRACES_EXPORTER" } else { "OTEL_METRICS_EXPORTER" };
        match variable(exporter).as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(value) => {
                let value = value.to_owned();
                let must = "otlp or none";
                return Err(TelemetryError::Variable { variable: exporter, value, must });
            }
        }
        let own = |what: &str| {
            variable(&format!("OTEL_EXPORTER_OTLP_{name}_{what}"))
                .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{what}")))
        };
        if let Some(value) = own("PROTOCOL").filter(|value| value != "http/protobuf") {
            let variable = "OTEL_EXPORTER_OTLP_PROTOCOL";
            let must = "http/protobuf (a receiver of gRPC takes it as well, on port 4318)";
            return Err(TelemetryError::Variable { variable, value, must });
        }
        let url = match (own("ENDPOINT"), &self.endpoint) {
            (Some(_), _) => None,
            (None, Some(base)) => {
                let path = name.to_ascii_lowercase();
                Some(format!("{}/v1/{path}", base.as_str().trim_end_matches('/')))
            }
            (None, None) => return Ok(None),
        };
        let timeout = own("TIMEOUT").and_then(|ms| ms.parse().ok());
        let timeout = timeout.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
        Ok(Some(SignalTarget { url, timeout }))
    }
}

/// Checks the sampler: the SDK takes a misspelt one for "all of them", costly for a large batch.
fn check_sampler(variable: &impl Fn(&str) -> Option<String>) -> Result<(), TelemetryError> {
    const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
    const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
    let Some(sampler) = variable(SAMPLER) else { return Ok(()) };
    let name = sampler.strip_prefix("parentbased_").unwrap_or(&sampler);
    match name {
        "always_on" | "always_off" => Ok(()),
        "traceidratio" => {
            let argument = variable(ARGUMENT).unwrap_or_default();
            match argument.parse::<f64>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(()),
                _ => Err(TelemetryError::Variable {
                    variable: ARGUMENT,
                    value: argument,
                    must: "a part of all traces, from 0 to 1",
                }),
            }
        }
        _ => Err(TelemetryError::Variable {
            variable: SAMPLER,
            value: sampler,
            must: "always_on, always_off or traceidratio, or parentbased_ and one of them",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        endpoint: Option<&str>,
        env: &[(&str, &str)],
    ) -> Result<Option<ExportPlan>, TelemetryError> {
        let endpoint = endpoint.map(|url| url.parse().unwrap());
        let find = |name: &str| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        TelemetrySettings { endpoint, ..TelemetrySettings::default() }.plan(find)
    }

    #[test]
    fn nothing_is_sent_unless_somebody_asks() {
        assert_eq!(plan(None, &[]).unwrap(), None);
        let off = [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a")];
        assert_eq!(plan(None, &off).unwrap(), None);
        assert_eq!(plan(None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap(), None);
    }

    #[test]
    fn variables_come_before_the_file_signal_by_signal() {
        let file = plan(Some("http://a:4318/"), &[]).unwrap().unwrap();
        assert_eq!(file.traces.unwrap().url.as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(file.metrics.unwrap().url.as_deref(), Some("http://a:4318/v1/metrics"));
        let env = [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b/t"),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
        ];
        let both = plan(Some("http://a"), &env).unwrap().unwrap();
        let timeout = Duration::from_millis(250);
        assert_eq!((both.traces, both.metrics), (Some(SignalTarget { url: None, timeout }), None));
        let one = plan(None, &env[..1]).unwrap().unwrap();
        assert!(one.traces.is_some() && one.metrics.is_none());
    }

    #[test]
    fn what_cannot_be_done_as_asked_is_an_error_with_its_variable() {
        let cases = [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "always"),
        ];
        for (name, value) in cases {
            let said = plan(Some("http://a"), &[(name, value)]).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains(value), "{said}");
        }
        let ratio = |arg| {
            let env = [
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", arg),
            ];
            plan(Some("http://a"), &env)
        };
        assert!(ratio("1%").unwrap_err().to_string().contains("OTEL_TRACES_SAMPLER_ARG"));
        assert!(ratio("0.01").unwrap().is_some());
        assert!(matches!(plan(Some("ftp://a"), &[]), Err(TelemetryError::Scheme)));
        assert!(matches!(plan(Some("http://u:p@a"), &[]), Err(TelemetryError::Credentials)));
    }
}
