//! The page and its assets, embedded in the program: nothing comes from elsewhere, nothing is
//! built.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// Only our own files, no inline script or style, no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

const WORDS: &str = include_str!("assets/words.json");

/// Returns the routes of the page and its assets, open to all: they reveal nothing.
pub(super) fn routes() -> Router {
    let asset = |kind: &'static str, text: &'static str| get(async move || of_kind(kind, text));
    Router::new()
        .route("/", get(page))
        .route("/dashboard/style.css", asset("text/css", include_str!("assets/style.css")))
        .route("/dashboard/main.js", asset("text/javascript", include_str!("assets/main.js")))
        .route("/dashboard/page.js", asset("text/javascript", include_str!("assets/page.js")))
        .route("/dashboard/chart.js", asset("text/javascript", include_str!("assets/chart.js")))
        .route("/dashboard/words.json", asset("application/json", WORDS))
}

async fn page() -> impl IntoResponse {
    let policy = [(header::CONTENT_SECURITY_POLICY, POLICY)];
    (policy, of_kind("text/html", include_str!("assets/index.html")))
}

fn of_kind(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))], text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_word_is_there_in_both_languages() {
        let words: BTreeMap<String, BTreeMap<String, String>> =
            serde_json::from_str(WORDS).unwrap();
        let keys = |language: &str| words[language].keys().collect::<Vec<_>>();
        assert_eq!(keys("en"), keys("ja"));
        let texts = words["ja"].values().chain(words["en"].values());
        assert!(texts.into_iter().all(|text| !text.trim().is_empty()));
    }

    #[test]
    fn every_word_of_the_page_is_in_the_dictionary_and_used() {
        let words: BTreeMap<String, BTreeMap<String, String>> =
            serde_json::from_str(WORDS).unwrap();
        let page = include_str!("assets/index.html");
        let script = [include_str!("assets/main.js"), include_str!("assets/page.js")].concat();
        let named = page.split("data-word=\"").skip(1).filter_map(|rest| rest.split('"').next());
        for key in named {
            assert!(words["en"].contains_key(key), "{key}");
        }
        for key in words["en"].keys() {
            // Some are put together: `ending_${ending}`, `${action}Batch`.
            let stem = key.split('_').next().unwrap_or(key);
            let ends = |end: &str| key.ends_with(end) && script.contains(&format!("}}{end}`"));
            let is_used = page.contains(&format!("data-word=\"{key}\""))
                || script.contains(&format!("\"{key}\""))
                || script.contains(&format!(".{key}"))
                || script.contains(&format!("`{stem}_$"))
                || ["Batch", "What"].into_iter().any(ends);
            assert!(is_used, "{key} is used nowhere");
        }
    }
}
