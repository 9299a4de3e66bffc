//! What Blob Storage's refusals mean, and how they are mended.
//!
//! The codes are those of Azure's "Blob service error codes" and "Common REST API error codes".

use std::error::Error as _;

use azure_core::error::{Error, ErrorKind};

use super::SourceError;

const ROLE: &str = "; an identity needs the role 'Storage Blob Data Reader' on the account or \
                    container (a new role takes some minutes to count), a SAS must be for reading and \
                    listing (sp=rl)";
const NOBODY: &str =
    "; the container is not open to all: set documents.credential, or documents.sas";

/// Nothing of a request's URL goes in here, which may hold a signature.
pub(super) fn told(error: &Error) -> SourceError {
    match error.kind() {
        ErrorKind::HttpResponse { status, error_code, .. } => {
            refused((*status).into(), error_code.as_deref().unwrap_or("without a code"))
        }
        ErrorKind::Connection | ErrorKind::Io => SourceError::Unreachable(innermost(error)),
        ErrorKind::Credential => SourceError::Identity(format!("Entra ID gives no token: {error}")),
        _ => SourceError::Answer(innermost(error)),
    }
}

fn refused(status: u16, code: &str) -> SourceError {
    let mend = match (status, code) {
        (404, "BlobNotFound") => return SourceError::Vanished,
        (412, _) => return SourceError::Changed,
        (409, "BlobArchived" | "BlobBeingRehydrated") => return SourceError::Archived,
        (408 | 429 | 500.., _) => return SourceError::Unreachable(format!("{status} {code}")),
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
            "; the account's network rules keep this machine out, or what we came with is not enough: \
             a SAS that is whole and for this container, or documents.credential with the role \
             'Storage Blob Data Reader'"
        }
        (403, _) => ROLE,
        (401, _) | (409, "PublicAccessNotPermitted") | (404, "ResourceNotFound") => NOBODY,
        (404, "ContainerNotFound") => "; is the container's name right?",
        (400, "AuthenticationFailed" | "InvalidAuthenticationInfo") => "; is the SAS whole?",
        _ => "",
    };
    SourceError::Refused { status, code: code.to_owned(), mend }
}

/// The layers above say "error sending request", and for which URL.
pub(super) fn innermost(error: &Error) -> String {
    let mut told = String::new();
    let mut next = error.source();
    while let Some(error) = next {
        told = error.to_string();
        next = error.source();
    }
    if told.is_empty() { error.to_string() } else { told }
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
            let error = refused(status, code);
            assert!(error.to_string().contains(said), "{error}");
            assert!(!error.is_passing());
        }
        assert!(matches!(refused(404, "BlobNotFound"), SourceError::Vanished));
        assert!(matches!(refused(412, "ConditionNotMet"), SourceError::Changed));
        assert!(refused(503, "ServerBusy").is_passing());
    }
}
