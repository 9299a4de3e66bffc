//! Settings of a deployment as text: `tpm=60000,latency-ms=20`, and the same text back.
//!
//! One grammar for the command line, the schedule and the control endpoint, so that what is learnt
//! once serves everywhere. Neighbour: `profile` has the settings themselves.

use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use super::duty::Duty;
use super::faults::{Fault, Faults};
use super::profile::{Down, Profile, Setting};
use super::settings::is_deployment_name;

/// Faults by the names of their rates.
const RATES: [(&str, Fault); 8] = [
    ("rate-429", Fault::Busy),
    ("rate-500", Fault::Internal),
    ("rate-503", Fault::Unavailable),
    ("rate-408", Fault::Timeout),
    ("rate-reset-before", Fault::ResetBefore),
    ("rate-reset-after", Fault::ResetAfter),
    ("rate-hang", Fault::Hang),
    ("rate-truncate", Fault::Truncate),
];

const DOWNS: [(&str, Down); 3] =
    [("reset", Down::Reset), ("500", Down::Internal), ("503", Down::Unavailable)];

/// Text that says no settings.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum BadSpec {
    #[error(
        "'{0}' is no setting of a deployment: use tpm, rpm, ptu, latency-ms, token-ms, spread, \
         fault-rate, rate-429, rate-500, rate-503, rate-408, rate-reset-before, rate-reset-after, \
         rate-hang, rate-truncate, flex, other-tpm, other-bursts, rate-headers or down"
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

/// `[NAME][,KEY=VALUE…]`: settings of one deployment, or of all if it names none.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub deployment: Option<String>,
    pub settings: Vec<Setting>,
}

/// `AFTER:[NAME,]KEY=VALUE…`: a change by schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Since the simulator started.
    pub after: Duration,
    /// All of them, if none is named; those that are opened later too.
    pub deployment: Option<String>,
    pub settings: Vec<Setting>,
}

impl FromStr for Spec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let (first, rest) = text.split_once([',', '&']).unwrap_or((text, ""));
        let first = first.trim();
        if first.is_empty() || first.contains('=') {
            return Ok(Self { deployment: None, settings: settings(text)? });
        }
        if !is_deployment_name(first) {
            return Err(BadSpec::Name(first.to_owned()));
        }
        Ok(Self { deployment: Some(first.to_owned()), settings: settings(rest)? })
    }
}

impl FromStr for Change {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Self, BadSpec> {
        let no_time = || BadSpec::NoTime(text.to_owned());
        let (after, spec) = text.split_once(':').ok_or_else(no_time)?;
        let after = span(after).ok_or_else(no_time)?;
        let Spec { deployment, settings } = spec.parse()?;
        if settings.is_empty() {
            return Err(BadSpec::NoSettings(text.to_owned()));
        }
        Ok(Self { after, deployment, settings })
    }
}

/// Reads settings with commas between them; `&` will do, since that is what `curl -d a -d b` sends.
pub fn settings(text: &str) -> Result<Vec<Setting>, BadSpec> {
    let mut settings = Vec::new();
    for pair in text.split([',', '&']).map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| BadSpec::NoPair(pair.to_owned()))?;
        read(key.trim(), value.trim(), &mut settings)?;
    }
    let has = |is: fn(&Setting) -> bool| settings.iter().any(is);
    if has(|s| matches!(s, Setting::Ptu(Some(_))))
        && has(|s| matches!(s, Setting::Tpm(Some(_)) | Setting::Rpm(Some(_))))
    {
        return Err(BadSpec::PtuAndQuota);
    }
    Ok(settings)
}

fn read(key: &str, value: &str, settings: &mut Vec<Setting>) -> Result<(), BadSpec> {
    let number = |key| value.parse::<f64>().map_err(|_| bad(key, value, "a number"));
    let count = |key| match value {
        "none" => Ok(None),
        _ => value.parse().map(Some).map_err(|_| bad(key, value, "a whole number or none")),
    };
    let setting = match key {
        "tpm" => Setting::Tpm(count("tpm")?),
        "rpm" => Setting::Rpm(count("rpm")?),
        "ptu" => Setting::Ptu(count("ptu")?),
        "latency-ms" => Setting::LatencyMs(number("latency-ms")?),
        "token-ms" => Setting::TokenMs(number("token-ms")?),
        "spread" => Setting::Spread(number("spread")?),
        "fault-rate" => {
            // Only the faults of a bad day, so that it goes together with the other rates.
            let spread = Faults::spread(number("fault-rate")?);
            let rates = Faults::SPREAD.map(|fault| Setting::Rate(fault, spread.rate(fault)));
            settings.extend(rates);
            return Ok(());
        }
        "flex" => Setting::Flex(duty("flex", value)?),
        "other-tpm" => Setting::OtherTpm(count("other-tpm")?.unwrap_or(0)),
        "other-bursts" => {
            Setting::OtherBursts(duty("other-bursts", value)?.unwrap_or(Duty::ALWAYS))
        }
        "rate-headers" => Setting::RateHeaders(match value {
            "on" => true,
            "off" => false,
            _ => return Err(bad("rate-headers", value, "on or off")),
        }),
        "down" => Setting::Down(down(value)?),
        _ => match RATES.into_iter().find(|(name, _)| *name == key) {
            Some((name, fault)) => Setting::Rate(fault, number(name)?),
            None => return Err(BadSpec::Unknown(key.to_owned())),
        },
    };
    settings.push(setting);
    Ok(())
}

fn bad(key: &'static str, value: &str, wants: &'static str) -> BadSpec {
    BadSpec::Value { key, value: value.to_owned(), wants }
}

fn duty(key: &'static str, value: &str) -> Result<Option<Duty>, BadSpec> {
    match value {
        "on" => return Ok(Some(Duty::ALWAYS)),
        "off" => return Ok(None),
        _ => {}
    }
    let duty = value
        .split_once('/')
        .and_then(|(on, period)| Some(Duty { on: span(on)?, period: span(period)? }))
        .filter(Duty::is_sound);
    let wants = "on, off, or how long of each period, as in 20s/60s";
    duty.map(Some).ok_or_else(|| bad(key, value, wants))
}

fn down(value: &str) -> Result<Option<(Down, Option<Duration>)>, BadSpec> {
    if value == "off" {
        return Ok(None);
    }
    let wants = "off, reset, 500 or 503, with how long if not for ever, as in 503:10s";
    let (kind, lasts) = match value.split_once(':') {
        None => (value, None),
        Some((kind, lasts)) => (kind, Some(span(lasts).ok_or_else(|| bad("down", value, wants))?)),
    };
    let known = DOWNS.into_iter().find(|(name, _)| *name == kind);
    known.map(|(_, down)| Some((down, lasts))).ok_or_else(|| bad("down", value, wants))
}

/// `90s`, `1m 30s`, `250ms`.
fn span(text: &str) -> Option<Duration> {
    text.trim().parse::<jiff::SignedDuration>().ok()?.try_into().ok()
}

/// A profile in the words that would make it; an outage is given without its end.
pub fn words(profile: &Profile, now: Duration) -> String {
    let count = |n: Option<u64>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
    let Profile { limits, ptu, latency, faults, flex, other_tpm, other_bursts, .. } = profile;
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
    put("rate-headers", if profile.rate_headers { &"on" } else { &"off" });
    let down = profile.is_down(now).and_then(|down| DOWNS.into_iter().find(|(_, d)| *d == down));
    if let Some((name, _)) = down {
        put("down", &name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::settings::Settings;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_spec_names_a_deployment_or_all_of_them() {
        let spec: Spec = "east, tpm=60000 ,flex=20s/1m,".parse().unwrap();
        let flex = Duty { on: 20 * SECOND, period: 60 * SECOND };
        let settings = vec![Setting::Tpm(Some(60_000)), Setting::Flex(Some(flex))];
        assert_eq!(spec, Spec { deployment: Some("east".to_owned()), settings });
        let all: Spec = "rpm=none&down=503:1500ms".parse().unwrap();
        let down = Setting::Down(Some((Down::Unavailable, Some(SECOND * 3 / 2))));
        assert_eq!(all, Spec { deployment: None, settings: vec![Setting::Rpm(None), down] });
        let bare: Spec = "east".parse().unwrap();
        assert_eq!(bare, Spec { deployment: Some("east".to_owned()), settings: vec![] });
    }

    #[test]
    fn a_change_says_when() {
        let change: Change = "1m 30s:down=reset:10s".parse().unwrap();
        assert_eq!(change.after, 90 * SECOND);
        let down = Setting::Down(Some((Down::Reset, Some(10 * SECOND))));
        assert_eq!((change.deployment, change.settings), (None, vec![down]));
        let change: Change = "90s:east,ptu=6000".parse().unwrap();
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
            ("90s:rate-headers=no", "on or off"),
            ("90s:down=404", "503:10s"),
            ("90s:down=503:soon", "503:10s"),
            ("90s:rate-hang=x", "rate-hang must be a number"),
        ] {
            let error = text.parse::<Change>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_profile_in_words_makes_the_same_profile() {
        let plain = Settings::default().profile();
        for text in [
            "tpm=60000,rpm=600,latency-ms=20.5,token-ms=1,spread=0.5,fault-rate=0.06,rate-429=0.01,\
             flex=20s/60s,other-tpm=5000,other-bursts=2s/10s,rate-headers=off,down=reset",
            "ptu=30000,other-tpm=5000",
        ] {
            let made = plain.with(Duration::ZERO, &settings(text).unwrap()).unwrap();
            assert_ne!(made, plain);
            let said = words(&made, Duration::ZERO);
            let again = plain.with(Duration::ZERO, &settings(&said).unwrap()).unwrap();
            assert_eq!(again, made, "{said}");
        }
    }
}
