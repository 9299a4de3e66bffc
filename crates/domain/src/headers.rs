//! Rate limits in a response's headers, as numbers.
//!
//! Azure sends `x-ratelimit-*` with every response of a pay-as-you-go deployment and
//! `azure-openai-deployment-utilization` with those of a provisioned one (Azure docs: "quota",
//! "provisioned throughput"). Headers can be absent, 0 or -1, which all mean that nothing is known.

use std::time::Duration;

use reqwest::header::HeaderMap;

/// Rate limits that one response reports; `None` where it reports nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RateHeaders {
    /// Tokens a minute.
    pub limit_tokens: Option<u64>,
    /// Requests a minute.
    pub limit_requests: Option<u64>,
    /// Tokens that can still be booked before the counter restarts.
    pub remaining_tokens: Option<u64>,
    /// Time until it restarts, rounded up to whole seconds.
    pub reset_tokens: Option<Duration>,
    /// Utilisation of a provisioned deployment; 1.0 is all of it.
    pub utilisation: Option<f64>,
}

impl RateHeaders {
    /// Reads the headers that are there.
    pub fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let count = |name: &str| text(name)?.parse::<u64>().ok().filter(|count| *count > 0);
        let reset = |name: &str| {
            let seconds = text(name)?.parse::<f64>().ok().filter(|seconds| *seconds > 0.0)?;
            Duration::try_from_secs_f64(seconds).ok()
        };
        Self {
            limit_tokens: count("x-ratelimit-limit-tokens"),
            limit_requests: count("x-ratelimit-limit-requests"),
            remaining_tokens: count("x-ratelimit-remaining-tokens"),
            // The second spelling was seen in the wild.
            reset_tokens: reset("x-ratelimit-reset-tokens")
                .or_else(|| reset("x-rate-limit-reset-tokens")),
            utilisation: text("azure-openai-deployment-utilization").and_then(percent),
        }
    }
}

/// Reads `87.5%` or `87.5`.
fn percent(text: &str) -> Option<f64> {
    let number = text.trim().trim_end_matches('%').parse::<f64>().ok()?;
    number.is_finite().then_some(number / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &str)]) -> RateHeaders {
        let headers = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()));
        RateHeaders::read(&headers.collect())
    }

    #[test]
    fn what_azure_sends_is_read() {
        let told = read(&[
            ("x-ratelimit-limit-tokens", "300000"),
            ("x-ratelimit-remaining-tokens", "250000"),
            ("x-ratelimit-reset-tokens", "42"),
            ("x-ratelimit-limit-requests", "1800"),
        ]);
        let expected = RateHeaders {
            limit_tokens: Some(300_000),
            limit_requests: Some(1_800),
            remaining_tokens: Some(250_000),
            reset_tokens: Some(Duration::from_secs(42)),
            utilisation: None,
        };
        assert_eq!(told, expected);
        let told = read(&[("azure-openai-deployment-utilization", "87.5%")]);
        assert_eq!(told.utilisation, Some(0.875));
    }

    #[test]
    fn what_means_nothing_is_left_out() {
        let odd = read(&[
            ("x-ratelimit-limit-tokens", "-1"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "0"),
            ("x-ratelimit-limit-requests", "many"),
            ("azure-openai-deployment-utilization", "NaN"),
        ]);
        assert_eq!(odd, RateHeaders::default());
        assert_eq!(read(&[]), RateHeaders::default());
    }
}
