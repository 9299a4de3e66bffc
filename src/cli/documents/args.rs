//! Command line of `promptmill documents`.

use std::path::PathBuf;

use clap::ValueHint;
use jiff::Timestamp;

use crate::cli::exit::CommandError;
use crate::cli::local::LocalFlags;
use crate::config::Config;
use documents::night::NightOptions;
use domain::job::BatchId;
use plan::DueTime;
use simulator::Simulator;

/// Run a recipe's prompts on documents; answers of earlier nights are reused
///
/// Without --run the prompts go to the configured queue, for workers to take, and this command
/// waits for their answers. It may be started any number of times: an open night is resumed, and
/// one that another process conducts is left to it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DocumentsArgs {
    /// Folder, or URL of a blob container or of a prefix in it [default: documents.source of the
    /// configuration]
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::DirPath)]
    pub(super) source: Option<String>,
    /// Recipe with the prompts to run
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) recipe: PathBuf,
    /// File for the answers as a table: .csv, .parquet or .jsonl
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) table: Option<PathBuf>,
    /// Name of the night's batch [default: the recipe's and the date]
    #[arg(long, value_name = "NAME")]
    pub(super) batch: Option<BatchId>,
    /// Repeat prompts that were refused or did not fit their schema on earlier nights
    #[arg(long)]
    pub(super) retry_failed: bool,
    /// End when the first prompts are in the queue; start again for those that follow and the table
    #[arg(long, conflicts_with_all = ["run", "table"])]
    pub(super) no_wait: bool,
    /// Print the first N documents' prompts, tokens and cost, and call nothing
    #[arg(long, value_name = "N", conflicts_with_all = ["run", "table", "no_wait", "batch_file"])]
    pub(super) preview: Option<usize>,
    /// Write the prompts about the documents as a batch file, and call nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["run", "table", "no_wait"])]
    pub(super) batch_file: Option<PathBuf>,
    /// Print the night's report as JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) deadline: DeadlineFlags,
    /// Work in this process, on the embedded queue and store, until all is answered
    #[arg(long)]
    pub(super) run: bool,
    #[command(flatten)]
    pub(super) local: LocalFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeadlineFlags {
    /// Deadline: a time of day, or a timestamp with its zone. Prompts not sent by then are left to
    /// the next night
    #[arg(long, value_name = "TIME")]
    pub(super) finish_by: Option<DueTime>,
    /// Time zone of times of day, such as Asia/Tokyo [default: the machine's]
    #[arg(long, value_name = "NAME")]
    pub(super) time_zone: Option<String>,
    /// Send nothing if it can't be done by --finish-by
    #[arg(long, requires = "finish_by")]
    pub(super) strict: bool,
}

impl DocumentsArgs {
    /// Applies the flags of `--run` to the configuration; starts the simulator if it is to answer.
    pub(super) async fn with_run_flags(
        &self,
        config: Config,
    ) -> Result<(Option<Simulator>, Config), CommandError> {
        match (self.run, self.local.is_given()) {
            (true, _) => self.local.start_simulator(self.local.apply(config)?).await,
            (false, false) => Ok((None, config)),
            (false, true) => Err(CommandError::usage_text(
                "--simulate, --endpoint, --state and the limits go with --run; without it, workers \
                 call what their configuration says",
            )),
        }
    }

    pub(super) fn night_options(&self) -> Result<NightOptions, CommandError> {
        let when = &self.deadline;
        let zone = plan::zone(when.time_zone.as_deref()).map_err(CommandError::usage)?;
        let now = Timestamp::now();
        let finish_by = when.finish_by.map(|due| due.after(now, &zone));
        if finish_by.is_some_and(|by| by <= now) {
            return Err(CommandError::usage_text("--finish-by is already past"));
        }
        // A night is named after the date of its morning.
        let date = finish_by.unwrap_or(now).to_zoned_datetime(zone).date();
        Ok(NightOptions { batch: self.batch.clone(), finish_by, date })
    }
}
