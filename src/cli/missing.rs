//! Commands of parts that this build leaves out: listed in the help, and answered with the feature.

use std::ffi::OsString;

/// Anything that follows a command which is not there.
#[derive(Debug, clap::Args)]
pub(super) struct IgnoredArgs {
    #[arg(hide = true, allow_hyphen_values = true, trailing_var_arg = true)]
    _rest: Vec<OsString>,
}

/// Makes the module of a command, with the items that the real one has.
macro_rules! missing_command {
    ($module:ident, $args:ident, $feature:literal, $about:literal) => {
        #[cfg(not(feature = $feature))]
        pub(super) mod $module {
            use crate::cli::exit::{CommandError, ExitStatus};
            use crate::cli::missing::IgnoredArgs;
            use crate::config::Config;
            use domain::build_feature::MissingFeatureError;

            #[derive(Debug, clap::Args)]
            #[command(about = concat!($about, " (not in this build)"), disable_help_flag = true)]
            pub(in crate::cli) struct $args {
                #[command(flatten)]
                _ignored: IgnoredArgs,
            }

            pub(in crate::cli) async fn run(
                _: $args,
                _: Config,
            ) -> Result<ExitStatus, CommandError> {
                Err(CommandError::usage(MissingFeatureError { feature: $feature }))
            }
        }
    };
}

missing_command!(bench, BenchArgs, "bench", "Measure deployments, or the pipeline, under load");
missing_command!(documents, DocumentsArgs, "documents", "Run a recipe's prompts on documents");
missing_command!(plan, PlanArgs, "bench", "Forecast tokens, cost and time of files of prompts");
missing_command!(serve, ServeArgs, "serve", "Serve the dashboard, the Batch API and the metrics");
