//! Credentials of the identities, by Microsoft's crate.

use std::sync::Arc;

use azure_core::credentials::{Secret, TokenCredential};
use azure_identity::{
    ClientAssertionCredential, ClientSecretCredential, DeveloperToolsCredential,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential,
};

use super::Identity;
use crate::certificate::ClientCertificate;
use crate::error::credential_error;

impl Identity {
    /// # Errors
    /// Fails if this machine lacks what the identity needs, such as a service account's variables.
    pub fn credential(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        http_client::install_tls();
        Ok(match self {
            Self::ManagedIdentity { client_id } => {
                let user_assigned_id = client_id.clone().map(UserAssignedId::ClientId);
                let options =
                    ManagedIdentityCredentialOptions { user_assigned_id, ..Default::default() };
                ManagedIdentityCredential::new(Some(options))?
            }
            Self::WorkloadIdentity => WorkloadIdentityCredential::new(None)?,
            Self::DeveloperTools => DeveloperToolsCredential::new(None)?,
            Self::Environment => return service_principal(|name| std::env::var(name).ok()),
        })
    }
}

fn service_principal(
    variable: impl Fn(&str) -> Option<String>,
) -> azure_core::Result<Arc<dyn TokenCredential>> {
    let given = |name: &str| variable(name).filter(|value| !value.is_empty());
    let needed =
        |name: &str| given(name).ok_or_else(|| credential_error(format!("{name} is not set")));
    let (tenant, client) = (needed("AZURE_TENANT_ID")?, needed("AZURE_CLIENT_ID")?);
    if let Some(secret) = given("AZURE_CLIENT_SECRET") {
        return Ok(ClientSecretCredential::new(&tenant, client, Secret::new(secret), None)?);
    }
    let Some(path) = given("AZURE_CLIENT_CERTIFICATE_PATH") else {
        return Err(credential_error(
            "set AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH".to_owned(),
        ));
    };
    let authority = given("AZURE_AUTHORITY_HOST");
    let certificate =
        ClientCertificate::read(path.as_ref(), authority.as_deref(), &tenant, &client);
    let certificate = certificate.map_err(|error| credential_error(error.to_string()))?;
    Ok(ClientAssertionCredential::new(tenant, client, certificate, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_principal_says_which_variable_is_missing() {
        http_client::install_tls();
        let known = |names: &'static [&'static str]| {
            let variable = move |name: &str| names.contains(&name).then(|| "x".to_owned());
            service_principal(variable)
        };
        let said = |names| known(names).unwrap_err().to_string();
        assert!(said(&[]).contains("AZURE_TENANT_ID"));
        assert!(said(&["AZURE_TENANT_ID"]).contains("AZURE_CLIENT_ID"));
        let both = said(&["AZURE_TENANT_ID", "AZURE_CLIENT_ID"]);
        assert!(
            both.contains("AZURE_CLIENT_SECRET") && both.contains("CERTIFICATE_PATH"),
            "{both}"
        );
        assert!(known(&["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"]).is_ok());
    }
}
