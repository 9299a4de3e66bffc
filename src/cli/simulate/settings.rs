//! Settings of the simulator, made of the flags.

use std::collections::BTreeMap;
use std::time::Duration;

use super::args::SimulateArgs;
use crate::cli::exit::CommandError;
use simulator::{
    FaultRates, HeaderStyle, MeterRules, ProfileSetting, ProfileSpec, SimulatedLatency,
    SimulatorSettings,
};

/// Builds the settings.
///
/// # Errors
/// If a flag has no meaning, or the key is not set.
pub(super) fn settings(args: SimulateArgs) -> Result<SimulatorSettings, CommandError> {
    let seconds = |name: &str, s: f64| {
        Duration::try_from_secs_f64(s)
            .map_err(|_| CommandError::usage_text(format!("--{name} must be a number of seconds")))
    };
    let api_key = match args.api_key_env {
        None => None,
        Some(name) => {
            let key = std::env::var(&name);
            let missing = |_| CommandError::usage_text(format!("the variable {name} is not set"));
            Some(key.map_err(missing)?.into())
        }
    };
    let mut overrides = BTreeMap::<String, Vec<ProfileSetting>>::new();
    for ProfileSpec { deployment, settings } in args.deployment {
        let no_name = "--deployment begins with a name, as in --deployment east,tpm=60000";
        let name = deployment.ok_or_else(|| CommandError::usage_text(no_name))?;
        overrides.entry(name).or_default().extend(settings);
    }
    Ok(SimulatorSettings {
        seed: args.seed,
        tpm: args.tpm,
        rpm: args.rpm,
        window: seconds("window", args.window)?,
        request_slice: seconds("request-slice", args.request_slice)?,
        latency: SimulatedLatency {
            base_ms: args.latency_ms,
            per_token_ms: args.token_ms,
            sigma: args.spread,
        },
        faults: FaultRates { rate_hang: args.hangs, ..FaultRates::spread(args.faults) },
        api_key,
        overrides,
        changes: args.change,
        meter: MeterRules {
            kind: args.meter,
            counted: args.counts,
            headers: if args.no_rate_headers { HeaderStyle::None } else { args.rate_headers },
            ..MeterRules::DOCUMENTED
        },
        typical_output: args.typical_output,
        charge_factor: args.charge_factor,
        misfits: args.misfits,
        ledger_samples: !args.no_samples,
        ..SimulatorSettings::default()
    })
}
