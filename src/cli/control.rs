//! `promptmill pause`, `resume` and `cancel`: control a batch across all its workers.

use super::budget::BudgetFlags;
use super::exit::{CommandError, ExitStatus};
use super::output::print;
use crate::backends;
use crate::config::Config;
use control::{self, ControlError};
use domain::job::BatchId;
use domain::prices::Prices;
use store::{Batch, BatchState};

/// Pause a batch: no new call starts, calls in flight finish, and nothing is lost
#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    /// The batch
    batch: BatchId,
    /// Reason, shown in its status
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Resume a paused batch
#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// The batch
    batch: BatchId,
    #[command(flatten)]
    budget: BudgetFlags,
}

/// Cancel a batch: existing outcomes are kept, pending jobs end as cancelled
#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// The batch
    batch: BatchId,
}

pub(super) async fn pause(args: PauseArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let store = backends::open_store(&config).await?;
    print_state(control::pause(store.as_ref(), &args.batch, args.reason.as_deref()).await)
}

pub(super) async fn resume(args: ResumeArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let prices = Prices::load(config.prices.file.as_deref())?;
    let store = backends::open_store(&config).await?;
    if let Some(limit) = args.budget.limit(&prices)? {
        let budget = control::change_budget(store.as_ref(), &args.batch, &limit).await?;
        print(&format!("batch {} has a budget of {budget}", args.batch))?;
    }
    print_state(control::resume(store.as_ref(), &args.batch).await)
}

pub(super) async fn cancel(args: CancelArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let store = backends::open_store(&config).await?;
    print_state(control::cancel(store.as_ref(), &args.batch).await)
}

fn print_state(done: Result<Batch, ControlError>) -> Result<ExitStatus, CommandError> {
    let batch = done?;
    let id = &batch.id;
    print(&match (batch.state, &batch.reason) {
        (BatchState::Paused, None) => {
            format!("batch {id} is paused: no new call begins; go on with `promptmill resume {id}`")
        }
        (BatchState::Paused, Some(why)) => {
            format!("batch {id} is paused ({why}): go on with `promptmill resume {id}`")
        }
        (BatchState::Cancelled, _) => format!(
            "batch {id} is cancelled: its workers record what is pending as cancelled; \
             `promptmill status {id}` shows how far they are"
        ),
        (state, _) => format!("batch {id} is {}", state.as_str()),
    })?;
    Ok(ExitStatus::AllDone)
}
