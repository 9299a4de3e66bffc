//! Check of the source of documents.

use super::finding::CheckFinding;
use documents::source::{BlobSettings, DocumentSource};

/// Checks that documents can be listed at the configured source.
pub(super) async fn check(given: &str, settings: &BlobSettings) -> CheckFinding {
    let reached = match DocumentSource::open(given, settings).await {
        Ok(source) => source.check_access().await,
        Err(error) => Err(error),
    };
    let hint = "check the account's name, and whether the firewall, the proxy (HTTPS_PROXY) and the \
                account's network rules let HTTPS through";
    let service = format!("documents at {given}");
    match reached {
        Ok(()) => CheckFinding { service, ..CheckFinding::default() },
        Err(error) => {
            let mend = error.is_transient().then_some(hint);
            CheckFinding {
                service,
                problem: Some(error.to_string()),
                hint: mend,
                ..CheckFinding::default()
            }
        }
    }
}
