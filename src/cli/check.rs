//! `promptmill check`: tests every configured service and reports problems.

use serde_json::json;

use super::exit::{CommandError, ExitStatus};
use super::output::{print, print_lines};
use crate::app::check::{self, CheckFinding, DeploymentProbe};
use crate::config::Config;

/// Test the queue, the store and every deployment; report problems and how to fix them
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Print as JSON on standard output
    #[arg(long)]
    json: bool,
    /// Make one short, billed call to each deployment, to see the quota that its answer reports
    #[arg(long)]
    call: bool,
}

pub(super) async fn run(args: CheckArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let targets = config.targets()?;
    let ask =
        if args.call { DeploymentProbe::OneWordPrompt } else { DeploymentProbe::InvalidRequest };
    let findings = check::all(&config, targets, ask).await;
    if args.json {
        print(&json!({ "services": findings }).to_string())?;
    } else {
        print_lines(&findings.iter().map(text).collect::<Vec<_>>())?;
    }
    let all_well = findings.iter().all(|finding| finding.problem.is_none());
    Ok(if all_well { ExitStatus::AllDone } else { ExitStatus::Unreachable })
}

fn text(finding: &CheckFinding) -> String {
    let CheckFinding { service, problem, hint, notes, warnings } = finding;
    let mut text = match problem {
        None => format!("ok: {service}"),
        Some(problem) => format!("FAULT: {service}: {problem}"),
    };
    let notes = notes.iter().map(|note| format!("\n  {note}"));
    let warnings = warnings.iter().map(|warning| format!("\n  warning: {warning}"));
    let hint = hint.filter(|_| problem.is_some()).map(|hint| format!("\n  fix: {hint}"));
    text.extend(hint.into_iter().chain(notes).chain(warnings));
    text
}
