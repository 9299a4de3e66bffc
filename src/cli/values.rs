//! Values of flags: numbers, rates and ranges, with messages that say what to write.

use std::time::Duration;

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Parses requests a second: `20`, `20/s` or `600/m`.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let (number, per) = match text.split_once('/') {
        None | Some((_, "s")) => (text.trim_end_matches("/s"), 1.0),
        Some((number, "m" | "min")) => (number, 60.0),
        Some(_) => return Err("write a rate like 20, 20/s or 600/m".into()),
    };
    let rate = number.trim().parse::<f64>().map_err(|_| "write a rate like 20 or 600/m")? / per;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err("a rate is above 0".into()) }
}

pub(super) fn calls(text: &str) -> Result<usize, String> {
    let calls = text.trim().parse().map_err(|_| "not a number of requests".to_owned())?;
    if calls > 0 { Ok(calls) } else { Err("at least 1".into()) }
}

pub(super) fn range<T: PartialOrd>(
    text: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<(T, T), String> {
    let (from, to) = text.split_once("..").ok_or("write a range like 1..64")?;
    let (from, to) = (read(from)?, read(to)?);
    if from <= to {
        Ok((from, to))
    } else {
        Err("a range goes from the smaller to the larger number".into())
    }
}

pub(super) fn workers(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=10_000).contains(n));
    number.ok_or_else(|| "give a number from 1 to 10000".into())
}

pub(super) fn amount(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| "give a number of at least 0".into())
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    amount(text).ok().filter(|n| *n <= 1.0).ok_or_else(|| "give a number from 0 to 1".into())
}
