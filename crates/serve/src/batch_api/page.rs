//! Paged lists of the API.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::ApiError;

/// Query parameters of a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    pub(super) after: Option<String>,
    pub(super) limit: Option<usize>,
    /// `asc` or `desc`, by age.
    pub(super) order: Option<String>,
    pub(super) purpose: Option<String>,
}

impl ListQuery {
    pub(super) fn read(query: Result<Query<Self>, QueryRejection>) -> Result<Self, ApiError> {
        let Query(asked) = query.map_err(|_| ApiError::invalid("limit", "it must be a number"))?;
        if asked.order.as_deref().is_some_and(|order| !matches!(order, "asc" | "desc")) {
            return Err(ApiError::invalid("order", "it must be 'asc' or 'desc'"));
        }
        Ok(asked)
    }
}

/// One page of entries listed by age.
#[derive(Debug, PartialEq)]
pub(super) struct ListPage<T> {
    items: Vec<(String, T)>,
    has_more: bool,
}

impl<T> ListPage<T> {
    /// Cuts the page out of `all`, which is sorted newest first.
    pub(super) fn cut(
        mut all: Vec<(String, T)>,
        asked: &ListQuery,
        (usual, most): (usize, usize),
    ) -> Result<Self, ApiError> {
        let limit = asked.limit.unwrap_or(usual);
        if !(1..=most).contains(&limit) {
            return Err(ApiError::invalid("limit", format!("it must be from 1 to {most}")));
        }
        if asked.order.as_deref() == Some("asc") {
            all.reverse();
        }
        if let Some(after) = &asked.after {
            let found = all.iter().position(|(id, _)| id == after);
            let found = found.ok_or_else(|| ApiError::invalid("after", "nothing has this id"))?;
            all.drain(..=found);
        }
        let has_more = all.len() > limit;
        all.truncate(limit);
        Ok(Self { items: all, has_more })
    }

    pub(super) fn into_items(self) -> (Vec<(String, T)>, bool) {
        (self.items, self.has_more)
    }
}

/// Returns the list object of the entries with their ids.
pub(super) fn object(entries: &[(String, impl Serialize)], has_more: bool) -> Value {
    let data: Vec<_> = entries.iter().map(|(_, entry)| entry).collect();
    json!({
        "object": "list",
        "data": data,
        "first_id": entries.first().map(|(id, _)| id),
        "last_id": entries.last().map(|(id, _)| id),
        "has_more": has_more,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(asked: ListQuery) -> Result<(String, bool), ApiError> {
        let all = "edcba".chars().map(|c| (c.to_string(), ())).collect();
        let (items, has_more) = ListPage::cut(all, &asked, (3, 4))?.into_items();
        Ok((items.into_iter().map(|(id, ())| id).collect(), has_more))
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let after = |after: &str| ListQuery { after: Some(after.into()), ..ListQuery::default() };
        let page = |text: &str, more| Ok((text.to_owned(), more));
        assert_eq!(cut(ListQuery::default()), page("edc", true));
        assert_eq!(cut(after("c")), page("ba", false));
        assert_eq!(cut(after("a")), page("", false));
        assert_eq!(cut(ListQuery { limit: Some(4), ..after("e") }), page("dcba", false));
        assert_eq!(cut(ListQuery { order: Some("asc".into()), ..after("b") }), page("cde", false));
    }

    #[test]
    fn what_can_not_be_listed_is_refused() {
        let refused = |asked| cut(asked).unwrap_err().param;
        assert_eq!(refused(ListQuery { limit: Some(0), ..ListQuery::default() }), Some("limit"));
        assert_eq!(refused(ListQuery { limit: Some(5), ..ListQuery::default() }), Some("limit"));
        assert_eq!(
            refused(ListQuery { after: Some("x".into()), ..ListQuery::default() }),
            Some("after")
        );
    }
}
