//! Nightly document runs: a folder or container of documents goes through a prompt template, and
//! only what changed is paid for.
//!
//! ```text
//! source ─▶ read ─▶ parts ─▶ template ─▶ requests ─▶ queue … store ─▶ run ─▶ table, summary
//!                                           ▲                          │
//!                              ledger ──────┘◀── repaired, combined ───┘
//! ```
//!
//! A request's name (`custom_id`) is the hash of its whole body, so text, template, model,
//! parameters and schema all count, and the document's path does not. A night is a batch; the
//! [`ledger`] records which night's batch holds the answer to a request, so that no night repeats
//! an earlier one's. Follow-up requests ([`run`]) are made from stored answers alone: a night
//! restarted after a crash repeats no request.
//!
//! [`recipe`] defines the work, with [`template`] and [`schema`] as its parts; [`source`] finds
//! documents and [`reader`] extracts their text; [`night`] decides which process runs which night.

pub mod answer;
pub mod closing;
pub mod collect;
pub mod document;
pub mod error;
pub mod history;
pub mod ledger;
pub mod night;
pub mod parts;
pub mod recipe;
mod recipe_file;
mod reduce;
pub mod requests;
pub mod run;
pub mod schema;
pub mod source;
pub mod split;
pub mod summary;
pub mod table;
pub mod template;

pub use recipe::Recipe;
pub use recipe_file::RecipeError;
