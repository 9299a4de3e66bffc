//! The page for people, at `/`, and what it asks: everything under `/dashboard/`.
//!
//! Mounted by [`super::router`], which gives it the same [`App`] as all other parts. The page and its
//! assets are open, since they tell nothing; routes that tell or change something go through
//! [`super::access::require`].

use axum::Router;
use axum::response::Html;
use axum::routing::get;

use super::App;

const PAGE: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>promptmill</title>\
    <p>promptmill is at work. <a href=\"/readyz\">Is all in reach?</a>\n";

/// All of it.
pub fn routes(_app: &App) -> Router {
    Router::new().route("/", get(async || Html(PAGE)))
}
