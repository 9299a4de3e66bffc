//! Combines many answers into one: in groups of so many tokens, level by level.

use serde_json::Value;

use super::document::NightDocument;
use super::error::NightRunError;
use super::history::NightHistory;
use super::recipe::ReduceSettings;
use super::requests::{NightRequests, RequestKey, RequestState, RequestTags};
use super::template::{DocumentContext, RecipeTemplates, TemplateError};

/// Templates and settings that combine a document's answers.
pub(super) struct AnswerReducer<'a> {
    pub(super) templates: &'a RecipeTemplates<'a>,
    pub(super) reduce: &'a ReduceSettings,
}

/// The next level: requests that combine some answers each, or an answer carried over alone.
pub(super) struct ReduceLevel(Vec<ReduceGroup>);

enum ReduceGroup {
    Combine(Value),
    Keep(RequestKey),
}

/// Returns true if a document has several answers, all of them there.
pub(super) fn is_ready(document: &NightDocument, requests: &NightRequests) -> bool {
    let is_answered =
        |key: &RequestKey| matches!(requests.state(key).1, RequestState::Answered { .. });
    document.level.len() > 1 && document.level.iter().all(is_answered)
}

impl AnswerReducer<'_> {
    /// Groups the answers of `level`, whose texts are given in its order.
    pub(super) fn next_level(
        &self,
        document: &NightDocument,
        level: Vec<RequestKey>,
        answers: &[String],
    ) -> Result<ReduceLevel, TemplateError> {
        let tokens: Vec<_> = answers.iter().map(|text| tokens::count(text)).collect();
        let sizes = group_sizes(&tokens, self.reduce.group_tokens);
        let last = sizes.len() == 1;
        let about = DocumentContext { document: &document.name, metadata: &document.metadata };
        let mut next = Vec::with_capacity(sizes.len());
        let mut at = 0;
        for size in sizes {
            let group = at..at + size;
            at += size;
            next.push(if size == 1 {
                ReduceGroup::Keep(level[group.start])
            } else {
                let which = (document.depth + 1, last);
                ReduceGroup::Combine(self.templates.reduce_request(
                    &about,
                    &answers[group],
                    which,
                )?)
            });
        }
        Ok(ReduceLevel(next))
    }
}

impl ReduceLevel {
    /// Makes the requests, reusing those of earlier nights; returns the keys of the next level.
    pub(super) async fn request_all(
        self,
        history: &NightHistory<'_>,
        requests: &mut NightRequests,
        tags: &RequestTags,
    ) -> Result<Vec<RequestKey>, NightRunError> {
        let mut keys = Vec::with_capacity(self.0.len());
        for next in self.0 {
            keys.push(match next {
                ReduceGroup::Keep(key) => key,
                ReduceGroup::Combine(body) => {
                    history.request_all(&[body], requests, tags).await?[0]
                }
            });
        }
        Ok(keys)
    }
}

/// Returns the sizes of groups: as many answers as fit, and two in any case, so that every level is
/// shorter than the one before.
fn group_sizes(tokens: &[usize], most: usize) -> Vec<usize> {
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
        assert_eq!(group_sizes(&[3, 3, 3, 3, 3], 9), [3, 2]);
        assert_eq!(group_sizes(&[20, 20, 20], 9), [2, 1], "two go together in any case");
        assert_eq!(group_sizes(&[1, 1], 9), [2]);
    }

    proptest! {
        #[test]
        fn every_level_is_shorter_and_loses_nothing(
            tokens in prop::collection::vec(0..50_usize, 2..60),
            most in 1..100_usize,
        ) {
            let sizes = group_sizes(&tokens, most);
            prop_assert!(sizes.len() < tokens.len());
            prop_assert_eq!(sizes.iter().sum::<usize>(), tokens.len());
        }
    }
}
