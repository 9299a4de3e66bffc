//! The one HTTP client and the one TLS of the program: reqwest over rustls, with the cryptography of
//! ring and the certificates that the machine trusts.
//!
//! Clients are built from [`builder`]. Libraries that build one themselves, Microsoft's, take the TLS
//! that [`install_tls`] has set for the process.

use reqwest::ClientBuilder;
use reqwest::redirect::Policy;
use rustls::crypto::ring;

/// Sets the process's TLS. It may be called any number of times.
pub fn install_tls() {
    // It fails if there is one already: ours, since nobody else sets any.
    let _ = ring::default_provider().install_default();
}

/// Returns the builder of a client that says who we are and follows no redirect: a request goes to the
/// place that is configured, with its key, or nowhere.
pub fn builder() -> ClientBuilder {
    install_tls();
    reqwest::Client::builder()
        .user_agent(concat!("promptmill/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_built_again_and_again_with_the_same_tls() {
        for _ in 0..2 {
            assert!(builder().build().is_ok());
        }
        let provider = rustls::crypto::CryptoProvider::get_default().unwrap();
        assert_eq!(provider.cipher_suites, ring::default_provider().cipher_suites);
    }
}
