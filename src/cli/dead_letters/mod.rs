//! `promptmill dead-letters`: lists, shows, retries or drops dead letters.

mod text;

use clap::Subcommand;

use super::{CommandError, ExitStatus, print, say};
use crate::app::dead_letters::{DeadLetterFilter, count_causes};
use crate::backends::{self, Backends};
use crate::config::Config;
use domain::job::{Amendment, BatchId};
use intake::dead_letters;
use queue::DeadLetter;

/// List, show, retry or drop dead letters, the jobs that were given up on
#[derive(Debug, clap::Args)]
pub(super) struct DeadLettersArgs {
    #[command(subcommand)]
    action: DeadLetterAction,
}

#[derive(Debug, Subcommand)]
enum DeadLetterAction {
    /// Count dead letters by cause, with an example of each
    List {
        #[command(flatten)]
        which: FilterFlags,
        /// Print as JSON on standard output
        #[arg(long)]
        json: bool,
    },
    /// Print dead letters as JSON lines: the job, the reason, its history
    Show {
        #[command(flatten)]
        which: FilterFlags,
    },
    /// Put the jobs back into the queue, with all their attempts again
    Retry {
        #[command(flatten)]
        which: FilterFlags,
        /// Use this model in place of their own
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// Allow answers of this many tokens in place of their own limit
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        max_tokens: Option<u32>,
        /// Select all dead letters
        #[arg(long)]
        all: bool,
    },
    /// Delete dead letters; their jobs keep the outcome dead
    Drop {
        #[command(flatten)]
        which: FilterFlags,
        /// Select all dead letters
        #[arg(long)]
        all: bool,
    },
}

/// Dead letters that are meant; all given conditions must match.
#[derive(Debug, Clone, clap::Args)]
struct FilterFlags {
    /// Only jobs with these custom_ids
    ids: Vec<String>,
    /// Only jobs of this batch
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Only this cause, as `list` names it
    #[arg(long, value_name = "REASON")]
    cause: Option<String>,
}

impl FilterFlags {
    fn filter(self) -> DeadLetterFilter {
        DeadLetterFilter { ids: self.ids, batch: self.batch, cause: self.cause }
    }

    /// Returns the filter, unless it selects everything without --all.
    fn filter_or_all(self, all: bool) -> Result<DeadLetterFilter, CommandError> {
        let filter = self.filter();
        if all != filter.is_empty() {
            let message = "name ids, --batch or --cause, or else --all";
            return Err(CommandError::usage_text(message));
        }
        Ok(filter)
    }
}

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
