//! Prompts of a wanted length, or recorded ones from a batch file.
//!
//! The service's cache matches prompts from their beginning, so a prompt that must not be cached
//! begins with words that no other has. They come from the system's randomness and not from the
//! run's seed: running the same benchmark again must not find its own prompts cached.

use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::sizes::RequestShape;
use domain::job::{Api, BatchId, Job, JobHistory, JobId, TokenEstimate};

/// Words of one token each, with the space before it, and also without where it stands first.
const WORDS: [&str; 32] = [
    "apple", "bread", "chair", "door", "earth", "fire", "glass", "horse", "iron", "king", "lake",
    "moon", "name", "water", "page", "queen", "rain", "sand", "tree", "unit", "voice", "wind",
    "year", "zero", "blue", "cold", "dark", "east", "fish", "gold", "hand", "book",
];

/// Words at the beginning that make a prompt unlike all others: 2^60 combinations.
const MARK_WORDS: usize = 12;

/// Tokens around one user message: see `admission::charge`.
const MESSAGE_TOKENS: u32 = 7;

/// Placeholder for the mark in a recorded prompt.
const MARK_PLACEHOLDER: &str = "\u{1}promptmill-mark\u{1}";

/// Request options.
#[derive(Debug, Clone)]
pub struct PromptStyle {
    pub model: String,
    pub stream: bool,
    /// All prompts of one length are the same, so that a cache helps.
    pub cacheable: bool,
    /// Field that bounds the answer: `max_completion_tokens`, or `max_tokens` for servers that do
    /// not know it.
    pub limit_field: String,
}

/// Endless generator of requests.
#[derive(Debug)]
pub struct PromptGenerator {
    style: PromptStyle,
    source: PromptSource,
    batch: BatchId,
    /// Draws sizes: reproducible from the seed.
    sizes: SmallRng,
    /// Draws marks and ids: different in every run.
    marks: SmallRng,
    next: usize,
}

#[derive(Debug)]
enum PromptSource {
    Generated { shape: RequestShape, filler: FillerText },
    Recorded(Arc<[RecordedPrompt]>),
}

impl PromptGenerator {
    /// Generates prompts from words, in the lengths that the shape draws.
    pub fn generated(shape: RequestShape, style: PromptStyle, seed: u64) -> Self {
        Self::new(PromptSource::Generated { shape, filler: FillerText::new() }, style, seed)
    }

    /// Repeats the prompts of these jobs endlessly.
    pub fn recorded(jobs: &[Job], style: PromptStyle, seed: u64) -> Self {
        let templates = jobs.iter().map(|job| RecordedPrompt::of(job, &style)).collect();
        Self::new(PromptSource::Recorded(templates), style, seed)
    }

    fn new(source: PromptSource, style: PromptStyle, seed: u64) -> Self {
        Self {
            style,
            source,
            batch: "bench".parse().expect("it is of letters"),
            sizes: SmallRng::seed_from_u64(seed ^ 0x5125),
            marks: rand::make_rng(),
            next: 0,
        }
    }

    /// Returns the next request; `given` overrides the shape's (prompt, output) tokens.
    pub fn next(&mut self, given: Option<(u32, u32)>) -> Job {
        let number = self.next;
        self.next += 1;
        let mark = if self.style.cacheable { 0 } else { self.marks.random::<u64>() };
        let (api, model, body, estimate) = match &self.source {
            PromptSource::Generated { shape, filler } => {
                let (prompt, output) = given.unwrap_or_else(|| {
                    (shape.prompt.draw(&mut self.sizes), shape.output.draw(&mut self.sizes))
                });
                let prompt = prompt.max(MESSAGE_TOKENS + 1);
                let body = self.style.body(&filler.text(mark, prompt - MESSAGE_TOKENS), output);
                let estimate = TokenEstimate { prompt, max_output: output };
                (Api::ChatCompletions, self.style.model.clone(), body, estimate)
            }
            PromptSource::Recorded(templates) => {
                let template = &templates[number % templates.len()];
                let mark = (!self.style.cacheable).then_some(mark);
                let body = template.body(mark);
                (template.api, template.model.clone(), body, template.estimate)
            }
        };
        Job {
            id: JobId::from_bytes(self.marks.random()),
            batch_id: self.batch.clone(),
            custom_id: String::new(),
            position: number as u64,
            api,
            model,
            body,
            estimate: Some(estimate),
            deadline: None,
            not_before: None,
            priority: 0,
            metadata: None,
            may_have_outcome: false,
            claim_check: None,
            history: JobHistory::default(),
        }
    }
}

impl PromptStyle {
    fn body(&self, text: &str, output: u32) -> Bytes {
        let model = Value::from(self.model.as_str());
        let field = Value::from(self.limit_field.as_str());
        let stream = self.stream;
        // The text is of plain words: nothing in it needs escaping.
        Bytes::from(format!(
            r#"{{"model":{model},"stream":{stream},{field}:{output},"messages":[{{"role":"user","content":"{text}"}}]}}"#
        ))
    }
}

fn mark_words(mark: u64) -> impl Iterator<Item = &'static str> {
    (0..MARK_WORDS).map(move |i| WORDS[(mark >> (5 * i)) as usize % WORDS.len()])
}

/// Filler text of any length, with the end of each word.
#[derive(Debug)]
struct FillerText {
    text: String,
    ends: Vec<usize>,
}

impl FillerText {
    const LENGTH: usize = 4_096;

    fn new() -> Self {
        let mut rng = SmallRng::seed_from_u64(0);
        let (mut text, mut ends) = (String::new(), Vec::new());
        for _ in 0..Self::LENGTH {
            text.push(' ');
            text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
            ends.push(text.len());
        }
        Self { text, ends }
    }

    /// Returns text of this many words, the first of which encode the mark.
    fn text(&self, mark: u64, words: u32) -> String {
        let words = words as usize;
        let mut text = String::with_capacity(words * 6);
        for (i, word) in mark_words(mark).take(words).enumerate() {
            if i > 0 {
                text.push(' ');
            }
            text.push_str(word);
        }
        let mut left = words.saturating_sub(MARK_WORDS);
        while left > 0 {
            let part = left.min(Self::LENGTH);
            text.push_str(&self.text[..self.ends[part - 1]]);
            left -= part;
        }
        text
    }
}

/// Recorded body, split where the mark goes.
#[derive(Debug)]
struct RecordedPrompt {
    api: Api,
    model: String,
    before: Bytes,
    /// `None`: the body has no text to mark.
    after: Option<Bytes>,
    estimate: TokenEstimate,
}

impl RecordedPrompt {
    fn of(job: &Job, style: &PromptStyle) -> Self {
        let mut body: Value = serde_json::from_slice(&job.body).unwrap_or_default();
        if job.api != Api::Embeddings {
            body["stream"] = json!(style.stream);
            if !style.stream
                && let Some(object) = body.as_object_mut()
            {
                object.remove("stream_options");
            }
        }
        if let Some(text) = first_text(job.api, &mut body) {
            text.insert_str(0, MARK_PLACEHOLDER);
        }
        let place = Value::from(MARK_PLACEHOLDER).to_string();
        let place = place.trim_matches('"');
        let whole = body.to_string();
        let (before, after) = match whole.split_once(place) {
            Some((before, after)) => (before, Some(Bytes::copy_from_slice(after.as_bytes()))),
            None => (whole.as_str(), None),
        };
        Self {
            api: job.api,
            model: job.model.clone(),
            before: Bytes::copy_from_slice(before.as_bytes()),
            after,
            estimate: job.estimate.unwrap_or_default(),
        }
    }

    fn body(&self, mark: Option<u64>) -> Bytes {
        let Some(after) = &self.after else { return self.before.clone() };
        let mut body = self.before.to_vec();
        for word in mark.into_iter().flat_map(mark_words) {
            body.extend_from_slice(word.as_bytes());
            body.push(b' ');
        }
        body.extend_from_slice(after);
        body.into()
    }
}

/// Returns the first text that the model reads.
fn first_text(api: Api, body: &mut Value) -> Option<&mut String> {
    let field = if api == Api::ChatCompletions { "messages" } else { "input" };
    text_in(body.get_mut(field)?)
}

fn text_in(value: &mut Value) -> Option<&mut String> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(items) => items.iter_mut().find_map(text_in),
        Value::Object(object) => {
            let field = if object.contains_key("content") { "content" } else { "text" };
            text_in(object.get_mut(field)?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sizes::SizeDistribution;

    fn style(cacheable: bool) -> PromptStyle {
        PromptStyle {
            model: "gpt-4.1-mini".into(),
            stream: true,
            cacheable,
            limit_field: "max_completion_tokens".into(),
        }
    }

    fn made(prompt: u32, cacheable: bool) -> PromptGenerator {
        let shape = RequestShape {
            prompt: SizeDistribution::Fixed(prompt),
            output: SizeDistribution::Fixed(9),
        };
        PromptGenerator::generated(shape, style(cacheable), 1)
    }

    #[test]
    fn every_word_is_one_token_at_the_start_and_after_a_space() {
        for model in ["gpt-4.1-mini", "gpt-3.5-turbo"] {
            let tokens = |text: &str| {
                let body = style(false).body(text, 1);
                tokens::estimate(Api::ChatCompletions, model, &body).prompt - MESSAGE_TOKENS
            };
            let bad: Vec<_> =
                WORDS.iter().filter(|w| (tokens(w), tokens(&format!("a {w}"))) != (1, 2)).collect();
            assert!(bad.is_empty(), "{model}: {bad:?}");
        }
    }

    #[test]
    fn a_made_prompt_has_exactly_the_tokens_that_were_asked_for() {
        for model in ["gpt-4.1-mini", "gpt-3.5-turbo"] {
            for prompt in [8, 15, 100, 6_000] {
                let mut prompts = made(prompt, false);
                prompts.style.model = model.into();
                let job = prompts.next(None);
                let counted = tokens::estimate(job.api, model, &job.body);
                assert_eq!(counted, TokenEstimate { prompt, max_output: 9 }, "{model}");
                assert_eq!(job.estimate, Some(counted));
            }
        }
    }

    #[test]
    fn no_two_prompts_begin_alike_unless_they_may_be_cached() {
        let start = |job: Job| {
            let body: Value = serde_json::from_slice(&job.body).unwrap();
            body["messages"][0]["content"].as_str().unwrap()[..50].to_owned()
        };
        let (mut one, mut other) = (made(500, false), made(500, false));
        let mut all: Vec<String> = (0..500).map(|_| start(one.next(None))).collect();
        all.extend((0..500).map(|_| start(other.next(None))));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1_000, "not in one run and not in the next");
        let mut same = made(500, true);
        assert_eq!(start(same.next(None)), start(same.next(None)));
    }

    #[test]
    fn recorded_prompts_are_marked_at_their_first_text_and_streamed_as_asked() {
        let body = |text: &str| {
            json!({"model": "m", "stream": false, "messages": [
            {"role": "system", "content": [{"type": "text", "text": text}]}]})
        };
        let mut job = made(50, false).next(None);
        job.body = body("be \"kind\"").to_string().into();
        let mut prompts = PromptGenerator::recorded(std::slice::from_ref(&job), style(false), 1);
        let first: Value = serde_json::from_slice(&prompts.next(None).body).unwrap();
        let text = first["messages"][0]["content"][0]["text"].as_str().unwrap();
        assert!(
            text.ends_with(" be \"kind\"") && text.split(' ').count() == MARK_WORDS + 2,
            "{text}"
        );
        assert_eq!(first["stream"], true);
        let mut prompts = PromptGenerator::recorded(&[job], style(true), 1);
        let mut plain = body("be \"kind\"");
        plain["stream"] = json!(true);
        assert_eq!(serde_json::from_slice::<Value>(&prompts.next(None).body).unwrap(), plain);
    }
}
