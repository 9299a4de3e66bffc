//! Parser and formatter of deployment settings as text: `tpm=60000,latency-ms=20`.
//!
//! One grammar for the command line, the schedule and the control endpoint. Neighbour: `profile`
//! has the settings themselves.

use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use super::duty_cycle::DutyCycle;
use super::faults::{FaultRates, InjectedFault};
use super::meter::{CountedTokens, HeaderStyle, MeterKind, MeterRules};
use super::profile::{DeploymentProfile, OutageKind, ProfileSetting};

/// Setting names of the fault rates.
const RATES: [(&str, InjectedFault); 8] = [
    ("rate-429", InjectedFault::Busy),
    ("rate-500", InjectedFault::Internal),
    ("rate-503", InjectedFault::Unavailable),
    ("rate-408", InjectedFault::Timeout),
    ("rate-reset-before", InjectedFault::ResetBefore),
    ("rate-reset-after", InjectedFault::ResetAfter),
    ("rate-hang", InjectedFault::Hang),
    ("rate-truncate", InjectedFault::Truncate),
];

const DOWNS: [(&str, OutageKind); 3] =
    [("reset", OutageKind::Reset), ("500", OutageKind::Internal), ("503", OutageKind::Unavailable)];

/// Error in a settings text.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum BadSpec {
    #[error(
        "'{0}' is no setting of a deployment: use tpm, rpm, ptu, latency-ms, token-ms, spread, \
         fault-rate, rate-429, rate-500, rate-503, rate-408, rate-reset-before, rate-reset-after, \
         rate-hang, rate-truncate, flex, other-tpm, other-bursts, meter, counts, \
         rate-headers, gateway-tpm, cut or down"
    )]
    Unknown(String),
    #[error("'{key}={value}': {key} must be {wants}")]
    Value { key: &'static str, value: String, wants: &'static str },
    #[error("'{0}' is no setting: write KEY=VALUE, with commas between settings")]
    NoPair(String),
    #[error("ptu takes the place of tpm and rpm: give one or the other")]
    PtuAndQuota,
    #[error("'{0}' is no deployment name: use 1 to 64 letters, digits, '-', '_' or '.'")]
    Name(String),
    #[error("'{0}' does not begin with a time and a colon, as in 90s:tpm=60000")]
    NoTime(String),
    #[error("'{0}' changes nothing: add a setting, as in 90s:tpm=60000")]
    NoSettings(String),
}

/// Settings of one deployment, or of all if none is named: `[NAME][,KEY=VALUE…]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileSpec {
    pub deployment: Option<String>,
    pub settings: Vec<ProfileSetting>,
}

/// Scheduled change: `AFTER:[NAME,]KEY=VALUE…`.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduledChange {
    /// Time since the simulator started.
    pub after: Duration,
    /// Deployment to change; `None` is all of them, also those that are opened later.
    pub deployment: Option<String>,
    pub settings: Vec<ProfileSetting>,
}

impl FromStr for ProfileSpec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let (first, rest) = text.split_once([',', '&']).unwrap_or((text, ""));
        let first = first.trim();
        if first.is_empty() || first.contains('=') {
            return Ok(Self { deployment: None, settings: parse_settings(text)? });
        }
        if !is_deployment_name(first) {
            return Err(BadSpec::Name(first.to_owned()));
        }
        Ok(Self { deployment: Some(first.to_owned()), settings: parse_settings(rest)? })
    }
}

impl FromStr for ScheduledChange {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let no_time = || BadSpec::NoTime(text.to_owned());
        let (after, spec) = text.split_once(':').ok_or_else(no_time)?;
        let after = parse_duration(after).ok_or_else(no_time)?;
        let ProfileSpec { deployment, settings } = spec.parse()?;
        if settings.is_empty() {
            return Err(BadSpec::NoSettings(text.to_owned()));
        }
        Ok(Self { after, deployment, settings })
    }
}

/// Parses settings separated by commas, or by `&`, which `curl -d a -d b` sends.
pub fn parse_settings(text: &str) -> Result<Vec<ProfileSetting>, BadSpec> {
    let mut settings = Vec::new();
    for pair in text.split([',', '&']).map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| BadSpec::NoPair(pair.to_owned()))?;
        parse_setting(key.trim(), value.trim(), &mut settings)?;
    }
    let has = |is: fn(&ProfileSetting) -> bool| settings.iter().any(is);
    if has(|s| matches!(s, ProfileSetting::Ptu(Some(_))))
        && has(|s| matches!(s, ProfileSetting::Tpm(Some(_)) | ProfileSetting::Rpm(Some(_))))
    {
        return Err(BadSpec::PtuAndQuota);
    }
    Ok(settings)
}

fn parse_setting(
    key: &str,
    value: &str,
    settings: &mut Vec<ProfileSetting>,
) -> Result<(), BadSpec> {
    let number = |key| value.parse::<f64>().map_err(|_| bad_value(key, value, "a number"));
    let count = |key| match value {
        "none" => Ok(None),
        _ => value.parse().map(Some).map_err(|_| bad_value(key, value, "a whole number or none")),
    };
    let setting = match key {
        "tpm" => ProfileSetting::Tpm(count("tpm")?),
        "rpm" => ProfileSetting::Rpm(count("rpm")?),
        "ptu" => ProfileSetting::Ptu(count("ptu")?),
        "latency-ms" => ProfileSetting::LatencyMs(number("latency-ms")?),
        "token-ms" => ProfileSetting::TokenMs(number("token-ms")?),
        "spread" => ProfileSetting::Spread(number("spread")?),
        "fault-rate" => {
            // Sets only the spread faults, so that it combines with the other rates.
            let spread = FaultRates::spread(number("fault-rate")?);
            let rates =
                FaultRates::SPREAD.map(|fault| ProfileSetting::Rate(fault, spread.rate(fault)));
            settings.extend(rates);
            return Ok(());
        }
        "flex" => ProfileSetting::Flex(parse_duty("flex", value)?),
        "other-tpm" => ProfileSetting::OtherTpm(count("other-tpm")?.unwrap_or(0)),
        "other-bursts" => ProfileSetting::OtherBursts(
            parse_duty("other-bursts", value)?.unwrap_or(DutyCycle::ALWAYS),
        ),
        "rate-headers" => ProfileSetting::RateHeaders(value.parse()?),
        "meter" => ProfileSetting::Meter(value.parse()?),
        "counts" => ProfileSetting::Counts(value.parse()?),
        "gateway-tpm" => ProfileSetting::GatewayTpm(count("gateway-tpm")?),
        "cut" => ProfileSetting::Cut(number("cut")?),
        "down" => ProfileSetting::Down(parse_outage(value)?),
        _ => match RATES.into_iter().find(|(name, _)| *name == key) {
            Some((name, fault)) => ProfileSetting::Rate(fault, number(name)?),
            None => return Err(BadSpec::Unknown(key.to_owned())),
        },
    };
    settings.push(setting);
    Ok(())
}

fn bad_value(key: &'static str, value: &str, wants: &'static str) -> BadSpec {
    BadSpec::Value { key, value: value.to_owned(), wants }
}

fn parse_duty(key: &'static str, value: &str) -> Result<Option<DutyCycle>, BadSpec> {
    match value {
        "on" => return Ok(Some(DutyCycle::ALWAYS)),
        "off" => return Ok(None),
        _ => {}
    }
    let duty = value
        .split_once('/')
        .and_then(|(on, period)| {
            Some(DutyCycle { on: parse_duration(on)?, period: parse_duration(period)? })
        })
        .filter(DutyCycle::is_sound);
    let wants = "on, off, or ON/PERIOD, as in 20s/60s";
    duty.map(Some).ok_or_else(|| bad_value(key, value, wants))
}

impl FromStr for MeterKind {
    type Err = BadSpec;

    fn from_str(value: &str) -> Result<Self, BadSpec> {
        let wants = "clock, first, sliding, bucket, or what the bucket holds, as in bucket:10s";
        let bad = || bad_value("meter", value, wants);
        Ok(match value {
            "clock" => Self::ClockWindow,
            "first" => Self::FirstRequestWindow,
            "sliding" => Self::SlidingWindow,
            "bucket" => Self::TokenBucket { holds: None },
            _ => {
                let holds = value.strip_prefix("bucket:").and_then(parse_duration);
                Self::TokenBucket { holds: Some(holds.ok_or_else(bad)?) }
            }
        })
    }
}

impl FromStr for CountedTokens {
    type Err = BadSpec;

    fn from_str(value: &str) -> Result<Self, BadSpec> {
        match value {
            "estimate" => Ok(Self::Estimate),
            "billed" => Ok(Self::Billed),
            "corrected" => Ok(Self::Corrected),
            _ => Err(bad_value("counts", value, "estimate, billed or corrected")),
        }
    }
}

impl FromStr for HeaderStyle {
    type Err = BadSpec;

    fn from_str(value: &str) -> Result<Self, BadSpec> {
        let wants = "on, off, full, classic, remaining, reset-on-429, 200-only, stale:SPAN, \
                     minus-one, zero or none";
        let bad = || bad_value("rate-headers", value, wants);
        Ok(match value {
            "on" | "full" => Self::Full,
            "off" | "none" => Self::None,
            "classic" => Self::Classic,
            "remaining" => Self::Remaining,
            "reset-on-429" => Self::ResetOn429,
            "200-only" => Self::SuccessOnly,
            "minus-one" => Self::MinusOne,
            "zero" => Self::Zero,
            _ => {
                let every = value.strip_prefix("stale:").and_then(parse_duration);
                Self::Stale { every: every.ok_or_else(bad)? }
            }
        })
    }
}

fn parse_outage(value: &str) -> Result<Option<(OutageKind, Option<Duration>)>, BadSpec> {
    if value == "off" {
        return Ok(None);
    }
    let wants = "off, reset, 500 or 503, with a duration unless unlimited, as in 503:10s";
    let (kind, lasts) = match value.split_once(':') {
        None => (value, None),
        Some((kind, lasts)) => {
            (kind, Some(parse_duration(lasts).ok_or_else(|| bad_value("down", value, wants))?))
        }
    };
    let known = DOWNS.into_iter().find(|(name, _)| *name == kind);
    known.map(|(_, down)| Some((down, lasts))).ok_or_else(|| bad_value("down", value, wants))
}

/// Parses a duration such as `90s`, `1m 30s` or `250ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    text.trim().parse::<jiff::SignedDuration>().ok()?.try_into().ok()
}

/// Formats a profile as the text that would recreate it; an outage is given without its end.
pub fn format_profile(profile: &DeploymentProfile, now: Duration) -> String {
    let count = |n: Option<u64>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
    let DeploymentProfile { limits, ptu, latency, faults, flex, other_tpm, other_bursts, .. } =
        profile;
    let mut text = if ptu.is_some() {
        format!("ptu={}", count(*ptu))
    } else {
        format!("tpm={},rpm={}", count(limits.tpm), count(limits.rpm))
    };
    let mut put = |key: &str, value: &dyn std::fmt::Display| {
        write!(text, ",{key}={value}").expect("memory takes every byte");
    };
    put("latency-ms", &latency.base_ms);
    put("token-ms", &latency.per_token_ms);
    put("spread", &latency.sigma);
    for (name, fault) in RATES.into_iter().filter(|(_, fault)| faults.rate(*fault) > 0.0) {
        put(name, &faults.rate(fault));
    }
    if let Some(room) = flex {
        put("flex", room);
    }
    if *other_tpm > 0 {
        put("other-tpm", other_tpm);
        put("other-bursts", other_bursts);
    }
    let MeterRules { kind, counted, headers, gateway_tpm, cut } = &profile.meter;
    put("meter", kind);
    put("counts", counted);
    put("rate-headers", headers);
    if let Some(tpm) = gateway_tpm {
        put("gateway-tpm", tpm);
    }
    if *cut < 1.0 {
        put("cut", cut);
    }
    let down =
        profile.outage_kind(now).and_then(|down| DOWNS.into_iter().find(|(_, d)| *d == down));
    if let Some((name, _)) = down {
        put("down", &name);
    }
    text
}

/// Returns true for a valid deployment name, which is safe in JSON and headers without escaping.
pub fn is_deployment_name(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::super::settings::SimulatorSettings;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_spec_names_a_deployment_or_all_of_them() {
        let spec: ProfileSpec = "east, tpm=60000 ,flex=20s/1m,".parse().unwrap();
        let flex = DutyCycle { on: 20 * SECOND, period: 60 * SECOND };
        let settings = vec![ProfileSetting::Tpm(Some(60_000)), ProfileSetting::Flex(Some(flex))];
        assert_eq!(spec, ProfileSpec { deployment: Some("east".to_owned()), settings });
        let all: ProfileSpec = "rpm=none&down=503:1500ms".parse().unwrap();
        let down = ProfileSetting::Down(Some((OutageKind::Unavailable, Some(SECOND * 3 / 2))));
        assert_eq!(
            all,
            ProfileSpec { deployment: None, settings: vec![ProfileSetting::Rpm(None), down] }
        );
        let bare: ProfileSpec = "east".parse().unwrap();
        assert_eq!(bare, ProfileSpec { deployment: Some("east".to_owned()), settings: vec![] });
    }

    #[test]
    fn a_change_says_when() {
        let change: ScheduledChange = "1m 30s:down=reset:10s".parse().unwrap();
        assert_eq!(change.after, 90 * SECOND);
        let down = ProfileSetting::Down(Some((OutageKind::Reset, Some(10 * SECOND))));
        assert_eq!((change.deployment, change.settings), (None, vec![down]));
        let change: ScheduledChange = "90s:east,ptu=6000".parse().unwrap();
        assert_eq!(change.deployment.as_deref(), Some("east"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_mend() {
        for (text, part) in [
            ("90s:east,tpn=1", "'tpn' is no setting"),
            ("90s:east,tpm=many", "tpm must be a whole number or none"),
            ("90s:east,tpm", "write KEY=VALUE"),
            ("90s:ptu=1,rpm=2", "one or the other"),
            ("90s:no name,tpm=1", "'no name' is no deployment name"),
            ("tpm=60000", "a time and a colon"),
            ("90:tpm=60000", "a time and a colon"),
            ("90s:", "changes nothing"),
            ("90s:flex=2m/1m", "20s/60s"),
            ("90s:other-bursts=sometimes", "other-bursts must be on"),
            ("90s:rate-headers=no", "reset-on-429"),
            ("90s:meter=moon", "bucket:10s"),
            ("90s:counts=all", "corrected"),
            ("90s:down=404", "503:10s"),
            ("90s:down=503:soon", "503:10s"),
            ("90s:rate-hang=x", "rate-hang must be a number"),
        ] {
            let error = text.parse::<ScheduledChange>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_profile_in_words_makes_the_same_profile() {
        let plain = SimulatorSettings::default().profile();
        for text in [
            "tpm=60000,rpm=600,latency-ms=20.5,token-ms=1,spread=0.5,fault-rate=0.06,rate-429=0.01,\
             flex=20s/60s,other-tpm=5000,other-bursts=2s/10s,rate-headers=off,down=reset",
            "ptu=30000,other-tpm=5000",
            "meter=first,counts=corrected,rate-headers=stale:5s,gateway-tpm=30000,cut=0.5",
            "meter=bucket:10s,counts=billed,rate-headers=classic",
            "meter=sliding,rate-headers=reset-on-429",
        ] {
            let made = plain.with(Duration::ZERO, &parse_settings(text).unwrap()).unwrap();
            assert_ne!(made, plain);
            let said = format_profile(&made, Duration::ZERO);
            let again = plain.with(Duration::ZERO, &parse_settings(&said).unwrap()).unwrap();
            assert_eq!(again, made, "{said}");
        }
    }
}
