//! Prompts that a night would send, without sending them.

use crate::cli::exit::{CommandError, ExitStatus};
use crate::cli::output::{print, say};
use documents::collect::DocumentReader;
use domain::job::Api;
use domain::outcome::TokenUsage;
use domain::prices::Prices;

/// Prints the prompts of the first documents; tokens and cost go to stderr.
pub(super) async fn show(
    reading: &DocumentReader<'_>,
    count: usize,
    prices: &Prices,
) -> Result<ExitStatus, CommandError> {
    let documents = reading.preview(count).await?;
    let model = &reading.recipe.model;
    let cost = |usage| match prices.cost(model, usage, false) {
        Some(cost) => format!("{cost} {}", prices.currency),
        None => format!("unknown ({})", prices.missing_price(model, None)),
    };
    let mut all = TokenUsage::default();
    let mut unread = 0;
    for (document, bodies) in &documents {
        let bodies = match bodies {
            Ok(bodies) => bodies,
            Err(why) => {
                unread += 1;
                say(&format!("{document}: {why}"));
                continue;
            }
        };
        for (n, body) in bodies.iter().enumerate() {
            let body = body.to_string();
            let estimate = tokens::estimate(Api::ChatCompletions, model, body.as_bytes());
            let (prompt, completion) = (estimate.prompt.into(), estimate.max_output.into());
            let usage = TokenUsage { prompt, completion, ..TokenUsage::default() };
            all += usage;
            print(&body)?;
            say(&format!(
                "{document}, part {} of {}: {prompt} tokens, at most {completion} of answer; at most {}",
                n + 1,
                bodies.len(),
                cost(usage)
            ));
        }
    }
    let asked = TokenUsage { completion: 0, ..all };
    say(&format!(
        "{} documents, {unread} of them unread: {} prompt tokens for {}; with the longest answers {}; \
         prices of {}",
        documents.len(),
        all.prompt,
        cost(asked),
        cost(all),
        prices.date
    ));
    Ok(ExitStatus::of_jobs(unread == 0))
}
