//! No output of any test may hold a secret, at whatever level it logs.
//!
//! Every process of the binary that a test starts logs everything ([`crate::cli::Place`]), and what
//! it wrote goes through [`check`]. Tests that use the library in their own process call [`watch`],
//! which does the same to each line as it is logged. So a dependency that starts to log a key, a
//! signature or a token fails whichever test meets it first.

use std::io::{self, Write};
use std::sync::Once;

use promptmill::logging;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Every secret of the tests, or as much of it as nothing else has.
const SECRETS: [&str; 11] = [
    "SAS_KEY_VALUE",
    "another-key",
    "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM",
    "s3cret",
    "wr0ng",
    "t0ken-of-entra",
    "header-secret",
    "a2V5LW9m",
    "key-of-openai",
    "key-of-apim",
    "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
];

/// How secrets that are made on the way look, in lower case: whatever follows is one.
const SHAPES: [&str; 6] =
    ["sharedaccesskey=", "sharedaccesssignature ", "sig=", "sig%3d", "bearer ", "api-key: "];

/// What follows the name of the header, quoted or not, where its value is shown.
const AFTER_AUTHORIZATION: [&str; 4] = [": ", "=", "\": \"", "\":\""];

/// What may stand in a secret's place.
const HIDDEN: [&str; 3] = ["REDACTED", "(hidden)", "Sensitive"];

/// The line that tells a secret.
pub fn leak(text: &str) -> Option<&str> {
    text.lines().find(|line| {
        if SECRETS.iter().any(|secret| line.contains(secret)) {
            return true;
        }
        let lower = line.to_ascii_lowercase();
        let shown = |after: usize| {
            let value = line[after..].trim_start_matches(['"', ' ']);
            !value.is_empty() && !HIDDEN.iter().any(|hidden| value.starts_with(hidden))
        };
        let shape = |shape: &str| lower.match_indices(shape).any(|(at, _)| shown(at + shape.len()));
        SHAPES.iter().any(|name| shape(name))
            || AFTER_AUTHORIZATION.iter().any(|after| shape(&format!("authorization{after}")))
    })
}

pub fn check(text: &str) {
    assert_eq!(leak(text), None, "a secret was told");
}

/// Logs everything of this process to nowhere but a check.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| Watcher);
        let log = tracing_subscriber::registry().with(lines);
        // Another test of this process may have been first, by another copy of this file.
        let _ = log.with(filter_fn(logging::is_safe_to_log)).try_init();
    });
}

struct Watcher;

impl Write for Watcher {
    #[expect(clippy::print_stderr, reason = "the last word of this process")]
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(line) = leak(&String::from_utf8_lossy(line)) {
            // A panic could end a task that nobody waits for.
            eprintln!("a secret was logged: {line}");
            std::process::abort();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
