//! Decision on a parsed request: capacity, faults, usage, and the entry in the audit ledger.
//!
//! It is one step under the lock of the prompt's ledger shard, so that the ledger is consistent at
//! any moment: a request is booked and billed when it is decided, whatever the caller does during
//! the latency. Takes `now`, so that it can be tested without a server. Neighbours: `capacity` and
//! `faults` decide, `audit_ledger` records, `service` executes the verdict.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::StatusCode;

use super::audit_ledger::{AuditLedger, LedgerWriter, locked};
use super::capacity::{CapacityClaim, CapacityDenial, SettledUse};
use super::deployment::SimulatedDeployment;
use super::faults::{InjectedFault, PromptRng, SimulatedTiming};
use super::ledger_snapshot::{AnswerUsage, BillingTier};
use super::profile::DeploymentProfile;
use super::request::{ApiRequest, SimulatedApi};
use super::settings::{DEFAULT_MAX_OUTPUT, SimulatorSettings};
use super::structured_output::StructuredOutput;

/// Prefixes that the prompt cache holds. When it is full it is cleared, as the service's own is
/// after a while.
const CACHE_SIZE: usize = 100_000;

/// Tokens in the shortest prefix that is cached, and the granularity beyond it.
const CACHE_MINIMUM: u64 = 1_024;
const CACHE_STEP: u64 = 128;

/// Separates the random numbers for answers from those for faults.
const ANSWER_SALT: u64 = 0x0061_6e73_7765_7273;
const FORM_SALT: u64 = 0x0066_6f72_6d73;

const MILLION: u32 = 1_000_000;

#[derive(Debug)]
pub struct RequestJudge {
    settings: SimulatorSettings,
    ledger: Arc<AuditLedger>,
    /// Hashes of prompt prefixes that were seen.
    cache: Mutex<HashSet<u64>>,
}

/// Verdict on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestVerdict {
    Refused(CapacityDenial),
    Faulted(InjectedFault),
    Answered,
}

#[derive(Debug, Clone, Copy)]
pub struct JudgedRequest<'a> {
    pub verdict: RequestVerdict,
    pub usage: AnswerUsage,
    pub output: OutputTokens,
    pub timing: SimulatedTiming,
    pub tier: BillingTier,
    /// Deployment that made the decision.
    pub served_by: &'a SimulatedDeployment,
    /// Status that the provisioned deployment would have answered with before it spilled.
    pub spilled_status: Option<StatusCode>,
}

impl JudgedRequest<'_> {
    /// Returns the error status if a provisioned deployment may spill this request.
    fn spill_status(&self) -> Option<StatusCode> {
        let status = match self.verdict {
            _ if self.tier != BillingTier::Provisioned => return None,
            RequestVerdict::Refused(_) | RequestVerdict::Faulted(InjectedFault::Busy) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            RequestVerdict::Faulted(InjectedFault::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
            RequestVerdict::Faulted(InjectedFault::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
            RequestVerdict::Faulted(_) | RequestVerdict::Answered => return None,
        };
        Some(status)
    }
}

/// Output lengths in tokens, for each choice. A function of the seed and the prompt, so that the
/// same prompt always gets the same answer and costs the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputTokens {
    pub visible: u32,
    /// Visible tokens that are free words.
    pub words: u32,
    pub reasoning: u32,
    /// The answer was truncated to the length that the request allows.
    pub cut_short: bool,
}

impl RequestJudge {
    pub fn new(settings: SimulatorSettings, ledger: Arc<AuditLedger>) -> Self {
        Self { settings, ledger, cache: Mutex::default() }
    }

    /// Decides a request on the requested deployment, or on the named standard one if the
    /// provisioned one can't take it.
    pub fn judge<'a>(
        &self,
        now: Duration,
        request: &ApiRequest<'_>,
        tokens: u32,
        requested: &'a SimulatedDeployment,
        standard: Option<&'a SimulatedDeployment>,
    ) -> JudgedRequest<'a> {
        self.ledger.record_request(request.key, request.sample(), |page| {
            let mut judgement = self.decide(page, now, request, tokens, requested);
            if let Some(standard) = standard
                && let Some(status) = judgement.spill_status()
            {
                page.spill();
                judgement = self.decide(page, now, request, tokens, standard);
                judgement.spilled_status = Some(status);
            }
            if let RequestVerdict::Refused(denial) = judgement.verdict {
                page.refuse(denial);
            }
            judgement
        })
    }

    fn decide<'a>(
        &self,
        page: &mut LedgerWriter<'_>,
        now: Duration,
        request: &ApiRequest<'_>,
        tokens: u32,
        model: &'a SimulatedDeployment,
    ) -> JudgedRequest<'a> {
        let profile = *locked(&model.capacity).profile();
        let output = self.output_tokens(request, model);
        let mut judgement = JudgedRequest {
            verdict: RequestVerdict::Answered,
            usage: usage(request, tokens, output),
            output,
            timing: SimulatedTiming::default(),
            tier: tier(request, &profile),
            served_by: model,
            spilled_status: None,
        };
        if let Some(down) = profile.outage_kind(now) {
            page.outage(down.fault());
            return JudgedRequest { verdict: RequestVerdict::Faulted(down.fault()), ..judgement };
        }
        let mut dice = PromptRng::new(self.settings.seed, request.key, page.entry.decided_attempts);
        let fault = dice.fault(&profile.faults);
        judgement.timing = dice.timing(&profile.latency, output.visible + output.reasoning);
        if let Some(fault) = fault.filter(|fault| fault.is_before_booking()) {
            page.fault(fault);
            return JudgedRequest { verdict: RequestVerdict::Faulted(fault), ..judgement };
        }
        let beginnings = prefix_keys(request, tokens, model);
        let cached = self.cached_tokens(&beginnings, tokens);
        judgement.usage.cached_tokens = cached;
        let claim = CapacityClaim {
            charge: self.charge(request, tokens.into()),
            load: self.charge(request, u64::from(tokens) - cached),
            flex: judgement.tier == BillingTier::Flex,
        };
        let mut capacity = locked(&model.capacity);
        match capacity.admit(now, claim) {
            Ok(booked) => page.admit(booked),
            Err(denial) => {
                return JudgedRequest { verdict: RequestVerdict::Refused(denial), ..judgement };
            }
        }
        let is_billed = fault.is_none_or(InjectedFault::is_billed);
        let used = SettledUse { tokens: judgement.usage.total(), cached };
        let used = if is_billed { used } else { SettledUse { tokens: 0, cached: 0 } };
        capacity.settle(now, now + judgement.timing.total(), claim, used);
        drop(capacity);
        self.cache_prefixes(&beginnings);
        if is_billed {
            page.bill(&judgement.usage, judgement.tier);
        }
        match fault {
            None => page.entry.decided_attempts += 1,
            Some(fault) => {
                page.fault(fault);
                judgement.verdict = RequestVerdict::Faulted(fault);
            }
        }
        judgement
    }

    /// Returns the tokens to book: the prompt and the maximum output, times the charge factor.
    fn charge(&self, request: &ApiRequest<'_>, prompt_tokens: u64) -> u64 {
        let max_output = match request.api {
            SimulatedApi::Embeddings => 0,
            SimulatedApi::Chat | SimulatedApi::Responses => {
                request.max_output.unwrap_or(DEFAULT_MAX_OUTPUT)
            }
        };
        let estimate = prompt_tokens + u64::from(max_output) * u64::from(request.choices);
        ((estimate as f64 * self.settings.charge_factor).ceil() as u64).max(1)
    }

    fn output_tokens(&self, request: &ApiRequest<'_>, model: &SimulatedDeployment) -> OutputTokens {
        if request.api == SimulatedApi::Embeddings {
            return OutputTokens { visible: 0, words: 0, reasoning: 0, cut_short: false };
        }
        let mut dice = PromptRng::new(self.settings.seed ^ ANSWER_SALT, request.key, 0);
        let wanted = dice.one_to(self.settings.typical_output);
        let thoughts =
            if model.is_reasoning { dice.one_to(self.settings.typical_output) } else { 0 };
        let allowed = request.max_output.unwrap_or(u32::MAX);
        // Reasoning comes first, so a tight limit can leave an answer without any words.
        let reasoning = thoughts.min(allowed);
        let room = allowed - reasoning;
        let (form, words) = match &request.structured_output {
            Some(form) => (form.tokens, if form.takes_words { wanted } else { 0 }),
            None => (0, wanted),
        };
        let visible = room.min(form.saturating_add(words));
        let cut_short = visible < form.saturating_add(words) || reasoning < thoughts;
        // A truncated answer lacks its end.
        let words = words.min(visible.saturating_sub(form));
        OutputTokens { visible, words, reasoning, cut_short }
    }

    /// Returns the structured output that the requested format gives the answer to this prompt.
    pub fn structured_output(
        &self,
        request: &ApiRequest<'_>,
        count: impl Fn(&str) -> usize,
    ) -> Option<StructuredOutput> {
        let mut form = StructuredOutput::from_response_format(request.response_format?, &count)?;
        let mut dice = PromptRng::new(self.settings.seed ^ FORM_SALT, request.key, 0);
        if dice.one_to(MILLION) <= (self.settings.misfits * f64::from(MILLION)) as u32 {
            form.add_preamble(count);
        }
        Some(form)
    }

    /// Returns the prompt tokens that are in the prompt cache.
    fn cached_tokens(&self, beginnings: &[u64], prompt_tokens: u32) -> u64 {
        if beginnings.is_empty() {
            return 0;
        }
        let cache = locked(&self.cache);
        let longest = beginnings.iter().rposition(|beginning| cache.contains(beginning));
        let cached = longest.map_or(0, |doublings| CACHE_MINIMUM << doublings);
        cached.min(prompt_tokens.into()) / CACHE_STEP * CACHE_STEP
    }

    fn cache_prefixes(&self, beginnings: &[u64]) {
        if beginnings.is_empty() {
            return;
        }
        let mut cache = locked(&self.cache);
        if cache.len() > CACHE_SIZE {
            cache.clear();
        }
        cache.extend(beginnings);
    }
}

/// Returns the prompt-cache keys of a prompt's prefixes; none if it is too short.
fn prefix_keys(
    request: &ApiRequest<'_>,
    prompt_tokens: u32,
    model: &SimulatedDeployment,
) -> Vec<u64> {
    if u64::from(prompt_tokens) < CACHE_MINIMUM || request.api == SimulatedApi::Embeddings {
        return Vec::new();
    }
    request.prefix_hashes().into_iter().map(|beginning| beginning ^ model.cache_salt).collect()
}

/// Returns the usage of the whole answer, before cached tokens are known.
fn usage(request: &ApiRequest<'_>, prompt_tokens: u32, output: OutputTokens) -> AnswerUsage {
    let choices = u64::from(request.choices);
    AnswerUsage {
        prompt_tokens: prompt_tokens.into(),
        cached_tokens: 0,
        completion_tokens: u64::from(output.visible + output.reasoning) * choices,
        reasoning_tokens: u64::from(output.reasoning) * choices,
    }
}

fn tier(request: &ApiRequest<'_>, profile: &DeploymentProfile) -> BillingTier {
    match request.flex {
        _ if profile.ptu.is_some() => BillingTier::Provisioned,
        Some(true) => BillingTier::Flex,
        _ => BillingTier::Standard,
    }
}

#[cfg(test)]
mod tests {
    use super::super::capacity::DeploymentCapacity;
    use super::super::faults::FaultRates;
    use super::super::ledger_snapshot::RefusalCounts;
    use super::super::profile::{OutageKind, ProfileSetting};
    use super::*;

    fn judge(settings: SimulatorSettings) -> (RequestJudge, SimulatedDeployment) {
        let model = deployment(&settings, "gpt-4o", &[]);
        (RequestJudge::new(settings, Arc::new(AuditLedger::new(true))), model)
    }

    fn deployment(
        settings: &SimulatorSettings,
        name: &str,
        own: &[ProfileSetting],
    ) -> SimulatedDeployment {
        let profile = settings.profile().with(Duration::ZERO, own).unwrap();
        let SimulatorSettings { window, request_slice, .. } = *settings;
        let capacity = DeploymentCapacity::new(Duration::ZERO, profile, window, request_slice);
        SimulatedDeployment::new(name, capacity).unwrap()
    }

    fn body(prompt: &str, max_tokens: u32) -> String {
        format!(
            r#"{{"messages":[{{"role":"user","content":"{prompt}"}}],"max_tokens":{max_tokens}}}"#
        )
    }

    fn ask(body: &str) -> ApiRequest<'_> {
        ApiRequest::parse(SimulatedApi::Chat, body.as_bytes()).unwrap()
    }

    #[test]
    fn a_prompt_always_gets_the_same_answer_within_what_it_allows() {
        let (judge, model) = judge(SimulatorSettings::default());
        for i in 0..500 {
            let body = body(&format!("prompt {i}"), 40);
            let first = judge.judge(Duration::ZERO, &ask(&body), 10, &model, None);
            let second = judge.judge(Duration::ZERO, &ask(&body), 10, &model, None);
            assert_eq!(first.output, second.output);
            assert!((1..=40).contains(&first.output.visible));
            assert!(first.output.visible == 40 || !first.output.cut_short);
        }
    }

    #[test]
    fn the_charge_is_prompt_and_largest_output_whatever_comes_out() {
        let (judge, _) =
            judge(SimulatorSettings { charge_factor: 1.5, ..SimulatorSettings::default() });
        assert_eq!(judge.charge(&ask(&body("x", 90)), 10), 150);
        let no_max = r#"{"messages":[{"role":"user","content":"x"}],"n":2}"#;
        assert_eq!(judge.charge(&ask(no_max), 8), (8 + 2 * 4_096) * 3 / 2);
        let input = br#"{"input":"x"}"#;
        assert_eq!(
            judge.charge(&ApiRequest::parse(SimulatedApi::Embeddings, input).unwrap(), 1),
            2
        );
    }

    #[test]
    fn refusals_do_not_use_up_a_prompts_fates() {
        let faults = FaultRates::spread(0.9);
        let fates = |tpm| {
            let (judge, model) =
                judge(SimulatorSettings { tpm, faults, ..SimulatorSettings::default() });
            let mut fates = Vec::new();
            for second in 0..6_000 {
                let (body, now) = (body("x", 90), Duration::from_secs(second));
                match judge.judge(now, &ask(&body), 10, &model, None).verdict {
                    RequestVerdict::Refused(_) => {}
                    fate => fates.push(fate),
                }
            }
            fates.truncate(50);
            fates
        };
        assert_eq!(fates(None), fates(Some(100)), "the same fates, with and without a quota");
    }

    #[test]
    fn only_work_that_was_done_is_billed() {
        for (faults, billed) in [
            (FaultRates { rate_429: 1.0, ..FaultRates::default() }, 0),
            (FaultRates { rate_500: 1.0, ..FaultRates::default() }, 0),
            (FaultRates { rate_503: 1.0, ..FaultRates::default() }, 0),
            (FaultRates { rate_408: 1.0, ..FaultRates::default() }, 0),
            (FaultRates { rate_reset_before: 1.0, ..FaultRates::default() }, 0),
            (FaultRates { rate_reset_after: 1.0, ..FaultRates::default() }, 1),
            (FaultRates { rate_hang: 1.0, ..FaultRates::default() }, 1),
            (FaultRates { rate_truncate: 1.0, ..FaultRates::default() }, 1),
            (FaultRates::default(), 1),
        ] {
            let (judge, model) =
                judge(SimulatorSettings { faults, ..SimulatorSettings::default() });
            judge.judge(Duration::ZERO, &ask(&body("x", 9)), 10, &model, None);
            assert_eq!(judge.ledger.totals().billed.requests, billed, "{faults:?}");
        }
    }

    #[test]
    fn a_beginning_that_was_seen_is_cached_in_steps() {
        let (judge, model) = judge(SimulatorSettings::default());
        let long = "word ".repeat(1_000);
        let (one, two) = (body(&format!("{long} one"), 9), body(&format!("{long} two"), 9));
        let cached = |body, tokens| {
            judge.judge(Duration::ZERO, &ask(body), tokens, &model, None).usage.cached_tokens
        };
        assert_eq!(cached(&one, 1_008), 0, "too short to be cached");
        assert_eq!(cached(&one, 1_100), 0, "never seen before");
        assert_eq!(cached(&two, 1_100), 1_024);
    }

    #[test]
    fn a_refused_prompt_is_not_cached() {
        let long = format!("{} x", "word ".repeat(1_000));
        let (judge, model) =
            judge(SimulatorSettings { tpm: Some(1_500), ..SimulatorSettings::default() });
        let cached = |now| {
            let judgement = judge.judge(now, &ask(&body(&long, 400)), 1_100, &model, None);
            (judgement.verdict == RequestVerdict::Answered, judgement.usage.cached_tokens)
        };
        judge.judge(Duration::ZERO, &ask(&body("y", 9)), 10, &model, None);
        assert_eq!(cached(Duration::ZERO), (false, 0));
        assert_eq!(cached(Duration::from_secs(60)), (true, 0));
    }

    #[test]
    fn what_a_provisioned_deployment_cannot_take_spills_onto_a_standard_one() {
        let settings = SimulatorSettings::default();
        for (own, status) in [
            (vec![], None),
            (vec![ProfileSetting::Rate(InjectedFault::Internal, 1.0)], Some(500)),
            (vec![ProfileSetting::Rate(InjectedFault::Unavailable, 1.0)], Some(503)),
            (vec![ProfileSetting::Rate(InjectedFault::Busy, 1.0)], Some(429)),
            (vec![ProfileSetting::Down(Some((OutageKind::Unavailable, None)))], Some(503)),
            (vec![ProfileSetting::Ptu(Some(1))], Some(429)),
        ] {
            let ptu = [vec![ProfileSetting::Ptu(Some(60_000))], own].concat();
            let (ptu, standard) =
                (deployment(&settings, "ptu", &ptu), deployment(&settings, "standard", &[]));
            let judge = RequestJudge::new(settings.clone(), Arc::new(AuditLedger::new(true)));
            let small_bucket = CapacityClaim { charge: 100, load: 100, flex: false };
            locked(&ptu.capacity).admit(Duration::ZERO, small_bucket).unwrap();
            let (body, now) = (body("x", 9), Duration::ZERO);
            let judgement = judge.judge(now, &ask(&body), 10, &ptu, Some(&standard));
            assert_eq!(judgement.verdict, RequestVerdict::Answered, "{status:?}");
            assert_eq!(judgement.spilled_status.map(|status| status.as_u16()), status);
            let tier =
                if status.is_some() { BillingTier::Standard } else { BillingTier::Provisioned };
            assert_eq!(judgement.tier, tier);
            let totals = judge.ledger.totals();
            assert_eq!(totals.spilled, u64::from(status.is_some()));
            assert_eq!((totals.refused, totals.billed.requests), (RefusalCounts::default(), 1));
        }
    }
}
