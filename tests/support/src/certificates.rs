//! Certificates of an authority that nobody knows, made anew for each test.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// An authority in `ca.pem`, and by it one for this machine in `server.pem`, with its
/// key in `key.pem`.
pub fn make(folder: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    // By default both have one name, and OpenSSL takes the second for signed by itself.
    authority.distinguished_name.push(DnType::CommonName, "authority of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(folder.join("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned)).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("server.pem"), server.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}
