//! What the simulator was paid, prompt by prompt, held against what `usage` and `report` say.
//!
//! The rule: the simulator bills every call whose answer it made, and every call of a prompt costs
//! the same. A job that has an answer counts one of its calls; calls that were billed beside it are
//! those whose answer was lost on the way or with a killed worker. So `usage` is, to the token, the
//! sum over the answered prompts of what one of their calls was billed.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::cli::Place;

/// What was billed for one prompt.
#[derive(Debug, Clone, Copy)]
struct Billed {
    calls: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// Tokens that are known and those that nobody was told of.
#[derive(Debug, PartialEq, Eq)]
pub struct Paid {
    pub prompt: u64,
    pub completion: u64,
    /// Billed calls whose answers no outcome has.
    pub lost_calls: u64,
    pub lost_tokens: u64,
}

/// What the ledger's lines (`GET /ledger?prompts=true`) say of a batch of `chats`, all of whose
/// answers are in `results`.
pub fn paid(ledger: &str, answered: &[String]) -> Paid {
    let answered: HashSet<String> =
        answered.iter().map(|id| id.replace("job-", "prompt ")).collect();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let n = |key: &str| line[key].as_u64().unwrap();
        let billed = Billed {
            calls: n("billed"),
            prompt_tokens: n("prompt_tokens"),
            completion_tokens: n("completion_tokens"),
        };
        (line["prompt"].as_str().unwrap().to_owned(), billed)
    };
    let ledger: HashMap<String, Billed> = ledger.lines().map(line).collect();
    let mut paid = Paid { prompt: 0, completion: 0, lost_calls: 0, lost_tokens: 0 };
    for (prompt, billed) in ledger {
        let Billed { calls, prompt_tokens, completion_tokens } = billed;
        let known = u64::from(answered.contains(&prompt));
        assert!(calls >= known, "{prompt} has an answer that was not billed");
        if calls == 0 {
            continue;
        }
        assert_eq!((prompt_tokens % calls, completion_tokens % calls), (0, 0), "{prompt}");
        paid.prompt += prompt_tokens / calls * known;
        paid.completion += completion_tokens / calls * known;
        paid.lost_calls += calls - known;
        paid.lost_tokens += (prompt_tokens + completion_tokens) / calls * (calls - known);
    }
    paid
}

/// `usage`, `report` and `status` say what the ledger says; gives the report.
pub fn agree(place: &Place, batch: &str, paid: &Paid) -> Value {
    let json = |args: &[&str]| {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(0), "{args:?} {}", ended.err);
        serde_json::from_str::<Value>(&ended.out).unwrap()
    };
    let usage = json(&["usage", batch, "--json"]);
    let report = json(&["report", batch, "--json"]);
    let status = json(&["status", batch, "--json"]);
    for told in [&usage["total"], &report, &status["batches"][0]] {
        let tokens = (told["prompt"].as_u64(), told["completion"].as_u64());
        assert_eq!(tokens, (Some(paid.prompt), Some(paid.completion)), "{told}");
    }
    assert_eq!(report["money"]["cost"], usage["total"]["cost"]);
    assert_eq!(report["calls"]["tries"], usage["total"]["attempts"]);
    let sum = |key: &str| -> u64 {
        report["lines"].as_array().unwrap().iter().map(|line| line[key].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("prompt"), sum("completion")), (paid.prompt, paid.completion));
    report
}
