//! `promptmill pause`, `resume` and `cancel`: a batch over all its workers.

use super::budget::BudgetFlags;
use super::{Exit, Failure, print};
use crate::backends;
use crate::config::Config;
use control::{self, ControlError};
use domain::job::BatchId;
use domain::prices::Prices;
use store::{Batch, BatchState};

/// Let no new call of a batch begin; calls in flight end, and nothing is lost
#[derive(Debug, clap::Args)]
pub(super) struct PauseArgs {
    /// The batch
    batch: BatchId,
    /// Why, for whoever asks for its status
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Let a paused batch go on
#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    /// The batch
    batch: BatchId,
    #[command(flatten)]
    budget: BudgetFlags,
}

/// End a batch: what has ended is kept, pending jobs end as cancelled
#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// The batch
    batch: BatchId,
}

pub(super) async fn pause(args: PauseArgs, config: Config) -> Result<Exit, Failure> {
    let store = backends::open_store(&config).await?;
    told(control::pause(store.as_ref(), &args.batch, args.reason.as_deref()).await)
}

pub(super) async fn resume(args: ResumeArgs, config: Config) -> Result<Exit, Failure> {
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    let store = backends::open_store(&config).await?;
    if let Some(limit) = args.budget.limit(&prices)? {
        let budget = control::change_budget(store.as_ref(), &args.batch, &limit).await?;
        print(&format!("batch {} has a budget of {budget}", args.batch));
    }
    told(control::resume(store.as_ref(), &args.batch).await)
}

pub(super) async fn cancel(args: CancelArgs, config: Config) -> Result<Exit, Failure> {
    let store = backends::open_store(&config).await?;
    told(control::cancel(store.as_ref(), &args.batch).await)
}

fn told(done: Result<Batch, ControlError>) -> Result<Exit, Failure> {
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
    });
    Ok(Exit::AllDone)
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let exit = if error.is_passing() { Exit::Unreachable } else { Exit::Usage };
        Self { error: error.into(), exit }
    }
}
