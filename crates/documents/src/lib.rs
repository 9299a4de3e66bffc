//! Documents every night: a folder or container of documents goes through a prompt template, and only
//! what changed is paid for.
//!
//! ```text
//! source ─▶ read ─▶ parts ─▶ template ─▶ asks ─▶ queue … store ─▶ conduct ─▶ table, morning
//!                                          ▲                        │
//!                              ledger ─────┘◀── mended, combined ───┘
//! ```
//!
//! A request's name (`custom_id`) is the hash of its whole body, so text, template, model, parameters
//! and schema all count, and the document's path does not. A night is a batch; the [`ledger`] says in
//! which night's batch the answer to a request lies, so that no night asks what an earlier one did.
//! What follows from answers ([`conduct`]) is made of stored answers alone: a night that crashed is
//! begun again and asks nothing twice.
//!
//! [`recipe`] says what is wanted, [`template`] and [`schema`] are its parts; [`source`] finds documents
//! and [`read`] makes text of them; [`night`] is who conducts which night.

pub mod answer;
pub mod asks;
pub mod conduct;
pub mod earlier;
pub mod gather;
pub mod ledger;
pub mod morning;
pub mod night;
pub mod parts;
pub mod recipe;
mod reduce;
pub mod schema;
pub mod source;
pub mod split;
pub mod table;
pub mod template;

pub use recipe::{Recipe, RecipeError};
