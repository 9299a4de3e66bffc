//! Flags for when the work starts and must end, and the forecast's times for people and programs.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use crate::cli::exit::CommandError;
use plan::{DueTime, PlanForecast, duration};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "When")]
pub(super) struct ScheduleFlags {
    /// Start: a time of day, or a timestamp with its zone [default: now]
    #[arg(long, value_name = "TIME")]
    start: Option<DueTime>,
    /// Say whether it will be done by this time
    #[arg(long, value_name = "TIME")]
    finish_by: Option<DueTime>,
    /// Time zone of times of day, such as Asia/Tokyo [default: the machine's]
    #[arg(long, value_name = "NAME")]
    time_zone: Option<String>,
    /// Exit with 1 if it does not fit --finish-by
    #[arg(long, requires = "finish_by")]
    pub(super) strict: bool,
}

/// Requested start and deadline, and their time zone.
pub(super) struct PlanTimes {
    pub(super) begin: Timestamp,
    pub(super) finish_by: Option<Timestamp>,
    zone: TimeZone,
}

/// Forecast completion, and whether it meets the deadline.
pub(super) struct ForecastTimes {
    p50: Timestamp,
    p95: Timestamp,
    pub(super) fits: Option<bool>,
}

impl ScheduleFlags {
    pub(super) fn times(&self, now: Timestamp) -> Result<PlanTimes, CommandError> {
        let zone = plan::zone(self.time_zone.as_deref()).map_err(CommandError::usage)?;
        let begin = self.start.map_or(now, |start| start.after(now, &zone));
        let by = self.finish_by.map(|by| by.after(begin, &zone));
        if by.is_some_and(|by| by <= begin) {
            return Err(CommandError::usage_text("--finish-by is before the start"));
        }
        Ok(PlanTimes { begin, finish_by: by, zone })
    }
}

impl PlanTimes {
    pub(super) fn forecast_times(&self, forecast: &PlanForecast) -> ForecastTimes {
        let after = |seconds: f64| {
            let ms = jiff::SignedDuration::from_millis((seconds * 1e3).round() as i64);
            self.begin.saturating_add(ms).unwrap_or(Timestamp::MAX)
        };
        let (p50, p95) = (after(forecast.seconds.p50), after(forecast.seconds.p95));
        ForecastTimes { p50, p95, fits: self.finish_by.map(|by| p95 <= by) }
    }

    pub(super) fn text(&self, ends: &ForecastTimes) -> String {
        let at = |time: Timestamp| {
            time.to_zoned_datetime(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
        };
        let (begin, p50, p95) = (at(self.begin), at(ends.p50), at(ends.p95));
        let mut text = format!("\nfrom      {begin}\ndone      {p50} (p50), {p95} (p95)\n");
        if let Some(by) = self.finish_by {
            let spare = (by.as_millisecond() - ends.p95.as_millisecond()) as f64 / 1e3;
            let said = if spare >= 0.0 {
                format!("fits, with {} to spare", duration(spare))
            } else {
                format!("does not fit: {} too late", duration(-spare))
            };
            text += &format!("wanted by {}: {said} (p95)\n", at(by));
        }
        text
    }

    pub(super) fn json(
        &self,
        forecast: &PlanForecast,
        ends: &ForecastTimes,
    ) -> Result<String, CommandError> {
        let mut value = serde_json::to_value(forecast)?;
        value["begin"] = json!(self.begin);
        value["done"] = json!({ "p50": ends.p50, "p95": ends.p95 });
        value["finish_by"] = json!(self.finish_by);
        value["fits"] = json!(ends.fits);
        Ok(value.to_string())
    }
}

#[cfg(not(feature = "documents"))]
async fn write_prompts(
    _: &Config,
    _: &Path,
    _: Option<&str>,
    _: &Path,
) -> Result<(), CommandError> {
    Err(CommandError::usage(MissingFeatureError { feature: "documents" }))
}
