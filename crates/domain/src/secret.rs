//! How secrets look where settings are shown.

use secrecy::SecretString;
use serde::Serializer;

/// Serializes a secret as `(hidden)`.
///
/// # Errors
/// As the serializer's own.
pub fn hidden<S: Serializer>(_secret: &SecretString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str("(hidden)")
}

/// Serializes an optional secret as `(hidden)`, or as nothing where there is none.
///
/// # Errors
/// As the serializer's own.
pub fn hidden_option<S: Serializer>(
    secret: &Option<SecretString>,
    to: S,
) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => hidden(secret, to),
        None => to.serialize_none(),
    }
}
