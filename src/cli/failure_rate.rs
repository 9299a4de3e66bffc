//! Flag for the share of jobs that may fail.

use crate::config::Config;

#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct FailureRateFlag {
    /// Pause a batch if more than this percentage of its last 200 jobs failed, or its first 50 all by one
    /// cause; 100 never does [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = percentage)]
    max_failure_rate: Option<f64>,
}

impl FailureRateFlag {
    #[cfg(feature = "documents")]
    pub(super) fn is_given(self) -> bool {
        self.max_failure_rate.is_some()
    }

    pub(super) fn apply(self, config: &mut Config) {
        config.worker.max_failure_rate =
            self.max_failure_rate.unwrap_or(config.worker.max_failure_rate);
    }
}

fn percentage(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse().ok();
    let number = number.filter(|number| (0.0..=100.0).contains(number));
    number.ok_or_else(|| "it must be a percentage, from 0 to 100".to_owned())
}
