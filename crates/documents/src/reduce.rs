//! Many answers become one: in groups of so many tokens, level by level.

use serde_json::Value;

use super::asks::{Asks, Key, State, Terms};
use super::conduct::ConductError;
use super::earlier::Earlier;
use super::gather::Tracked;
use super::recipe::Reduce;
use super::template::{About, TemplateError, Templates};

/// What a document's answers are combined by.
pub(super) struct Combining<'a> {
    pub(super) templates: &'a Templates<'a>,
    pub(super) reduce: &'a Reduce,
}

/// The next level: requests that combine some answers each, or an answer that goes on alone.
pub(super) struct Groups(Vec<Next>);

enum Next {
    Ask(Value),
    Keep(Key),
}

/// Whether a document has several answers, all of them there.
pub(super) fn is_ready(document: &Tracked, asks: &Asks) -> bool {
    let is_answered = |key: &Key| matches!(asks.state(key).1, State::Answered { .. });
    document.level.len() > 1 && document.level.iter().all(is_answered)
}

impl Combining<'_> {
    /// Groups the answers of `level`, whose texts are given in its order.
    pub(super) fn groups(
        &self,
        document: &Tracked,
        level: Vec<Key>,
        answers: &[String],
    ) -> Result<Groups, TemplateError> {
        let tokens: Vec<_> =
            answers.iter().map(|text| bpe_openai::o200k_base().count(text)).collect();
        let sizes = sizes(&tokens, self.reduce.group_tokens);
        let last = sizes.len() == 1;
        let about = About { document: &document.name, metadata: &document.metadata };
        let mut next = Vec::with_capacity(sizes.len());
        let mut at = 0;
        for size in sizes {
            let group = at..at + size;
            at += size;
            next.push(if size == 1 {
                Next::Keep(level[group.start])
            } else {
                let which = (document.depth + 1, last);
                Next::Ask(self.templates.about_answers(&about, &answers[group], which)?)
            });
        }
        Ok(Groups(next))
    }
}

impl Groups {
    /// Asks them, as far as no night knows them; returns the next level.
    pub(super) async fn ask(
        self,
        earlier: &Earlier<'_>,
        asks: &mut Asks,
        terms: &Terms,
    ) -> Result<Vec<Key>, ConductError> {
        let mut keys = Vec::with_capacity(self.0.len());
        for next in self.0 {
            keys.push(match next {
                Next::Keep(key) => key,
                Next::Ask(body) => earlier.ask_all(&[body], asks, terms).await?[0],
            });
        }
        Ok(keys)
    }
}

/// How many answers go together: as many as fit, and two in any case, so that every level is shorter
/// than the one before.
fn sizes(tokens: &[usize], most: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let (mut size, mut sum) = (0, 0);
    for tokens in tokens {
        if size >= 2 && sum + tokens > most {
            sizes.push(size);
            (size, sum) = (0, 0);
        }
        size += 1;
        sum += tokens;
    }
    if size > 0 {
        sizes.push(size);
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_go_together_as_far_as_they_fit() {
        assert_eq!(sizes(&[3, 3, 3, 3, 3], 9), [3, 2]);
        assert_eq!(sizes(&[20, 20, 20], 9), [2, 1], "two go together in any case");
        assert_eq!(sizes(&[1, 1], 9), [2]);
    }

    proptest! {
        #[test]
        fn every_level_is_shorter_and_loses_nothing(
            tokens in prop::collection::vec(0..50_usize, 2..60),
            most in 1..100_usize,
        ) {
            let sizes = sizes(&tokens, most);
            prop_assert!(sizes.len() < tokens.len());
            prop_assert_eq!(sizes.iter().sum::<usize>(), tokens.len());
        }
    }
}
