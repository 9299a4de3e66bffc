//! URL of a container, with an optional prefix.

use percent_encoding::percent_decode_str;
use url::Url;

use super::error::DocumentSourceError;

/// A container's URL, and the prefix that the names of its blobs must have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContainerUrl {
    pub(super) container: Url,
    /// Empty, or ending in `/`.
    pub(super) prefix: String,
}

impl ContainerUrl {
    /// Parses a URL. Emulators have the account as the first part of the path (Azure docs: "Use the
    /// Azurite emulator for local Azure Storage development"), and use plain HTTP.
    pub(super) fn parse(given: &str, emulator: bool) -> Result<Self, DocumentSourceError> {
        let wrong = |problem| {
            let address = given.split(['?', '#']).next().unwrap_or_default().to_owned();
            DocumentSourceError::Address { address, problem }
        };
        let url = Url::parse(given).map_err(|_| wrong("it is no URL"))?;
        if url.scheme() == "http" && !emulator {
            return Err(wrong(
                "plain http:// is for emulators; write https://, or set documents.emulator = true",
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it must hold no user or password"));
        }
        if url.query().is_some() {
            return Err(wrong(
                "a command line is no place for a SAS; give what follows the '?' as the variable \
                 PROMPTMILL__DOCUMENTS__SAS",
            ));
        }
        if url.fragment().is_some() {
            return Err(wrong("a '#' in a name is written %23 here"));
        }
        let mut parts = Vec::new();
        for part in url.path_segments().into_iter().flatten() {
            let part = percent_decode_str(part).decode_utf8();
            parts.push(part.map_err(|_| wrong("its percent signs don't spell UTF-8"))?);
        }
        let roots = if emulator { 2 } else { 1 };
        if parts.len() < roots || parts[..roots].iter().any(|part| part.is_empty()) {
            return Err(wrong(if emulator {
                "an emulator's container is named by http://HOST:PORT/ACCOUNT/CONTAINER"
            } else {
                "a container is named by https://ACCOUNT.blob.core.windows.net/CONTAINER"
            }));
        }
        let mut prefix = parts[roots..].join("/");
        if !prefix.is_empty() && !prefix.ends_with('/') {
            prefix.push('/');
        }
        let mut container = url.clone();
        if let Ok(mut path) = container.path_segments_mut() {
            path.clear().extend(&parts[..roots]);
        }
        Ok(Self { container, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(given: &str, emulator: bool) -> (String, String) {
        let ContainerUrl { container, prefix } = ContainerUrl::parse(given, emulator).unwrap();
        (container.into(), prefix)
    }

    #[test]
    fn a_container_and_the_folder_in_it_are_told_apart() {
        let account = "https://contoso.blob.core.windows.net";
        for (given, prefix) in [
            ("/docs", ""),
            ("/docs/", ""),
            ("/docs/2026/reports", "2026/reports/"),
            ("/docs/規程/", "規程/"),
            ("/docs/%E8%A6%8F%E7%A8%8B", "規程/"),
            ("/docs/50%25 off/a%23b", "50% off/a#b/"),
        ] {
            let expected = (format!("{account}/docs"), prefix.to_owned());
            assert_eq!(parsed(&format!("{account}{given}"), false), expected);
        }
    }

    #[test]
    fn an_emulators_account_is_in_the_path() {
        let (container, prefix) = parsed("http://127.0.0.1:10000/devstoreaccount1/docs/a", true);
        assert_eq!(container, "http://127.0.0.1:10000/devstoreaccount1/docs");
        assert_eq!(prefix, "a/");
    }

    #[test]
    fn what_is_no_container_is_told_with_the_mend_and_without_the_signature() {
        for (given, emulator, said) in [
            ("http://a.blob.core.windows.net/docs", false, "documents.emulator"),
            ("https://a.blob.core.windows.net", false, "ACCOUNT"),
            ("http://127.0.0.1:10000/devstoreaccount1", true, "HOST:PORT/ACCOUNT/CONTAINER"),
            (
                "https://a.blob.core.windows.net/docs?sv=1&sig=s3cret",
                false,
                "PROMPTMILL__DOCUMENTS",
            ),
            ("https://a.blob.core.windows.net/docs/a#b", false, "%23"),
            ("https://u:s3cret@a.blob.core.windows.net/docs", false, "user"),
            ("https://", false, "no URL"),
        ] {
            let error = ContainerUrl::parse(given, emulator).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("sig="), "{error}");
        }
    }
}
