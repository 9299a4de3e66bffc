//! Words for a wait: nothing waits without saying for what and until when.

use super::rate::duration_text;
use domain::deployment::DeploymentSnapshot;

/// Characters of a refusal's words that a line has room for.
const SHOWN_WORDS: usize = 160;

/// Says what is waited for and how long, if no deployment answers.
pub(super) fn waits_for(deployments: &[DeploymentSnapshot]) -> Option<String> {
    let mut left = deployments.iter().filter(|d| d.retired.is_none()).peekable();
    left.peek()?;
    let closed: Option<Vec<_>> = left
        .map(|d| {
            let why = d.last_refusal.as_deref().or(d.breaker_why.as_deref())?;
            Some((d.asked_ms.or(d.paused_ms).unwrap_or(0), d.name.as_str(), why))
        })
        .collect();
    let (ms, name, why) = closed?.into_iter().min_by_key(|(ms, ..)| *ms)?;
    let long = if ms == 0 {
        String::new()
    } else {
        format!(" for {}", duration_text(ms.div_ceil(1_000) as f64))
    };
    let words: String = why.chars().take(SHOWN_WORDS).collect();
    Some(format!(" | waits{long}, {name} says {words}"))
}
