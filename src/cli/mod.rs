//! The command line: arguments in, library called, text out. Messages are printed only here.

mod again;
mod answers_text;
mod bar;
#[cfg(feature = "bench")]
mod bench;
mod budget;
mod charges;
mod check;
mod command_line;
mod config;
mod control;
mod count_bar;
mod dead_letters;
mod dispatch;
#[cfg(feature = "documents")]
mod documents;
#[cfg(feature = "documents")]
mod documents_reader;
mod endpoint;
mod enqueue;
mod error_class;
mod exit;
mod exit_code;
mod failure_rate;
mod init;
mod input;
mod interrupt;
mod local;
mod missing;
mod output;
#[cfg(feature = "bench")]
mod plan;
mod progress;
#[cfg(feature = "documents")]
mod prompt_file;
mod rate;
mod report;
mod result_files;
mod results;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod simulate;
mod status;
mod summary;
mod table;
mod usage;
#[cfg(feature = "bench")]
mod values;
mod waits_text;
mod why;
mod work;
mod worker_end;

#[cfg(not(feature = "documents"))]
use self::missing::documents;
#[cfg(not(feature = "serve"))]
use self::missing::serve;
#[cfg(not(feature = "bench"))]
use self::missing::{bench, plan};
pub use command_line::Cli;
pub use dispatch::main;
