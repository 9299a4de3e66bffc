//! Arguments of `promptmill dead-letters`.

use clap::Subcommand;

use crate::app::dead_letters::DeadLetterFilter;
use crate::cli::exit::CommandError;
use domain::job::BatchId;

/// List, show, retry or drop dead letters, the jobs that were given up on
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DeadLettersArgs {
    #[command(subcommand)]
    pub(super) action: DeadLetterAction,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetterAction {
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
pub(super) struct FilterFlags {
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
    pub(super) fn filter(self) -> DeadLetterFilter {
        DeadLetterFilter { ids: self.ids, batch: self.batch, cause: self.cause }
    }

    /// Returns the filter, unless it selects everything without --all.
    pub(super) fn filter_or_all(self, all: bool) -> Result<DeadLetterFilter, CommandError> {
        let filter = self.filter();
        if all != filter.is_empty() {
            let message = "name ids, --batch or --cause, or else --all";
            return Err(CommandError::usage_text(message));
        }
        Ok(filter)
    }
}
