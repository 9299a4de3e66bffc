//! Nights of documents, their readers and their sources.

mod night;
mod read;
mod sources;
