//! Client certificate of a service principal: signs assertions that prove possession of the key.
//!
//! `azure_identity` has this too, on OpenSSL; here the library that already does TLS signs.

use std::fmt;
use std::path::{Path, PathBuf};

use azure_core::http::ClientMethodOptions;
use azure_identity::ClientAssertion;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use uuid::Uuid;

use crate::error::credential_error;

/// Entra ID's public cloud; another is named by `AZURE_AUTHORITY_HOST`, as in Microsoft's SDKs.
const AUTHORITY: &str = "https://login.microsoftonline.com";

/// Entra ID takes assertions for a few minutes only (its docs: "certificate credentials").
const LIFETIME_S: i64 = 300;

/// A certificate that can't be used. The file's content is never quoted.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    #[error(
        "AZURE_CLIENT_CERTIFICATE_PATH: {} has no {what} in PEM form; \
         openssl pkcs12 -in FILE.pfx -nodes makes it of a PFX", path.display()
    )]
    Pem { path: PathBuf, what: &'static str },
    #[error("AZURE_CLIENT_CERTIFICATE_PATH: the key of {} is no RSA key of 2048 to 4096 bits", path.display())]
    Key { path: PathBuf },
}

/// A certificate with its key, for one service principal.
pub(super) struct ClientCertificate {
    key: RsaKeyPair,
    /// SHA-256 of the certificate, by which Entra ID finds it.
    thumbprint: String,
    audience: String,
    client: String,
}

impl ClientCertificate {
    pub(super) fn read(
        path: &Path,
        authority: Option<&str>,
        tenant: &str,
        client: &str,
    ) -> Result<Self, CertificateError> {
        let lacks = |what| CertificateError::Pem { path: path.to_owned(), what };
        let certificate = CertificateDer::from_pem_file(path).map_err(|_| lacks("certificate"))?;
        let key = PrivateKeyDer::from_pem_file(path).map_err(|_| lacks("private key"))?;
        let no_rsa = || CertificateError::Key { path: path.to_owned() };
        let key = match &key {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err(no_rsa()),
        };
        let authority = authority.unwrap_or(AUTHORITY).trim_end_matches('/');
        Ok(Self {
            key: key.map_err(|_| no_rsa())?,
            thumbprint: URL_SAFE_NO_PAD.encode(digest(&SHA256, &certificate)),
            audience: format!("{authority}/{tenant}/oauth2/v2.0/token"),
            client: client.to_owned(),
        })
    }

    fn sign(&self, now: i64, id: Uuid) -> azure_core::Result<String> {
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let header = json!({ "alg": "RS256", "typ": "JWT", "x5t#S256": self.thumbprint });
        let claims = json!({
            "aud": self.audience,
            "iss": self.client,
            "sub": self.client,
            "jti": id,
            "nbf": now,
            "exp": now + LIFETIME_S,
        });
        let signed = format!("{}.{}", part(header), part(claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| credential_error("the certificate's key does not sign".to_owned()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[async_trait::async_trait]
impl ClientAssertion for ClientCertificate {
    async fn secret(
        &self,
        _options: Option<ClientMethodOptions<'_>>,
    ) -> azure_core::Result<String> {
        self.sign(Timestamp::now().as_second(), Uuid::new_v4())
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("client", &self.client).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    #[test]
    fn an_assertion_is_signed_by_the_certificates_key_and_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Made for this test alone: the library makes no RSA keys.
        let key = include_bytes!("testdata/key_of_nobody.der");
        let text = pem("CERTIFICATE", b"a certificate") + &pem("PRIVATE KEY", key);
        std::fs::write(file.path(), text).unwrap();
        let certificate = ClientCertificate::read(file.path(), None, "tenant", "client").unwrap();
        let jwt = certificate.sign(1_000, Uuid::nil()).unwrap();
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let public = certificate.key.public_key().as_ref().to_vec();
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
        key.verify(signed.as_bytes(), &signature).unwrap();
        let read = |part: &str| -> serde_json::Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let (header, claims) = signed.split_once('.').unwrap();
        let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA256, b"a certificate"));
        assert_eq!(read(header)["x5t#S256"], thumbprint);
        let aud = "https://login.microsoftonline.com/tenant/oauth2/v2.0/token";
        assert_eq!(read(claims)["aud"], aud);
        assert_eq!(read(claims)["exp"], 1_300);
        assert!(!format!("{certificate:?}").contains(&certificate.thumbprint));
    }

    #[test]
    fn a_file_that_is_no_certificate_is_told_with_the_mend() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pem("PRIVATE KEY", b"x")).unwrap();
        let said = ClientCertificate::read(file.path(), None, "t", "c").unwrap_err().to_string();
        assert!(said.contains("no certificate") && said.contains("pkcs12"), "{said}");
    }
}
