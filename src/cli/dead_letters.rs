//! `promptmill dead-letters`: lists, shows, retries or drops dead letters.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{CommandError, ExitStatus, print, say};
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
        which: DeadLetterFilter,
        /// Print as JSON on standard output
        #[arg(long)]
        json: bool,
    },
    /// Print dead letters as JSON lines: the job, the reason, its history
    Show {
        #[command(flatten)]
        which: DeadLetterFilter,
    },
    /// Put the jobs back into the queue, with all their attempts again
    Retry {
        #[command(flatten)]
        which: DeadLetterFilter,
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
        which: DeadLetterFilter,
        /// Select all dead letters
        #[arg(long)]
        all: bool,
    },
}

/// Filter of dead letters; all given conditions must match.
#[derive(Debug, clap::Args)]
struct DeadLetterFilter {
    /// Only jobs with these custom_ids
    ids: Vec<String>,
    /// Only jobs of this batch
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Only this cause, as `list` names it
    #[arg(long, value_name = "REASON")]
    cause: Option<String>,
}

impl DeadLetterFilter {
    fn is_unfiltered(&self) -> bool {
        self.ids.is_empty() && self.batch.is_none() && self.cause.is_none()
    }

    fn matches(&self, letter: &DeadLetter) -> bool {
        if self.cause.as_ref().is_some_and(|cause| *cause != letter.reason.reason) {
            return false;
        }
        if self.ids.is_empty() && self.batch.is_none() {
            return true;
        }
        let Some(job) = letter.job() else { return false };
        (self.ids.is_empty() || self.ids.contains(&job.custom_id))
            && self.batch.as_ref().is_none_or(|batch| *batch == job.batch_id)
    }
}

/// Count and example of the dead letters of one cause.
struct DeadLetterCauseCount {
    count: u64,
    example: String,
}

pub(super) async fn run(args: DeadLettersArgs, config: Config) -> Result<ExitStatus, CommandError> {
    if let DeadLetterAction::Retry { which, all, .. } | DeadLetterAction::Drop { which, all } =
        &args.action
        && *all != which.is_unfiltered()
    {
        let message = "name ids, --batch or --cause, or else --all";
        return Err(CommandError::usage_text(message));
    }
    let backends = backends::open(&config).await?;
    let done = run_action(&args.action, &backends).await;
    backends.queue.close().await;
    done
}

async fn run_action(action: &DeadLetterAction, on: &Backends) -> Result<ExitStatus, CommandError> {
    let (queue, store) = (on.queue.as_ref(), on.store.as_ref());
    match action {
        DeadLetterAction::List { which, json } => {
            let mut causes: BTreeMap<String, DeadLetterCauseCount> = BTreeMap::new();
            let count = |letter: &DeadLetter| {
                if which.matches(letter) {
                    let example = || DeadLetterCauseCount { count: 0, example: example_of(letter) };
                    let cause = causes.entry(letter.reason.reason.clone());
                    cause.or_insert_with(example).count += 1;
                }
            };
            dead_letters::for_each_dead_letter(queue, count).await?;
            print_causes(&causes, *json)?;
        }
        DeadLetterAction::Show { which } => {
            let mut printed = Ok(());
            let show = |letter: &DeadLetter| {
                if printed.is_ok() && which.matches(letter) {
                    printed = print(&as_json(letter).to_string());
                }
            };
            dead_letters::for_each_dead_letter(queue, show).await?;
            printed?;
        }
        DeadLetterAction::Retry { which, model, max_tokens, .. } => {
            let amendment = Amendment { model: model.clone(), max_tokens: *max_tokens };
            let chosen = |letter: &DeadLetter| which.matches(letter);
            let done = dead_letters::resubmit(chosen, &amendment, queue, store).await?;
            say(&format!(
                "{} jobs are back in the queue, {} had ended otherwise meanwhile, {} stay",
                done.jobs, done.known, done.left
            ));
            return Ok(if done.left == 0 { ExitStatus::AllDone } else { ExitStatus::SomeFailed });
        }
        DeadLetterAction::Drop { which, .. } => {
            let gone = dead_letters::discard(|letter| which.matches(letter), queue, store).await?;
            say(&format!("{gone} dead letters were dropped"));
        }
    }
    Ok(ExitStatus::AllDone)
}

fn print_causes(
    causes: &BTreeMap<String, DeadLetterCauseCount>,
    as_json: bool,
) -> Result<(), CommandError> {
    if as_json {
        let causes: Vec<_> = causes
            .iter()
            .map(|(cause, of)| json!({ "cause": cause, "count": of.count, "example": of.example }))
            .collect();
        return print(&json!({ "causes": causes }).to_string());
    }
    for (cause, DeadLetterCauseCount { count, example }) in causes {
        print(&format!("{count} {cause}, such as {example}"))?;
    }
    if causes.is_empty() {
        say("there are no dead letters");
    }
    Ok(())
}

fn example_of(letter: &DeadLetter) -> String {
    let who = match letter.job() {
        Some(job) => format!("{} of batch {}", job.custom_id, job.batch_id),
        None => "a message that is not a job".to_owned(),
    };
    format!("{who}: {}", letter.reason.description)
}

fn as_json(letter: &DeadLetter) -> Value {
    let message = serde_json::from_slice::<Value>(&letter.message);
    let message = message.unwrap_or_else(|_| String::from_utf8_lossy(&letter.message).into());
    json!({
        "cause": letter.reason.reason,
        "description": letter.reason.description,
        "delivery_count": letter.delivery_count,
        "at": letter.at.to_string(),
        "message": message,
    })
}
