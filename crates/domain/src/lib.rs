//! The nouns of promptmill: what is asked, what it ends as, what it may cost. They know nobody.

pub mod backoff;
pub mod budget;
pub mod build_feature;
pub mod deployment;
pub mod headers;
pub mod heartbeat;
pub mod inquiry;
pub mod job;
pub mod mutex;
pub mod outcome;
pub mod prices;
pub mod secret;
pub mod suspect;
