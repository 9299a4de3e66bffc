//! A batch's end, told to one URL: a signed POST by the Standard Webhooks specification
//! (standardwebhooks.com).
//!
//! Any number of workers may see the end. Each makes the same notice (`event`: the id is made of what
//! is told), and the store keeps the first of a name, before the batch is marked as done. So a crash
//! loses none. Of those who find it due one takes it, for the time of a try (`teller`). At most it is
//! told again, under one `webhook-id`: when a teller dies after the receiver heard it.

mod event;
mod notice;
mod settings;
mod sign;
mod teller;

pub use event::notice_of;
pub use notice::Notice;
pub use settings::{Settings, SettingsError};
pub use sign::{BadSecret, Key};
pub use teller::Teller;
