//! Exit status of the errors of a forecast and of a measurement.

use super::output::write_status;
use crate::app::bench_setup::BenchSetupError;
use crate::app::forecast::ForecastError;
use crate::cli::exit::{ErrorClass, ExitStatus};
use bench::pipeline::PipelineError;
use plan::PlanError;

use ExitStatus::{Internal, Usage};

impl ErrorClass for ForecastError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Config(error) => error.status(),
            Self::Plan(error) => error.status(),
            Self::Backend(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Report { .. } | Self::NoAnswers(_) => Usage,
            Self::Panicked => Internal,
        }
    }
}

impl ErrorClass for BenchSetupError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Folder { source, .. } => write_status(source),
            Self::Backend(error) => error.status(),
        }
    }
}

impl ErrorClass for PipelineError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Occupied { .. } => Usage,
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Worker(error) => error.status(),
            Self::Control(error) => error.status(),
        }
    }
}

impl ErrorClass for PlanError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Check(error) => error.status(),
            Self::Source(error) => error.status(),
            Self::Temporary(_) => Internal,
            Self::InputChanged { .. } | Self::NoDeployment => Usage,
        }
    }
}
