//! What becomes of a request that was understood: capacity, dice, usage, and the entry in the books.
//!
//! All of it in one piece under the lock of the prompt's page, so that the books are right at any
//! moment: booked and billed when it is decided, whatever the caller does while the answer takes
//! its time. Takes `now`, so that it can be tried without a server. Neighbours: `capacity`
//! and `faults` decide, `books` note, `service` carries the fate out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::StatusCode;

use super::books::{Books, Page, locked};
use super::capacity::{Claim, Denial};
use super::deployment::Deployment;
use super::faults::{Dice, Fault, Pace};
use super::form::Form;
use super::ledger::{Tier, Usage};
use super::profile::Profile;
use super::request::{Api, Ask};
use super::settings::{DEFAULT_MAX_OUTPUT, Settings};

/// Beginnings that the prompt cache knows. When it is full it is emptied, as the service's own is
/// after a while.
const CACHE_SIZE: usize = 100_000;

/// Tokens in the shortest beginning that is cached, and the steps in which more is.
const CACHE_MINIMUM: u64 = 1_024;
const CACHE_STEP: u64 = 128;

/// Sets the dice for answers apart from those for faults.
const ANSWER_SALT: u64 = 0x0061_6e73_7765_7273;
const FORM_SALT: u64 = 0x0066_6f72_6d73;

const MILLION: u32 = 1_000_000;

#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    books: Arc<Books>,
    /// Hashes of beginnings that were seen.
    cache: Mutex<HashSet<u64>>,
}

/// What the deployment and the dice say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Refused(Denial),
    Struck(Fault),
    Answered,
}

#[derive(Debug, Clone, Copy)]
pub struct Judgement<'a> {
    pub fate: Fate,
    pub usage: Usage,
    pub output: Output,
    pub pace: Pace,
    pub tier: Tier,
    /// The deployment that decided it.
    pub served: &'a Deployment,
    /// What the provisioned deployment would have answered that handed it on.
    pub spilled: Option<StatusCode>,
}

impl Judgement<'_> {
    /// The failures that a provisioned deployment hands on to a standard one.
    fn can_spill(&self) -> Option<StatusCode> {
        let status = match self.fate {
            _ if self.tier != Tier::Provisioned => return None,
            Fate::Refused(_) | Fate::Struck(Fault::Busy) => StatusCode::TOO_MANY_REQUESTS,
            Fate::Struck(Fault::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
            Fate::Struck(Fault::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
            Fate::Struck(_) | Fate::Answered => return None,
        };
        Some(status)
    }
}

/// What the model says to a prompt, for each choice. A function of the seed and the prompt, so
/// that the same prompt always gets the same answer and costs the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    pub visible: u32,
    /// Those of the visible tokens that are free words.
    pub words: u32,
    pub reasoning: u32,
    /// It wanted to be longer than the request allows.
    pub cut_short: bool,
}

impl Judge {
    pub fn new(settings: Settings, books: Arc<Books>) -> Self {
        Self { settings, books, cache: Mutex::default() }
    }

    /// Decides a request on the deployment it asked for, or on the standard one that it named for
    /// what a provisioned one can't take.
    pub fn judge<'a>(
        &self,
        now: Duration,
        ask: &Ask<'_>,
        tokens: u32,
        asked: &'a Deployment,
        standard: Option<&'a Deployment>,
    ) -> Judgement<'a> {
        self.books.arrive(ask.key, ask.sample(), |page| {
            let mut judgement = self.decide(page, now, ask, tokens, asked);
            if let Some(standard) = standard
                && let Some(status) = judgement.can_spill()
            {
                page.spill();
                judgement = self.decide(page, now, ask, tokens, standard);
                judgement.spilled = Some(status);
            }
            if let Fate::Refused(denial) = judgement.fate {
                page.refuse(denial);
            }
            judgement
        })
    }

    fn decide<'a>(
        &self,
        page: &mut Page<'_>,
        now: Duration,
        ask: &Ask<'_>,
        tokens: u32,
        model: &'a Deployment,
    ) -> Judgement<'a> {
        let profile = *locked(&model.capacity).profile();
        let output = self.output(ask, model);
        let mut judgement = Judgement {
            fate: Fate::Answered,
            usage: usage(ask, tokens, output),
            output,
            pace: Pace::default(),
            tier: tier(ask, &profile),
            served: model,
            spilled: None,
        };
        if let Some(down) = profile.is_down(now) {
            page.outage(down.fault());
            return Judgement { fate: Fate::Struck(down.fault()), ..judgement };
        }
        let mut dice = Dice::new(self.settings.seed, ask.key, page.line.fates);
        let fault = dice.fault(&profile.faults);
        judgement.pace = dice.pace(&profile.latency, output.visible + output.reasoning);
        if let Some(fault) = fault.filter(|fault| fault.is_before_booking()) {
            page.fault(fault);
            return Judgement { fate: Fate::Struck(fault), ..judgement };
        }
        let beginnings = beginnings(ask, tokens, model);
        let cached = self.cached(&beginnings, tokens);
        judgement.usage.cached_tokens = cached;
        let claim = Claim {
            charge: self.charge(ask, tokens.into()),
            load: self.charge(ask, u64::from(tokens) - cached),
            flex: judgement.tier == Tier::Flex,
        };
        let mut capacity = locked(&model.capacity);
        match capacity.admit(now, claim) {
            Ok(booked) => page.admit(booked),
            Err(denial) => return Judgement { fate: Fate::Refused(denial), ..judgement },
        }
        let is_billed = fault.is_none_or(Fault::is_billed);
        let used = if is_billed { judgement.usage.total() - cached } else { 0 };
        capacity.settle(now + judgement.pace.total(), claim, used);
        drop(capacity);
        self.remember(&beginnings);
        if is_billed {
            page.bill(&judgement.usage, judgement.tier);
        }
        match fault {
            None => page.line.fates += 1,
            Some(fault) => {
                page.fault(fault);
                judgement.fate = Fate::Struck(fault);
            }
        }
        judgement
    }

    /// What is booked: the prompt and all the output that the request could have.
    fn charge(&self, ask: &Ask<'_>, prompt_tokens: u64) -> u64 {
        let max_output = match ask.api {
            Api::Embeddings => 0,
            Api::Chat | Api::Responses => ask.max_output.unwrap_or(DEFAULT_MAX_OUTPUT),
        };
        let estimate = prompt_tokens + u64::from(max_output) * u64::from(ask.choices);
        ((estimate as f64 * self.settings.charge_factor).ceil() as u64).max(1)
    }

    fn output(&self, ask: &Ask<'_>, model: &Deployment) -> Output {
        if ask.api == Api::Embeddings {
            return Output { visible: 0, words: 0, reasoning: 0, cut_short: false };
        }
        let mut dice = Dice::new(self.settings.seed ^ ANSWER_SALT, ask.key, 0);
        let wanted = dice.one_to(self.settings.typical_output);
        let thoughts = if model.reasons { dice.one_to(self.settings.typical_output) } else { 0 };
        let allowed = ask.max_output.unwrap_or(u32::MAX);
        // Thoughts come first, so a tight limit can leave an answer without any words.
        let reasoning = thoughts.min(allowed);
        let room = allowed - reasoning;
        let (form, words) = match &ask.form {
            Some(form) => (form.tokens, if form.takes_words { wanted } else { 0 }),
            None => (0, wanted),
        };
        let visible = room.min(form.saturating_add(words));
        let cut_short = visible < form.saturating_add(words) || reasoning < thoughts;
        // What is left out of an answer that is cut short is its end.
        let words = words.min(visible.saturating_sub(form));
        Output { visible, words, reasoning, cut_short }
    }

    /// What the asked format makes of the answer to this prompt.
    pub fn form(&self, ask: &Ask<'_>, count: impl Fn(&str) -> usize) -> Option<Form> {
        let mut form = Form::of(ask.format?, &count)?;
        let mut dice = Dice::new(self.settings.seed ^ FORM_SALT, ask.key, 0);
        if dice.one_to(MILLION) <= (self.settings.misfits * f64::from(MILLION)) as u32 {
            form.talk(count);
        }
        Some(form)
    }

    /// How much of the prompt was seen before.
    fn cached(&self, beginnings: &[u64], prompt_tokens: u32) -> u64 {
        if beginnings.is_empty() {
            return 0;
        }
        let cache = locked(&self.cache);
        let longest = beginnings.iter().rposition(|beginning| cache.contains(beginning));
        let cached = longest.map_or(0, |doublings| CACHE_MINIMUM << doublings);
        cached.min(prompt_tokens.into()) / CACHE_STEP * CACHE_STEP
    }

    fn remember(&self, beginnings: &[u64]) {
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

/// The hashes by which the prompt cache knows a prompt's beginnings; none if it is too short.
fn beginnings(ask: &Ask<'_>, prompt_tokens: u32, model: &Deployment) -> Vec<u64> {
    if u64::from(prompt_tokens) < CACHE_MINIMUM || ask.api == Api::Embeddings {
        return Vec::new();
    }
    ask.beginnings().into_iter().map(|beginning| beginning ^ model.cache_salt).collect()
}

/// What the whole answer costs, before the cache is asked.
fn usage(ask: &Ask<'_>, prompt_tokens: u32, output: Output) -> Usage {
    let choices = u64::from(ask.choices);
    Usage {
        prompt_tokens: prompt_tokens.into(),
        cached_tokens: 0,
        completion_tokens: u64::from(output.visible + output.reasoning) * choices,
        reasoning_tokens: u64::from(output.reasoning) * choices,
    }
}

fn tier(ask: &Ask<'_>, profile: &Profile) -> Tier {
    match ask.flex {
        _ if profile.ptu.is_some() => Tier::Provisioned,
        Some(true) => Tier::Flex,
        _ => Tier::Standard,
    }
}

#[cfg(test)]
mod tests {
    use super::super::capacity::Capacity;
    use super::super::faults::Faults;
    use super::super::ledger::Refused;
    use super::super::profile::{Down, Setting};
    use super::*;

    fn judge(settings: Settings) -> (Judge, Deployment) {
        let model = deployment(&settings, "gpt-4o", &[]);
        (Judge::new(settings, Arc::new(Books::new(true))), model)
    }

    fn deployment(settings: &Settings, name: &str, own: &[Setting]) -> Deployment {
        let profile = settings.profile().with(Duration::ZERO, own).unwrap();
        let Settings { window, request_slice, .. } = *settings;
        let capacity = Capacity::new(Duration::ZERO, profile, window, request_slice);
        Deployment::new(name, capacity).unwrap()
    }

    fn body(prompt: &str, max_tokens: u32) -> String {
        format!(
            r#"{{"messages":[{{"role":"user","content":"{prompt}"}}],"max_tokens":{max_tokens}}}"#
        )
    }

    fn ask(body: &str) -> Ask<'_> {
        Ask::parse(Api::Chat, body.as_bytes()).unwrap()
    }

    #[test]
    fn a_prompt_always_gets_the_same_answer_within_what_it_allows() {
        let (judge, model) = judge(Settings::default());
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
        let (judge, _) = judge(Settings { charge_factor: 1.5, ..Settings::default() });
        assert_eq!(judge.charge(&ask(&body("x", 90)), 10), 150);
        let no_max = r#"{"messages":[{"role":"user","content":"x"}],"n":2}"#;
        assert_eq!(judge.charge(&ask(no_max), 8), (8 + 2 * 4_096) * 3 / 2);
        let input = br#"{"input":"x"}"#;
        assert_eq!(judge.charge(&Ask::parse(Api::Embeddings, input).unwrap(), 1), 2);
    }

    #[test]
    fn refusals_do_not_use_up_a_prompts_fates() {
        let faults = Faults::spread(0.9);
        let fates = |tpm| {
            let (judge, model) = judge(Settings { tpm, faults, ..Settings::default() });
            let mut fates = Vec::new();
            for second in 0..6_000 {
                let (body, now) = (body("x", 90), Duration::from_secs(second));
                match judge.judge(now, &ask(&body), 10, &model, None).fate {
                    Fate::Refused(_) => {}
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
            (Faults { rate_429: 1.0, ..Faults::default() }, 0),
            (Faults { rate_500: 1.0, ..Faults::default() }, 0),
            (Faults { rate_503: 1.0, ..Faults::default() }, 0),
            (Faults { rate_408: 1.0, ..Faults::default() }, 0),
            (Faults { rate_reset_before: 1.0, ..Faults::default() }, 0),
            (Faults { rate_reset_after: 1.0, ..Faults::default() }, 1),
            (Faults { rate_hang: 1.0, ..Faults::default() }, 1),
            (Faults { rate_truncate: 1.0, ..Faults::default() }, 1),
            (Faults::default(), 1),
        ] {
            let (judge, model) = judge(Settings { faults, ..Settings::default() });
            judge.judge(Duration::ZERO, &ask(&body("x", 9)), 10, &model, None);
            assert_eq!(judge.books.totals().billed.requests, billed, "{faults:?}");
        }
    }

    #[test]
    fn a_beginning_that_was_seen_is_cached_in_steps() {
        let (judge, model) = judge(Settings::default());
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
        let (judge, model) = judge(Settings { tpm: Some(1_500), ..Settings::default() });
        let cached = |now| {
            let judgement = judge.judge(now, &ask(&body(&long, 400)), 1_100, &model, None);
            (judgement.fate == Fate::Answered, judgement.usage.cached_tokens)
        };
        judge.judge(Duration::ZERO, &ask(&body("y", 9)), 10, &model, None);
        assert_eq!(cached(Duration::ZERO), (false, 0));
        assert_eq!(cached(Duration::from_secs(60)), (true, 0));
    }

    #[test]
    fn what_a_provisioned_deployment_cannot_take_spills_onto_a_standard_one() {
        let settings = Settings::default();
        for (own, status) in [
            (vec![], None),
            (vec![Setting::Rate(Fault::Internal, 1.0)], Some(500)),
            (vec![Setting::Rate(Fault::Unavailable, 1.0)], Some(503)),
            (vec![Setting::Rate(Fault::Busy, 1.0)], Some(429)),
            (vec![Setting::Down(Some((Down::Unavailable, None)))], Some(503)),
            (vec![Setting::Ptu(Some(1))], Some(429)),
        ] {
            let ptu = [vec![Setting::Ptu(Some(60_000))], own].concat();
            let (ptu, standard) =
                (deployment(&settings, "ptu", &ptu), deployment(&settings, "standard", &[]));
            let judge = Judge::new(settings.clone(), Arc::new(Books::new(true)));
            let small_bucket = Claim { charge: 100, load: 100, flex: false };
            locked(&ptu.capacity).admit(Duration::ZERO, small_bucket).unwrap();
            let (body, now) = (body("x", 9), Duration::ZERO);
            let judgement = judge.judge(now, &ask(&body), 10, &ptu, Some(&standard));
            assert_eq!(judgement.fate, Fate::Answered, "{status:?}");
            assert_eq!(judgement.spilled.map(|status| status.as_u16()), status);
            let tier = if status.is_some() { Tier::Standard } else { Tier::Provisioned };
            assert_eq!(judgement.tier, tier);
            let totals = judge.books.totals();
            assert_eq!(totals.spilled, u64::from(status.is_some()));
            assert_eq!((totals.refused, totals.billed.requests), (Refused::default(), 1));
        }
    }
}
