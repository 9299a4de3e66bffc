//! `promptmill dead-letters`: what was given up on, looked at, worked again or let go.

use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Exit, Failure, print, say};
use crate::backends::{self, Backends};
use crate::config::Config;
use domain::job::{Amendment, BatchId};
use intake::dead_letters::{self, DeadLetterError};
use queue::{DeadLetter, QueueError};
use store::StoreError;

/// List, show, retry or drop the jobs that were given up on
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Count them by cause, with an example of each
    List {
        #[command(flatten)]
        which: Which,
        /// Print as JSON on standard output
        #[arg(long)]
        json: bool,
    },
    /// Print them one by one, as JSON lines: the job, the reason, its history
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Work them again, with all their tries
    Retry {
        #[command(flatten)]
        which: Which,
        /// Ask this model in place of their own
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// Allow answers of so many tokens in place of what they say
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        max_tokens: Option<u32>,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Delete them; their jobs stay ended as dead
    Drop {
        #[command(flatten)]
        which: Which,
        /// All of them
        #[arg(long)]
        all: bool,
    },
}

/// Which dead letters; those that fit everything that is said.
#[derive(Debug, clap::Args)]
struct Which {
    /// Their custom_ids
    ids: Vec<String>,
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Their cause, as `list` names it
    #[arg(long, value_name = "REASON")]
    cause: Option<String>,
}

impl Which {
    fn is_everything(&self) -> bool {
        self.ids.is_empty() && self.batch.is_none() && self.cause.is_none()
    }

    fn has(&self, letter: &DeadLetter) -> bool {
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

/// The dead letters of one cause.
struct Cause {
    count: u64,
    example: String,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    if let Action::Retry { which, all, .. } | Action::Drop { which, all } = &args.action
        && *all != which.is_everything()
    {
        let message = "name ids, --batch or --cause, or else --all";
        return Err(Failure::usage(anyhow::anyhow!(message)));
    }
    let backends = backends::open(&config).await?;
    let done = act(&args.action, &backends).await;
    backends.queue.close().await;
    done.map_err(|error| match error {
        DeadLetterError::Queue(QueueError::Unavailable(_))
        | DeadLetterError::Store(StoreError::Unavailable(_)) => Failure::unreachable(error),
        error => Failure::usage(error),
    })
}

async fn act(action: &Action, on: &Backends) -> Result<Exit, DeadLetterError> {
    let (queue, store) = (on.queue.as_ref(), on.store.as_ref());
    match action {
        Action::List { which, json } => {
            let mut causes: BTreeMap<String, Cause> = BTreeMap::new();
            let count = |letter: &DeadLetter| {
                if which.has(letter) {
                    let example = || Cause { count: 0, example: example_of(letter) };
                    let cause = causes.entry(letter.reason.reason.clone());
                    cause.or_insert_with(example).count += 1;
                }
            };
            dead_letters::visit(queue, count).await?;
            tell(&causes, *json);
        }
        Action::Show { which } => {
            let show = |letter: &DeadLetter| {
                if which.has(letter) {
                    print(&as_json(letter).to_string());
                }
            };
            dead_letters::visit(queue, show).await?;
        }
        Action::Retry { which, model, max_tokens, .. } => {
            let amendment = Amendment { model: model.clone(), max_tokens: *max_tokens };
            let chosen = |letter: &DeadLetter| which.has(letter);
            let done = dead_letters::resubmit(chosen, &amendment, queue, store).await?;
            say(&format!(
                "{} jobs are in the queue again, {} had ended otherwise meanwhile, {} stay",
                done.jobs, done.known, done.left
            ));
            return Ok(if done.left == 0 { Exit::AllDone } else { Exit::SomeFailed });
        }
        Action::Drop { which, .. } => {
            let gone = dead_letters::discard(|letter| which.has(letter), queue, store).await?;
            say(&format!("{gone} dead letters were dropped"));
        }
    }
    Ok(Exit::AllDone)
}

fn tell(causes: &BTreeMap<String, Cause>, as_json: bool) {
    if as_json {
        let causes: Vec<_> = causes
            .iter()
            .map(|(cause, of)| json!({ "cause": cause, "count": of.count, "example": of.example }))
            .collect();
        print(&json!({ "causes": causes }).to_string());
        return;
    }
    for (cause, Cause { count, example }) in causes {
        print(&format!("{count} {cause}, such as {example}"));
    }
    if causes.is_empty() {
        say("there are no dead letters");
    }
}

fn example_of(letter: &DeadLetter) -> String {
    let who = match letter.job() {
        Some(job) => format!("{} of batch {}", job.custom_id, job.batch_id),
        None => "a message that is no job".to_owned(),
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
