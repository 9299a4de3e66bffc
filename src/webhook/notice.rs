//! What somebody outside is to be told, until he has heard it.
//!
//! A noun: stores keep it, `webhook` makes and delivers it.

use jiff::Timestamp;
use uuid::Uuid;

/// A message that is told again and again until it is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The same however often it is made and told, so that who hears it twice can tell.
    pub id: Uuid,
    /// As it is told: JSON.
    pub body: String,
    pub made_at: Timestamp,
    /// Before this time nobody tells it.
    pub due: Timestamp,
    /// How often it was told so far.
    pub tries: u32,
}
