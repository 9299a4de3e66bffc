//! Wait that a refusal asks for: in its headers, or only in its words.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

use super::response::header;

/// Words before the wait in messages of Azure, OpenAI and API Management.
const WORDS: [&str; 4] = ["try again in ", "retry after ", "replenished in ", "available in "];

/// Reads `retry-after-ms`, or `retry-after` in seconds or as a date. What can't be read is no wait;
/// a date in the past, by whatever clock, is none left.
pub(super) fn from_headers(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(ms) = header(headers, "retry-after-ms").and_then(|v| v.trim().parse::<f64>().ok()) {
        return seconds(ms / 1000.0);
    }
    let after = header(headers, "retry-after")?.trim();
    match after.parse::<f64>() {
        Ok(s) => seconds(s),
        Err(_) => {
            let at = httpdate::parse_http_date(after).ok()?;
            Some(at.duration_since(now).unwrap_or_default())
        }
    }
}

/// Reads the wait out of a message: "Please retry after 20 seconds", "try again in 2h0m0s",
/// "replenished in 00:21:00".
pub(super) fn from_message(message: &str) -> Option<Duration> {
    let said = message.to_lowercase();
    WORDS.iter().find_map(|words| {
        let rest = &said[said.find(words)? + words.len()..];
        read_words(rest)
    })
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

fn read_words(text: &str) -> Option<Duration> {
    let first = text.split_whitespace().next()?;
    if let Some(clock) = first.split_once(':') {
        return read_clock(clock);
    }
    let mut total = 0.0;
    let mut rest = text;
    while let Some((number, unit)) = take_number(rest) {
        let (name, after) =
            unit.split_at(unit.find(|c: char| !c.is_alphabetic()).unwrap_or(unit.len()));
        total += number
            * match name {
                "ms" | "millisecond" | "milliseconds" => 0.001,
                "s" | "sec" | "second" | "seconds" => 1.0,
                "m" | "min" | "minute" | "minutes" => 60.0,
                "h" | "hour" | "hours" => 3_600.0,
                "d" | "day" | "days" => 86_400.0,
                _ => return None,
            };
        rest = after.trim_start();
    }
    (total > 0.0).then_some(total).and_then(seconds)
}

/// Splits off a number and the blank after it.
fn take_number(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].trim_end_matches('.').parse().ok()?;
    Some((number, text[end..].trim_start()))
}

/// Reads `minutes:seconds` or `hours:minutes:seconds`.
fn read_clock((first, rest): (&str, &str)) -> Option<Duration> {
    let rest = rest.trim_end_matches(|c: char| !c.is_ascii_digit());
    let parts: Option<Vec<u64>> =
        std::iter::once(first).chain(rest.split(':')).map(|part| part.parse().ok()).collect();
    let parts = parts.filter(|parts| parts.len() <= 3)?;
    let total = parts.iter().try_fold(0_u64, |sum, part| sum.checked_mul(60)?.checked_add(*part));
    total.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_read_in_all_three_spellings() {
        let ms = Duration::from_millis;
        let cases = [
            (vec![("retry-after-ms", "1500"), ("retry-after", "9")], Some(ms(1_500))),
            (vec![("retry-after", "3")], Some(ms(3_000))),
            (vec![("retry-after", " 0.25 ")], Some(ms(250))),
            (vec![("retry-after", "Mon, 23 Nov 2026 16:00:20 GMT")], Some(ms(20_000))),
            (vec![("retry-after", "Mon, 23 Nov 2026 15:00:00 GMT")], Some(Duration::ZERO)),
            (vec![("retry-after", "-1")], None),
            (vec![("retry-after", "NaN")], None),
            (vec![("retry-after", "1e300")], None),
            (vec![("retry-after", "soon")], None),
            (vec![("retry-after", "")], None),
            (vec![], None),
        ];
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 16:00:00 GMT").unwrap();
        for (given, wait) in cases {
            let headers = given.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()));
            assert_eq!(from_headers(&headers.collect(), now), wait, "{given:?}");
        }
    }

    #[test]
    fn the_wait_is_read_out_of_the_words() {
        let cases = [
            ("Rate limit is exceeded. Try again in 7 seconds.", Some(7.0)),
            ("… pricing tier. Please retry after 86400 seconds. Please go here", Some(86_400.0)),
            ("Limit 3, Used 3. Please try again in 2h0m0s. Visit", Some(7_200.0)),
            ("Please try again in 1.5s.", Some(1.5)),
            ("Please try again in 230ms", Some(0.23)),
            ("Out of call volume quota. Quota will be replenished in 00:21:00.", Some(1_260.0)),
            ("Quota will be replenished in 1 hour 5 minutes", Some(3_900.0)),
            ("Please try again in a while", None),
            ("Please try again later", None),
            ("retry after 5 moons", None),
            ("replenished in 99999999999999999999:00", None),
            ("replenished in :", None),
        ];
        for (message, wait) in cases {
            assert_eq!(from_message(message).map(|wait| wait.as_secs_f64()), wait, "{message}");
        }
    }
}
