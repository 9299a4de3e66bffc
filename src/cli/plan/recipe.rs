//! A recipe's prompts as the input of a plan.

use std::path::Path;

use crate::cli::exit::CommandError;
use crate::config::Config;

/// Writes the prompts as a batch file, as `documents` would send them.
#[cfg(feature = "documents")]
pub(super) async fn write_prompts(
    config: &Config,
    recipe: &Path,
    source: Option<&str>,
    path: &Path,
) -> Result<(), CommandError> {
    use crate::app::night::DocumentsSetup;
    use crate::cli::output::say;
    use crate::cli::prompt_file;

    let setup = DocumentsSetup::open(recipe, source, config).await?;
    prompt_file::write(&setup.reader(), path).await?;
    if setup.recipe().reduce.is_some() {
        say("note: prompts that combine the answers of parts are not planned: they depend on the \
             answers");
    }
    Ok(())
}

#[cfg(not(feature = "documents"))]
pub(super) async fn write_prompts(
    _: &Config,
    _: &Path,
    _: Option<&str>,
    _: &Path,
) -> Result<(), CommandError> {
    Err(CommandError::usage(domain::build_feature::MissingFeatureError { feature: "documents" }))
}
