//! Errors of Blob Storage, and hints how to fix them.
//!
//! The codes are those of Azure's "Blob service error codes" and "Common REST API error codes".

use std::error::Error as _;

use azure_core::error::{Error, ErrorKind};

use super::error::DocumentSourceError;

const ROLE: &str = "; an identity needs the role 'Storage Blob Data Reader' on the account or \
                    container (a new role takes some minutes to count), a SAS must be for reading and \
                    listing (sp=rl)";
const ANONYMOUS: &str =
    "; the container is not open to all: set documents.credential, or documents.sas";

/// Converts an error of the SDK. It keeps nothing of a request's URL, which may hold a signature.
pub(super) fn convert(error: &Error) -> DocumentSourceError {
    match error.kind() {
        ErrorKind::HttpResponse { status, error_code, .. } => {
            from_status((*status).into(), error_code.as_deref().unwrap_or("without a code"))
        }
        ErrorKind::Connection | ErrorKind::Io => DocumentSourceError::Unreachable(innermost(error)),
        ErrorKind::Credential => {
            DocumentSourceError::Identity(format!("Entra ID gives no token: {error}"))
        }
        _ => DocumentSourceError::InvalidResponse(innermost(error)),
    }
}

fn from_status(status: u16, code: &str) -> DocumentSourceError {
    let hint = match (status, code) {
        (404, "BlobNotFound") => return DocumentSourceError::Vanished,
        (412, _) => return DocumentSourceError::Changed,
        (409, "BlobArchived" | "BlobBeingRehydrated") => return DocumentSourceError::Archived,
        (408 | 429 | 500.., _) => {
            return DocumentSourceError::Unreachable(format!("{status} {code}"));
        }
        (403, "AuthorizationPermissionMismatch") => ROLE,
        (403, "AuthenticationFailed") => {
            "; is the SAS whole and not yet ended, the identity of the account's tenant, and the \
             clock right?"
        }
        (403, "KeyBasedAuthenticationNotPermitted") => {
            "; the account takes no SAS that its key signed: set documents.credential, or have a SAS \
             signed by a user (user delegation)"
        }
        (403, "AuthorizationFailure") => {
            "; the account's network rules keep this machine out, or the given credential is not enough: \
             a SAS that is whole and for this container, or documents.credential with the role \
             'Storage Blob Data Reader'"
        }
        (403, _) => ROLE,
        (401, _) | (409, "PublicAccessNotPermitted") | (404, "ResourceNotFound") => ANONYMOUS,
        (404, "ContainerNotFound") => "; is the container's name right?",
        (400, "AuthenticationFailed" | "InvalidAuthenticationInfo") => "; is the SAS whole?",
        _ => "",
    };
    DocumentSourceError::Refused { status, code: code.to_owned(), hint }
}

/// Returns the innermost error; those above say "error sending request", and for which URL.
pub(super) fn innermost(error: &Error) -> String {
    let mut message = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        message = error.to_string();
        next = error.source();
    }
    if message.is_empty() { error.to_string() } else { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_its_mend() {
        for (status, code, said) in [
            (403, "AuthorizationPermissionMismatch", "Storage Blob Data Reader"),
            (403, "AuthorizationFailure", "network rules"),
            (403, "AuthenticationFailed", "clock"),
            (403, "AuthorizationResourceTypeMismatch", "sp=rl"),
            (403, "KeyBasedAuthenticationNotPermitted", "user delegation"),
            (401, "NoAuthenticationInformation", "documents.credential"),
            (409, "PublicAccessNotPermitted", "documents.credential"),
            (404, "ContainerNotFound", "container's name"),
            (409, "BlobArchived", "archive tier"),
            (409, "BlobUsesCustomerSpecifiedEncryption", "409 BlobUsesCustomer"),
        ] {
            let error = from_status(status, code);
            assert!(error.to_string().contains(said), "{error}");
            assert!(!error.is_transient());
        }
        assert!(matches!(from_status(404, "BlobNotFound"), DocumentSourceError::Vanished));
        assert!(matches!(from_status(412, "ConditionNotMet"), DocumentSourceError::Changed));
        assert!(from_status(503, "ServerBusy").is_transient());
    }
}
