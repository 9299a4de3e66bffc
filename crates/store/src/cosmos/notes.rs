//! Small records of parts that are no batch and no outcome: items of `shares` that never expire, one
//! partition a kind.

use azure_data_cosmos::feed::FeedScope;
use azure_data_cosmos::options::{ItemWriteOptions, Precondition};

use super::Inner;
use super::calls::{Answer, Pages, Purpose, body, page_of};
use super::items::NoteItem;
use super::units::Operation;
use crate::{Note, StoreError};

const GET: Purpose = Purpose(Operation::Notes, "reading a note");
const PUT: Purpose = Purpose(Operation::Notes, "writing a note");
const LIST: Purpose = Purpose(Operation::Notes, "listing notes");
const REMOVE: Purpose = Purpose(Operation::Notes, "removing a note");

const NOTES_A_PAGE: u32 = 1000;

impl Inner {
    pub(super) async fn put_note(
        &self,
        note: &Note,
        was: Option<&str>,
    ) -> Result<bool, StoreError> {
        let item = NoteItem::new(note);
        let (pk, id) = (item.pk.clone(), note.id.as_str());
        let Some(was) = was else {
            let create = || self.shares.create_item(pk.clone(), id, &item, None);
            return self.calls.at_once(PUT, create).await?.made(PUT);
        };
        let read = || self.shares.read_item(pk.clone(), id, None);
        let Answer::Done(response) = self.calls.at_once(GET, read).await? else {
            return Ok(false);
        };
        let etag = response.headers().etag().cloned();
        let found: NoteItem = body(GET, response)?;
        if found.json != was {
            return Ok(false);
        }
        let options = etag.map(|etag| {
            ItemWriteOptions::default().with_precondition(Precondition::if_match(etag))
        });
        let replace = || self.shares.replace_item(pk.clone(), id, &item, options.clone());
        match self.calls.at_once(PUT, replace).await? {
            Answer::NotFound(_) => Ok(false),
            answer => answer.made(PUT),
        }
    }

    pub(super) async fn note(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        let pk = NoteItem::partition(kind);
        let read = || self.shares.read_item(pk.clone(), id, None);
        match self.calls.at_once(GET, read).await? {
            Answer::Done(response) => Ok(Some(body::<NoteItem>(GET, response)?.json)),
            Answer::NotFound(_) | Answer::Conflict | Answer::Changed => Ok(None),
        }
    }

    pub(super) async fn notes(&self, kind: &str) -> Result<Vec<Note>, StoreError> {
        let scope = FeedScope::partition(NoteItem::partition(kind));
        let mut pages: Pages<NoteItem> =
            Pages::new(&self.shares, "SELECT * FROM c".into(), scope, page_of(NOTES_A_PAGE), LIST);
        let mut notes = Vec::new();
        while let Some(items) = pages.next(&self.calls).await? {
            let note = |item: NoteItem| Note { kind: kind.into(), id: item.id, json: item.json };
            notes.extend(items.into_iter().map(note));
        }
        Ok(notes)
    }

    pub(super) async fn remove_note(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        let pk = NoteItem::partition(kind);
        let delete = || self.shares.delete_item(pk.clone(), id, None);
        self.calls.at_once(REMOVE, delete).await.map(drop)
    }
}
