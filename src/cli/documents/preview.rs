//! Prompts that a night would send, without sending them.

use std::path::Path;

use super::copy_atomically;
use crate::cli::{CommandError, ExitStatus, print, say, scratch_dir};
use documents::collect::{DocumentReader, collect_documents};
use documents::history::NightHistory;
use documents::ledger::NightLedger;
use documents::requests::{NightRequests, RequestTags};
use domain::job::Api;
use domain::outcome::TokenUsage;
use domain::prices::Prices;
use state::sqlite::Database;
use store::local::LocalStore;

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
    Ok(if unread == 0 { ExitStatus::AllDone } else { ExitStatus::SomeFailed })
}

/// Writes the prompts about all documents as a batch file, ignoring earlier nights.
pub(super) async fn write(
    reading: &DocumentReader<'_>,
    path: &Path,
) -> Result<ExitStatus, CommandError> {
    // No earlier night is used, so the store and the ledger are empty.
    let nothing = scratch_dir()?;
    let store = LocalStore::new(Database::open(nothing.path())?);
    let ledger = NightLedger::default();
    let history = NightHistory { store: &store, ledger: &ledger, unclosed: &[], schema: None };
    let tags = RequestTags { recipe: reading.recipe.name.clone(), ..RequestTags::default() };
    let mut requests = NightRequests::new(&reading.scratch).map_err(CommandError::internal)?;
    let documents = collect_documents(reading, &history, &mut requests, &tags, |_, _| {}).await?;
    copy_atomically(path, requests.path())?;
    let mut unread = 0;
    for document in &documents {
        if let Some(why) = &document.unread {
            unread += 1;
            say(&format!("{}: {why}", document.name));
        }
    }
    say(&format!(
        "{} prompts about {} documents; {unread} documents unread",
        requests.added().len(),
        documents.len()
    ));
    Ok(if unread == 0 { ExitStatus::AllDone } else { ExitStatus::SomeFailed })
}
