//! Parts that a build leaves out: the one error that names the feature to build with.

/// A command, setting or format that belongs to a feature which this build leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "promptmill was built without '{feature}'; build it with: cargo install --path . --features \
     {feature} (or full)"
)]
pub struct MissingFeatureError {
    /// Name of the Cargo feature.
    pub feature: &'static str,
}
