//! `promptmill dead-letters`: lists, shows, retries or drops dead letters.

mod args;
mod text;

use args::DeadLetterAction;
pub(super) use args::DeadLettersArgs;

use super::exit::{CommandError, ExitStatus};
use super::output::{print, say};
use crate::app::dead_letters::count_causes;
use crate::backends::{self, Backends};
use crate::config::Config;
use domain::job::Amendment;
use intake::dead_letters;
use queue::DeadLetter;

pub(super) async fn run(args: DeadLettersArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let backends = backends::open(&config).await?;
    let done = run_action(args.action, &backends).await;
    backends.queue.close().await;
    done
}

async fn run_action(
    action: DeadLetterAction,
    Backends { queue, store, .. }: &Backends,
) -> Result<ExitStatus, CommandError> {
    let (queue, store) = (queue.as_ref(), store.as_ref());
    match action {
        DeadLetterAction::List { which, json } => {
            text::print_causes(&count_causes(queue, &which.filter()).await?, json)?;
        }
        DeadLetterAction::Show { which } => {
            let filter = which.filter();
            let mut printed = Ok(());
            let show = |letter: &DeadLetter| {
                if printed.is_ok() && filter.matches(letter) {
                    printed = print(&text::as_json(letter).to_string());
                }
            };
            dead_letters::for_each_dead_letter(queue, show).await?;
            printed?;
        }
        DeadLetterAction::Retry { which, model, max_tokens, all } => {
            let filter = which.filter_or_all(all)?;
            let chosen = |letter: &DeadLetter| filter.matches(letter);
            let amendment = Amendment { model, max_tokens };
            let done = dead_letters::resubmit(chosen, &amendment, queue, store).await?;
            say(&format!(
                "{} jobs are back in the queue, {} had ended otherwise meanwhile, {} stay",
                done.jobs, done.known, done.left
            ));
            return Ok(ExitStatus::of_jobs(done.left == 0));
        }
        DeadLetterAction::Drop { which, all } => {
            let filter = which.filter_or_all(all)?;
            let chosen = |letter: &DeadLetter| filter.matches(letter);
            let gone = dead_letters::discard(chosen, queue, store).await?;
            say(&format!("{gone} dead letters were dropped"));
        }
    }
    Ok(ExitStatus::AllDone)
}
