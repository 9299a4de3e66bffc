//! Webhook for a batch's end: a signed POST to one URL, by the Standard Webhooks specification
//! (standardwebhooks.com).
//!
//! Any number of workers may see the end. Each makes the same notice (`event`: its id is a hash of
//! the content), and the store keeps the first with that id, before the batch is marked as done. So
//! a crash loses none. One worker leases a due notice for one attempt (`notifier`). It is sent
//! twice, under one `webhook-id`, only when a sender dies after the receiver got it.

mod event;
mod notice;
mod notifier;
mod settings;
mod sign;

pub use event::notice_of;
pub use notice::WebhookNotice;
pub use notifier::WebhookNotifier;
pub use settings::{WebhookSettings, WebhookSettingsError};
pub use sign::{BadSecret, SigningKey};
