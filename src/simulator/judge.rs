//! What becomes of a request that was understood: quota, dice, usage, and the entry in the books.
//!
//! All of it in one piece under the lock of the prompt's page, so that the books are right at any
//! moment: booked and billed when it is decided, whatever the caller does while the answer takes
//! its time. Takes `now`, so that it can be tried without a server. Neighbours: `quota` and
//! `faults` decide, `ledger` notes, `service` carries the fate out.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::deployment::Deployment;
use super::faults::{Dice, Fault, Pace};
use super::ledger::{Books, Page, Usage, locked};
use super::quota::Verdict;
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

#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    books: Arc<Books>,
    /// Hashes of beginnings that were seen.
    cache: Mutex<HashSet<u64>>,
}

/// What the quota and the dice say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Refused(Verdict),
    Struck(Fault),
    Answered,
}

#[derive(Debug)]
pub struct Judgement {
    pub fate: Fate,
    pub usage: Usage,
    pub output: Output,
    pub pace: Pace,
}

/// What the model says to a prompt, for each choice. A function of the seed and the prompt, so
/// that the same prompt always gets the same answer and costs the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    pub visible: u32,
    pub reasoning: u32,
    /// It wanted to be longer than the request allows.
    pub cut_short: bool,
}

impl Judge {
    pub fn new(settings: Settings, books: Arc<Books>) -> Self {
        Self { settings, books, cache: Mutex::default() }
    }

    pub fn judge(
        &self,
        now: Duration,
        ask: &Ask<'_>,
        model: &Deployment,
        tokens: u32,
    ) -> Judgement {
        let output = self.output(ask, model);
        let charge = self.charge(ask, tokens);
        let choices = u64::from(ask.choices);
        let mut usage = Usage {
            prompt_tokens: tokens.into(),
            cached_tokens: 0,
            completion_tokens: u64::from(output.visible + output.reasoning) * choices,
            reasoning_tokens: u64::from(output.reasoning) * choices,
        };
        let decide = |page: &mut Page<'_>| {
            let mut dice = Dice::new(self.settings.seed, ask.key, page.line.fates);
            let fault = dice.fault(&self.settings.faults);
            let pace = dice.pace(&self.settings.latency, output.visible + output.reasoning);
            if let Some(fault) = fault.filter(|fault| fault.is_before_booking()) {
                page.fault(fault);
                return (Fate::Struck(fault), pace);
            }
            let verdict = locked(&model.quota).admit(now, charge);
            match verdict {
                Verdict::Admitted => page.admit(charge),
                Verdict::TokensFull { .. } => page.refuse_tokens(),
                Verdict::RequestsFull { .. } => page.refuse_requests(),
            }
            if verdict != Verdict::Admitted {
                return (Fate::Refused(verdict), pace);
            }
            usage.cached_tokens = self.cached(ask, tokens, model);
            if fault.is_none_or(Fault::is_billed) {
                page.bill(&usage);
            }
            let Some(fault) = fault else {
                page.line.fates += 1;
                return (Fate::Answered, pace);
            };
            page.fault(fault);
            (Fate::Struck(fault), pace)
        };
        let (fate, pace) = self.books.arrive(ask.key, ask.sample(), decide);
        Judgement { fate, usage, output, pace }
    }

    /// What is booked: the prompt and all the output that the request could have.
    fn charge(&self, ask: &Ask<'_>, prompt_tokens: u32) -> u64 {
        let max_output = match ask.api {
            Api::Embeddings => 0,
            Api::Chat | Api::Responses => ask.max_output.unwrap_or(DEFAULT_MAX_OUTPUT),
        };
        let estimate = u64::from(prompt_tokens) + u64::from(max_output) * u64::from(ask.choices);
        ((estimate as f64 * self.settings.charge_factor).ceil() as u64).max(1)
    }

    fn output(&self, ask: &Ask<'_>, model: &Deployment) -> Output {
        if ask.api == Api::Embeddings {
            return Output { visible: 0, reasoning: 0, cut_short: false };
        }
        let mut dice = Dice::new(self.settings.seed ^ ANSWER_SALT, ask.key, 0);
        let wanted = dice.one_to(self.settings.typical_output);
        let thoughts = if model.reasons { dice.one_to(self.settings.typical_output) } else { 0 };
        let allowed = ask.max_output.unwrap_or(u32::MAX);
        // Thoughts come first, so a tight limit can leave an answer without any words.
        let reasoning = thoughts.min(allowed);
        let visible = wanted.min(allowed - reasoning);
        Output { visible, reasoning, cut_short: visible < wanted || reasoning < thoughts }
    }

    /// How much of the prompt was seen before, and notes that it is seen now.
    fn cached(&self, ask: &Ask<'_>, prompt_tokens: u32, model: &Deployment) -> u64 {
        let prompt_tokens = u64::from(prompt_tokens);
        if prompt_tokens < CACHE_MINIMUM || ask.api == Api::Embeddings {
            return 0;
        }
        let mut cache = locked(&self.cache);
        if cache.len() > CACHE_SIZE {
            cache.clear();
        }
        let mut cached = 0;
        for (doublings, beginning) in ask.beginnings().into_iter().enumerate() {
            let seen = !cache.insert(beginning ^ model.cache_salt);
            if seen {
                cached = CACHE_MINIMUM << doublings;
            }
        }
        cached.min(prompt_tokens) / CACHE_STEP * CACHE_STEP
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults::Faults;
    use super::super::quota::Quota;
    use super::*;

    fn judge(settings: Settings) -> (Judge, Deployment) {
        let quota = Quota::new(settings.limits(), settings.window, settings.request_slice);
        let books = Arc::new(Books::new(true));
        (Judge::new(settings, books), Deployment::new("gpt-4o", quota).unwrap())
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
            let first = judge.judge(Duration::ZERO, &ask(&body), &model, 10);
            let second = judge.judge(Duration::ZERO, &ask(&body), &model, 10);
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
                match judge.judge(now, &ask(&body), &model, 10).fate {
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
            judge.judge(Duration::ZERO, &ask(&body("x", 9)), &model, 10);
            assert_eq!(judge.books.totals().billed.requests, billed, "{faults:?}");
        }
    }

    #[test]
    fn a_beginning_that_was_seen_is_cached_in_steps() {
        let (judge, model) = judge(Settings::default());
        let long = "word ".repeat(1_000);
        let (one, two) = (body(&format!("{long} one"), 9), body(&format!("{long} two"), 9));
        let cached = |body, tokens| {
            judge.judge(Duration::ZERO, &ask(body), &model, tokens).usage.cached_tokens
        };
        assert_eq!(cached(&one, 1_008), 0, "too short to be cached");
        assert_eq!(cached(&one, 1_100), 0, "never seen before");
        assert_eq!(cached(&two, 1_100), 1_024);
    }
}
