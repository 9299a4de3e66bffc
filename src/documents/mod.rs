//! A folder of documents becomes a batch file: one prompt a part, named by what it asks.
//!
//! A prompt's `custom_id` is a hash of its whole request body, so text, template, model and
//! parameters all count, and the document's path does not. Under one `--batch` name a part that was
//! answered on an earlier night is known again and not called; equal parts stand in the file once.
//!
//! [`recipe`] says what is wanted, [`read`] makes text of bytes, [`split`] cuts it, [`night`] puts
//! the prompts together.

pub mod night;
pub mod read;
pub mod recipe;
pub mod source;
pub mod split;

pub use night::{Night, NightError, Unread, gather};
pub use recipe::{Recipe, RecipeError};
