//! Recorded arrivals: JSONL or CSV of offsets and token counts.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::load_shapes::TraceArrival;

/// Reason why a trace can't be replayed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("can't read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}, arrival {number}: {problem}", path.display())]
    Row { path: PathBuf, number: usize, problem: String },
    #[error("{} has no arrivals", path.display())]
    Empty { path: PathBuf },
}

/// One arrival, with the field names of this project and of public traces of LLM services.
#[derive(Deserialize)]
struct ArrivalRow {
    /// Seconds, from any origin.
    #[serde(alias = "offset", alias = "timestamp", alias = "TIMESTAMP")]
    offset_seconds: f64,
    #[serde(alias = "input_tokens", alias = "ContextTokens")]
    prompt_tokens: u32,
    #[serde(alias = "completion_tokens", alias = "GeneratedTokens")]
    output_tokens: u32,
}

/// Reads a trace; `.csv` is CSV with a header line, anything else a JSON object a line. The first
/// arrival becomes the start, and rows may come in any order.
///
/// # Errors
/// Names the file, the arrival and what is wrong with it.
pub fn read(path: &Path) -> Result<Vec<TraceArrival>, TraceError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| TraceError::Read { path: path.to_owned(), source })?;
    let rows = match path.extension().and_then(|ending| ending.to_str()) {
        Some("csv") => from_csv(&text),
        _ => from_jsonl(&text),
    };
    arrivals(rows).map_err(|fault| match fault {
        None => TraceError::Empty { path: path.to_owned() },
        Some((number, problem)) => TraceError::Row { path: path.to_owned(), number, problem },
    })
}

type ArrivalRows<'a> = Box<dyn Iterator<Item = Result<ArrivalRow, String>> + 'a>;

fn from_csv(text: &str) -> ArrivalRows<'_> {
    let reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    Box::new(reader.into_deserialize().map(|row| row.map_err(|error| error.to_string())))
}

fn from_jsonl(text: &str) -> ArrivalRows<'_> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Box::new(lines.map(|line| serde_json::from_str(line).map_err(|error| error.to_string())))
}

fn arrivals(rows: ArrivalRows<'_>) -> Result<Vec<TraceArrival>, Option<(usize, String)>> {
    let mut rows = rows
        .enumerate()
        .map(|(index, row)| match row {
            Ok(row) if !row.offset_seconds.is_finite() => {
                Err(Some((index + 1, "the offset is not a finite number of seconds".to_owned())))
            }
            Ok(row) => Ok(row),
            Err(problem) => Err(Some((index + 1, problem))),
        })
        .collect::<Result<Vec<ArrivalRow>, _>>()?;
    rows.sort_by(|a, b| a.offset_seconds.total_cmp(&b.offset_seconds));
    let first = rows.first().ok_or(None)?.offset_seconds;
    let arrival = |row: &ArrivalRow| TraceArrival {
        at: Duration::try_from_secs_f64(row.offset_seconds - first).unwrap_or(Duration::MAX),
        prompt_tokens: row.prompt_tokens.max(1),
        output_tokens: row.output_tokens.max(1),
    };
    Ok(rows.iter().map(arrival).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(name: &str, text: &str) -> Result<Vec<TraceArrival>, TraceError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn expected() -> Vec<TraceArrival> {
        let arrival = |ms, prompt_tokens, output_tokens| TraceArrival {
            at: Duration::from_millis(ms),
            prompt_tokens,
            output_tokens,
        };
        vec![arrival(0, 10, 20), arrival(1_500, 30, 40)]
    }

    #[test]
    fn both_formats_say_the_same_in_any_order() {
        let csv = "offset_seconds, prompt_tokens, output_tokens\n101.5, 30, 40\n100, 10, 20\n";
        assert_eq!(trace("t.csv", csv).unwrap(), expected());
        let jsonl = "{\"offset\":0,\"input_tokens\":10,\"output_tokens\":20}\n\n\
                     {\"offset\":1.5,\"input_tokens\":30,\"output_tokens\":40}\n";
        assert_eq!(trace("t.jsonl", jsonl).unwrap(), expected());
    }

    #[test]
    fn a_bad_row_is_named() {
        let said = trace("t.jsonl", "{\"offset\":0}\n").unwrap_err().to_string();
        assert!(said.contains("arrival 1") && said.contains("prompt_tokens"), "{said}");
        let said = trace("t.csv", "offset,prompt_tokens\n").unwrap_err().to_string();
        assert!(said.contains("no arrivals"), "{said}");
    }
}
