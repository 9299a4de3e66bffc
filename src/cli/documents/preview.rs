//! What would be asked, without asking it.

use std::path::Path;

use super::{of_gathering, replace};
use crate::cli::{Exit, Failure, print, say};
use documents::asks::{Asks, Terms};
use documents::earlier::Earlier;
use documents::gather::{Reading, gather};
use documents::ledger::Ledger;
use domain::job::Api;
use domain::outcome::Usage;
use domain::prices::Prices;
use state::sqlite::Database;
use store::local::LocalStore;

/// Prints the prompts of the first documents; tokens and cost go beside them.
pub(super) async fn show(
    reading: &Reading<'_>,
    count: usize,
    prices: &Prices,
) -> Result<Exit, Failure> {
    let documents = reading.preview(count).await.map_err(of_gathering)?;
    let model = &reading.recipe.model;
    let cost = |usage| match prices.cost(model, usage, false) {
        Some(cost) => format!("{cost} {}", prices.currency),
        None => format!("unknown ({})", prices.lacks(model, None)),
    };
    let mut all = Usage::default();
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
            let usage = Usage { prompt, completion, ..Usage::default() };
            all += usage;
            print(&body);
            say(&format!(
                "{document}, part {} of {}: {prompt} tokens, at most {completion} of answer; at most {}",
                n + 1,
                bodies.len(),
                cost(usage)
            ));
        }
    }
    let asked = Usage { completion: 0, ..all };
    say(&format!(
        "{} documents, {unread} of them unread: {} prompt tokens for {}; with the longest answers {}; \
         prices of {}",
        documents.len(),
        all.prompt,
        cost(asked),
        cost(all),
        prices.date
    ));
    Ok(if unread == 0 { Exit::AllDone } else { Exit::SomeFailed })
}

/// Writes the prompts about all documents as a batch file, whatever earlier nights know.
pub(super) async fn write(reading: &Reading<'_>, path: &Path) -> Result<Exit, Failure> {
    // There is nothing to know, so it is kept nowhere.
    let nothing = tempfile::tempdir().map_err(Failure::unreachable)?;
    let store = LocalStore::new(Database::open(nothing.path()).map_err(Failure::unreachable)?);
    let ledger = Ledger::default();
    let earlier = Earlier { store: &store, ledger: &ledger, open: &[], schema: None };
    let terms = Terms { recipe: reading.recipe.name.clone(), ..Terms::default() };
    let mut asks = Asks::new(&reading.scratch).map_err(Failure::unreachable)?;
    let documents =
        gather(reading, &earlier, &mut asks, &terms, |_, _| {}).await.map_err(of_gathering)?;
    replace(path, asks.path()).map_err(Failure::unreachable)?;
    let mut unread = 0;
    for document in &documents {
        if let Some(why) = &document.unread {
            unread += 1;
            say(&format!("{}: {why}", document.name));
        }
    }
    say(&format!(
        "{} prompts about {} documents; {unread} documents unread",
        asks.asked().len(),
        documents.len()
    ));
    Ok(if unread == 0 { Exit::AllDone } else { Exit::SomeFailed })
}
