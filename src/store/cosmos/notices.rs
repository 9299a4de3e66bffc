//! Notices until they are heard, and the names of those that were: small items in one logical partition
//! beside the outcomes.

use azure_data_cosmos::feed::FeedScope;
use azure_data_cosmos::options::{ItemWriteOptions, Precondition};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Inner;
use super::calls::{Answer, Pages, Purpose, Trouble, body, page_of};
use super::error::BadItem;
use super::units::Operation;
use crate::notice::Notice;
use crate::store::StoreError;

const ADD: Purpose = Purpose(Operation::Batches, "adding a notice");
const LIST: Purpose = Purpose(Operation::Batches, "reading the notices");
const GET: Purpose = Purpose(Operation::Batches, "reading a notice");
const PUT: Purpose = Purpose(Operation::Batches, "changing a notice");

/// The name of no batch's shard: no batch has an empty name.
const PARTITION: &str = "|notices";

const NOTICES_A_PAGE: u32 = 100;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NoticeItem {
    id: Uuid,
    pk: String,
    body: String,
    made_at: String,
    /// Unix milliseconds: two that look at one notice must see the same time.
    due_ms: i64,
    tries: u32,
    heard: bool,
}

impl NoticeItem {
    fn new(notice: &Notice) -> Self {
        Self {
            id: notice.id,
            pk: PARTITION.into(),
            body: notice.body.clone(),
            made_at: notice.made_at.to_string(),
            due_ms: notice.due.as_millisecond(),
            tries: notice.tries,
            heard: false,
        }
    }

    fn into_notice(self) -> Result<Notice, BadItem> {
        let bad = |field| BadItem::Field { id: self.id.to_string(), field };
        Ok(Notice {
            id: self.id,
            made_at: self.made_at.parse().map_err(|_| bad("madeAt"))?,
            due: Timestamp::from_millisecond(self.due_ms).map_err(|_| bad("dueMs"))?,
            body: self.body,
            tries: self.tries,
        })
    }
}

impl Inner {
    pub(super) async fn add_notice(&self, notice: &Notice) -> Result<bool, StoreError> {
        let (id, item) = (notice.id.to_string(), NoticeItem::new(notice));
        let create = || self.outcomes.create_item(PARTITION, &id, &item, None);
        self.calls.at_once(ADD, create).await?.made(ADD)
    }

    pub(super) async fn notices(&self) -> Result<Vec<Notice>, StoreError> {
        let query = "SELECT * FROM c WHERE c.heard = false".into();
        let scope = FeedScope::partition(PARTITION);
        let mut pages: Pages<NoticeItem> =
            Pages::new(&self.outcomes, query, scope, page_of(NOTICES_A_PAGE), LIST);
        let mut notices = Vec::new();
        while let Some(items) = pages.next(&self.calls).await? {
            for item in items {
                notices.push(item.into_notice()?);
            }
        }
        Ok(notices)
    }

    pub(super) async fn put_notice_off(
        &self,
        seen: &Notice,
        (due, tries): (Timestamp, u32),
    ) -> Result<bool, StoreError> {
        let seen = NoticeItem::new(seen);
        let change = |item: &mut NoticeItem| {
            let is_as_seen = !item.heard && (item.due_ms, item.tries) == (seen.due_ms, seen.tries);
            (item.due_ms, item.tries) = (due.as_millisecond(), tries);
            is_as_seen
        };
        self.change_notice(seen.id, change).await
    }

    pub(super) async fn notice_heard(&self, id: Uuid) -> Result<(), StoreError> {
        self.change_notice(id, |item| !std::mem::replace(&mut item.heard, true)).await.map(drop)
    }

    /// Writes what `change` makes of a notice if it says so; tells whether that was written.
    async fn change_notice(
        &self,
        id: Uuid,
        change: impl Fn(&mut NoticeItem) -> bool,
    ) -> Result<bool, StoreError> {
        let id = id.to_string();
        let mut others = Trouble::new(self.calls.patience);
        loop {
            let read = || self.outcomes.read_item(PARTITION, &id, None);
            let Answer::Done(response) = self.calls.at_once(GET, read).await? else {
                return Ok(false);
            };
            let etag = response.headers().etag().cloned();
            let mut item: NoticeItem = body(GET, response)?;
            if !change(&mut item) {
                return Ok(false);
            }
            let options = etag.map(|etag| {
                ItemWriteOptions::default().with_precondition(Precondition::if_match(etag))
            });
            let replace = || self.outcomes.replace_item(PARTITION, &id, &item, options.clone());
            if self.calls.at_once(PUT, replace).await?.made(PUT)? {
                return Ok(true);
            }
            others.wait_for_others(PUT.1).await?;
        }
    }
}
