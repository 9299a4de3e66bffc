//! Exit status of every error of the library and of the use cases, by the room that it comes from.

mod backend;
#[cfg(feature = "bench")]
mod bench;
mod control;
#[cfg(feature = "documents")]
mod documents;
mod input;
#[cfg(feature = "documents")]
mod night;
mod output;
mod settings;
mod use_case;

pub(super) use output::write_error;

#[cfg(test)]
mod tests {
    use std::io;

    use crate::cli::exit::ErrorClass;
    use crate::cli::exit::ExitStatus::{Internal, Unreachable, Usage};
    use intake::{CheckError, EnqueueError};
    use queue::QueueError;
    use report::results::ResultsError;
    use state::sqlite::SqliteError;
    use store::StoreError;
    use worker::WorkerError;

    #[test]
    fn a_script_tells_by_the_exit_code_whether_to_wait_to_mend_or_to_look_at_the_machine() {
        let away = || StoreError::Unavailable("connection refused".into());
        let refused = || StoreError::Refused("no permission".into());
        let write = |kind: io::ErrorKind| ResultsError::Write {
            path: "out.jsonl".into(),
            source: kind.into(),
        };
        assert_eq!([away().status(), refused().status()], [Unreachable, Usage]);
        assert_eq!(WorkerError::Store(away()).status(), Unreachable);
        assert_eq!(WorkerError::Panicked.status(), Internal);
        assert_eq!(EnqueueError::Panicked.status(), Internal);
        assert_eq!(EnqueueError::Queue(QueueError::Refused("q".into())).status(), Usage);
        assert_eq!(CheckError::Temporary(io::ErrorKind::StorageFull.into()).status(), Internal);
        assert_eq!(write(io::ErrorKind::StorageFull).status(), Internal);
        assert_eq!(write(io::ErrorKind::NotFound).status(), Usage);
        let stopped = StoreError::Refused(SqliteError::Stopped.into());
        assert_eq!(stopped.status(), Internal, "the writer's thread panicked");
        assert_eq!(serde_json::from_str::<u8>("x").unwrap_err().status(), Internal);
    }
}
