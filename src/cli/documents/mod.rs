//! `promptmill documents`: a nightly batch over a folder or container of documents.

mod args;
mod display;
mod preview;
mod text;

use self::display::NightDisplay;
use super::exit::{CommandError, ExitStatus};
use super::output::{print, say};
use super::{interrupt, prompt_file, worker_end};
use crate::app::night::{DocumentsSetup, NightEnd, NightRequest, NightUse};
use crate::config::Config;
use documents::summary::NightSummary;
use documents::table::AnswerTableFormat;
use domain::prices::Prices;

pub(super) use self::args::DocumentsArgs;

pub(super) async fn run(args: DocumentsArgs, config: Config) -> Result<ExitStatus, CommandError> {
    if let Some(table) = &args.table {
        AnswerTableFormat::of(table)?;
    }
    let (_simulator, config) = args.with_run_flags(config).await?;
    let setup = DocumentsSetup::open(&args.recipe, args.source.as_deref(), &config).await?;
    let (reader, prices) = (setup.reader(), Prices::load(config.prices.file.as_deref())?);
    if let Some(count) = args.preview {
        return preview::show(&reader, count, &prices).await;
    }
    if let Some(path) = &args.batch_file {
        return prompt_file::write(&reader, path).await;
    }
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    if let Some(batch) = &args.batch {
        args.local.batch_name(batch.clone())?;
    }
    let request = NightRequest {
        options: args.night_options()?,
        is_embedded: args.run,
        is_simulated: args.local.simulate,
        retry_failed: args.retry_failed,
        is_strict: args.deadline.strict,
        wait: !args.no_wait,
        table: args.table,
    };
    let display = NightDisplay::new(request.is_strict);
    let night = NightUse {
        request: &request,
        config: &config,
        reader: &reader,
        prices: &prices,
        stop: &stop,
        on_event: &|event| display.show(event),
    };
    let end = night.run().await;
    drop(display);
    match end? {
        NightEnd::Closed(summary) => tell_summary(&summary, &prices, args.json),
        end => Ok(say_open_end(&end)),
    }
}

fn tell_summary(
    summary: &NightSummary,
    prices: &Prices,
    json: bool,
) -> Result<ExitStatus, CommandError> {
    if json {
        print(&serde_json::to_string(summary)?)?;
    }
    text::say_summary(summary, prices);
    let without = summary.rows.failed + summary.rows.unfinished + summary.documents.unread;
    Ok(ExitStatus::of_jobs(without == 0))
}

/// Tells why a start ended before its night did.
fn say_open_end(end: &NightEnd) -> ExitStatus {
    match end {
        NightEnd::Elsewhere(error) => {
            say(&format!("nothing to do here: {error}"));
            ExitStatus::AllDone
        }
        NightEnd::TooLate => ExitStatus::SomeFailed,
        NightEnd::Stopped => {
            say("stopped: nothing is lost; start it again to resume");
            ExitStatus::Interrupted
        }
        NightEnd::Enqueued { prompts } => {
            say(&format!(
                "{prompts} prompts are in the queue; start it again for those that follow"
            ));
            ExitStatus::AllDone
        }
        NightEnd::WorkerEnded(exit) => {
            say(&format!("error: {exit}"));
            say("nothing is lost: start it again when that is fixed");
            worker_end::exit_status(exit)
        }
        NightEnd::Closed(_) => ExitStatus::AllDone,
    }
}
