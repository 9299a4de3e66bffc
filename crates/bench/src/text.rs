//! Terminal output of reports.

use std::fmt::{self, Write};

use super::compare::{ComparisonRow, FigureUnit, PhaseComparison};
use super::report::{BenchReport, BenchStopReason, LatencyDistribution, PhaseReport, RateSummary};
use super::tally::LiveStats;

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setup, .. } = self;
        writeln!(f, "{} at {}: {}", setup.deployment, setup.endpoint, setup.requests)?;
        if self.phases.len() > 1 {
            write_levels(f, &self.phases)?;
        }
        for phase in &self.phases {
            writeln!(f)?;
            phase.fmt(f)?;
        }
        if let Some(knee) = &self.knee {
            writeln!(f)?;
            let more = if knee.saturated { "" } else { "; not saturated yet: there may be more" };
            writeln!(
                f,
                "knee: concurrency {} gives {:.0} RPM of {:.0} RPM at most{more}",
                knee.concurrency, knee.rpm, knee.best_rpm
            )?;
        }
        match &self.ended {
            BenchStopReason::Complete => Ok(()),
            BenchStopReason::Interrupted => {
                writeln!(f, "\ninterrupted: the figures are of what was measured")
            }
            BenchStopReason::ErrorRate { rate, last } => {
                let percent = rate * 100.0;
                writeln!(f, "\nstopped: {percent:.0} % of the requests failed, the last: {last}")
            }
            BenchStopReason::Misconfigured { why } => writeln!(f, "\nstopped: {why}"),
        }
    }
}

fn write_levels(f: &mut fmt::Formatter<'_>, phases: &[PhaseReport]) -> fmt::Result {
    writeln!(
        f,
        "\n{:>11} {:>9} {:>11} {:>11} {:>10} {:>10} {:>10} {:>9} {:>7}",
        "concurrency",
        "RPM",
        "input TPM",
        "output TPM",
        "TTFT p50",
        "E2E p50",
        "E2E p95",
        "throttled",
        "failed"
    )?;
    for phase in phases {
        let at = |dist: &Option<LatencyDistribution>, share| {
            let percentile = dist.as_ref().and_then(|dist| dist.percentile(share));
            percentile.map_or("-".to_owned(), |percentile| format!("{:.1}", percentile.ms))
        };
        let latency = &phase.latency;
        writeln!(
            f,
            "{:>11} {:>9.0} {:>11.0} {:>11.0} {:>10} {:>10} {:>10} {:>9} {:>7}",
            phase.concurrency.unwrap_or_default(),
            phase.rates.rpm.sustained,
            phase.rates.input_tpm.sustained,
            phase.rates.output_tpm.sustained,
            at(&latency.ttft, 0.5),
            at(&latency.e2e, 0.5),
            at(&latency.e2e, 0.95),
            phase.counts.throttled,
            phase.counts.failed
        )?;
    }
    Ok(())
}

impl fmt::Display for PhaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counts, rates, latency, client, .. } = self;
        writeln!(
            f,
            "{}: {:.1} s measured after {:.1} s",
            self.load, self.seconds, self.warm_up_seconds
        )?;
        write!(
            f,
            "requests    {} succeeded, {} throttled (429), {} failed",
            counts.succeeded, counts.throttled, counts.failed
        )?;
        for (code, n) in &counts.codes {
            write!(f, ", {n} × {code}")?;
        }
        if counts.unsent > 0 {
            write!(f, ", {} never sent: --max-in-flight was reached until the end", counts.unsent)?;
        }
        writeln!(f, "; {} calls, {} of them throttled (429)", counts.calls, counts.refused_calls)?;
        writeln!(
            f,
            "tokens      {} prompt ({} cached), {} output",
            counts.prompt_tokens, counts.cached_tokens, counts.output_tokens
        )?;
        writeln!(f, "per minute        mean  (95 % interval)            sustained       peak")?;
        write_rate(f, "RPM", &rates.rpm)?;
        write_rate(f, "input TPM", &rates.input_tpm)?;
        write_rate(f, "output TPM", &rates.output_tpm)?;
        write_rate(f, "charged TPM", &rates.charged_tpm)?;
        if let Some(goodput) = &rates.goodput_rpm {
            write_rate(f, "goodput RPM", goodput)?;
        }
        if let Some(utilization) = &self.utilization {
            let (mean, max) = (utilization.mean, utilization.max);
            writeln!(
                f,
                "utilization mean {mean:.1} %, at most {max:.1} %, as the service reports"
            )?;
        }
        writeln!(
            f,
            "ms          mean       p50       p90       p95       p99 (95 % interval)         p99.9       max"
        )?;
        let kinds = [
            ("TTFT", &latency.ttft),
            ("TBT", &latency.tbt),
            ("E2E", &latency.e2e),
            ("429s", &latency.throttled),
            ("failed", &latency.failed),
            ("lag", &client.lag),
        ];
        for (name, dist) in kinds {
            dist.as_ref().map_or(Ok(()), |dist| write_dist(f, name, dist))?;
        }
        write!(
            f,
            "client      {:.0} us CPU a request, {:.0} % of a core",
            client.cpu_us_per_request,
            client.cpu_share * 100.0
        )?;
        if let (Some(rate), Some(timing)) = (client.rate_error, client.timing_error) {
            let (rate, timing) = (rate * 100.0, timing * 100.0);
            write!(f, "; rate off by {rate:.2} %, starts late by {timing:.2} % of their gap")?;
        }
        writeln!(f)
    }
}

fn write_rate(f: &mut impl Write, name: &str, rate: &RateSummary) -> fmt::Result {
    let interval = format!("({:.0} to {:.0})", rate.low, rate.high);
    let RateSummary { mean, sustained, peak, window_seconds, .. } = rate;
    writeln!(
        f,
        "{name:<11} {mean:>10.0}  {interval:<24} {sustained:>11.0} {peak:>10.0}  of {window_seconds} s"
    )
}

fn write_dist(f: &mut impl Write, name: &str, dist: &LatencyDistribution) -> fmt::Result {
    let at = |share| dist.percentile(share).map_or(0.0, |percentile| percentile.ms);
    let bound = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
    let p99 = dist.percentile(0.99);
    let interval = format!(
        "({} to {})",
        bound(p99.and_then(|p| p.low_ms)),
        bound(p99.and_then(|p| p.high_ms))
    );
    writeln!(
        f,
        "{name:<6} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {interval:<22} {:>9.2} {:>9.2}",
        dist.mean_ms,
        at(0.5),
        at(0.9),
        at(0.95),
        at(0.99),
        at(0.999),
        dist.max_ms
    )
}

impl fmt::Display for LiveStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |span: Option<std::time::Duration>| {
            span.map_or("-".to_owned(), |span| format!("{:.0}", span.as_secs_f64() * 1_000.0))
        };
        write!(f, "{:>4.0} s", self.elapsed.as_secs_f64())?;
        f.write_str(if self.warming_up { " warm-up" } else { "" })?;
        write!(
            f,
            "  ok {}  429 {}  failed {}  in flight {}  TTFT p50 {} ms  E2E p50 {} p95 {} ms  in {:.0} out {:.0} tokens/min",
            self.succeeded,
            self.throttled,
            self.failed,
            self.in_flight,
            ms(self.ttft_p50),
            ms(self.e2e_p50),
            ms(self.e2e_p95),
            self.input_tpm,
            self.output_tpm
        )?;
        self.utilization.map_or(Ok(()), |percent| write!(f, "  utilization {percent:.0} %"))
    }
}

impl fmt::Display for PhaseComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A: {}   B: {}", self.load_a, self.load_b)?;
        writeln!(
            f,
            "{:<18} {:>12} {:>12} {:>9}  B - A (95 % interval) or p",
            "", "A", "B", "change"
        )?;
        self.rows.iter().try_for_each(|row| row.fmt(f))
    }
}

impl fmt::Display for ComparisonRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = match self.unit {
            FigureUnit::PerMinute => 0,
            FigureUnit::Milliseconds => 2,
            FigureUnit::Share => 4,
        };
        let change = match self.a {
            0.0 => "-".to_owned(),
            a => format!("{:+.1} %", (self.b - a) / a * 100.0),
        };
        let said = match (self.low, self.high, self.p) {
            (Some(low), Some(high), _) => format!("{low:+.digits$} to {high:+.digits$}"),
            (_, _, Some(p)) if p < 0.0001 => "p < 0.0001".to_owned(),
            (_, _, Some(p)) => format!("p = {p:.4}"),
            _ => String::new(),
        };
        let verdict = if self.significant { "  differs" } else { "" };
        let Self { figure, a, b, .. } = self;
        writeln!(f, "{figure:<18} {a:>12.digits$} {b:>12.digits$} {change:>9}  {said}{verdict}")
    }
}
