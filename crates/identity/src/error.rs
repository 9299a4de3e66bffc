//! Error of an identity that can't be used on this machine.

use azure_core::error::ErrorKind;

pub(crate) fn credential_error(what: String) -> azure_core::Error {
    azure_core::Error::with_message(ErrorKind::Credential, what)
}
