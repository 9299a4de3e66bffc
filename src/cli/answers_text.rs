//! Lines on answers that are not whole, or that were not accounted for; beside a batch's sums.

use domain::job::BatchId;
use domain::outcome::TokenUsage;
use store::FinishCounts;

/// Returns a line for each kind of answer that a user should look at; none if all are whole.
pub(super) fn lines(batch: &BatchId, finishes: FinishCounts, usage: TokenUsage) -> Vec<String> {
    let FinishCounts { truncated, filtered } = finishes;
    let mut lines = Vec::new();
    if truncated > 0 {
        lines.push(format!(
            "cut off: {truncated} answers had no room to end; raise max_completion_tokens \
             (Responses: max_output_tokens); promptmill results {batch} --only truncated lists them"
        ));
    }
    if filtered > 0 {
        lines.push(format!(
            "filtered: {filtered} answers were cut off or left out by a content filter; \
             promptmill results {batch} --only filtered lists them"
        ));
    }
    lines.extend(unreported(usage));
    lines
}

/// Returns a line if tokens were used that the service did not report.
pub(super) fn unreported(usage: TokenUsage) -> Option<String> {
    (usage.unreported > 0).then(|| {
        format!(
            "not reported: {} answers came without usage or with a part of it; tokens and cost are the \
             least that was used",
            usage.unreported
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_whole_is_told_with_the_command_that_lists_it() {
        let batch: BatchId = "night".parse().unwrap();
        let usage = TokenUsage::default();
        assert_eq!(lines(&batch, FinishCounts::default(), usage), Vec::<String>::new());
        let counts = FinishCounts { truncated: 2, filtered: 1 };
        let usage = TokenUsage { unreported: 3, ..usage };
        let told = lines(&batch, counts, usage);
        assert!(told[0].contains("2 answers") && told[0].contains("night --only truncated"));
        assert!(told[1].contains("1 answers") && told[1].contains("night --only filtered"));
        assert!(told[2].contains("3 answers"), "{told:?}");
    }
}
