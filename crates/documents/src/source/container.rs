//! Documents in a container of Azure Blob Storage.
//!
//! The listing shows what a reader of the container sees now: no snapshots, former versions or
//! deleted blobs, and none of the empty blobs that stand for folders. A download is one request for
//! the listed ETag, so that a blob overwritten meanwhile is reported, never read in two halves.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use azure_core::http::{ClientOptions, Etag, ExponentialRetryOptions, RetryOptions};
use azure_storage_blob::models::{
    BlobClientDownloadOptions, BlobContainerClientListBlobsOptions, BlobItem, ListBlobsIncludeItem,
    ListBlobsResponse,
};
use azure_storage_blob::{BlobContainerClient, BlobContainerClientOptions};
use futures_util::TryStreamExt;
use secrecy::ExposeSecret;
use tempfile::TempPath;
use tokio::io::AsyncWriteExt;

use super::azure_error;
use super::container_url::ContainerUrl;
use super::document::{DocumentVersion, FetchedFile, FileLocation, ListedDocument};
use super::error::DocumentSourceError;
use super::glob_filter::GlobFilter;
use super::settings::BlobSettings;

/// Retries after the first attempt of a request. With the delays between, of up to 5 s, they last
/// through a failover of the service, and not through the night.
const MAX_RETRIES: u32 = 4;
const MAX_RETRY_DELAY_S: i64 = 5;
const MAX_RETRY_ELAPSED_S: i64 = 60;

/// Attempts of a download that breaks off in the middle.
const DOWNLOAD_ATTEMPTS: usize = 3;

/// Timeout of a token request: the SDK retries for minutes, and the Azure CLI takes seconds.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
const SCOPE: &str = "https://storage.azure.com/.default";

/// Metadata key of an empty blob that stands for a folder, in data lakes and Hadoop's drivers.
const FOLDER_MARKER: &str = "hdi_isfolder";

/// A container, or the blobs below a prefix of it.
pub struct BlobContainer {
    client: BlobContainerClient,
    prefix: String,
    /// Blobs listed by one request; absent: the service's default, 5,000.
    page_size: Option<NonZeroU32>,
}

impl BlobContainer {
    /// Opens a container; see [`super::DocumentSource::open`].
    ///
    /// # Errors
    /// If the URL is not one of Blob Storage, or the identity gives no token.
    pub async fn open(given: &str, settings: &BlobSettings) -> Result<Self, DocumentSourceError> {
        http_client::install_tls();
        settings.check()?;
        let ContainerUrl { mut container, prefix } = ContainerUrl::parse(given, settings.emulator)?;
        let credential = settings.identity()?;
        if let Some(credential) = &credential {
            if container.scheme() == "http" {
                let problem = "an identity's token goes over https:// only";
                return Err(DocumentSourceError::Address { address: given.to_owned(), problem });
            }
            check_identity(credential).await?;
        }
        if let Some(sas) = &settings.sas {
            let sas = sas.expose_secret().trim();
            container.set_query(Some(sas.strip_prefix('?').unwrap_or(sas)));
        }
        let options = BlobContainerClientOptions {
            client_options: ClientOptions { retry: retries(), ..ClientOptions::default() },
            ..BlobContainerClientOptions::default()
        };
        let client = BlobContainerClient::new(container, credential, Some(options));
        let client = client.map_err(|error| azure_error::convert(&error))?;
        Ok(Self { client, prefix, page_size: None })
    }

    /// Sets the number of blobs listed by one request.
    #[must_use]
    pub fn with_page_size(self, blobs: NonZeroU32) -> Self {
        Self { page_size: Some(blobs), ..self }
    }

    pub(super) async fn list(
        &self,
        filter: &GlobFilter,
    ) -> Result<Vec<ListedDocument>, DocumentSourceError> {
        let mut found = Vec::new();
        let to_error = |error| azure_error::convert(&error);
        let pages =
            self.client.list_blobs(Some(self.list_options(self.page_size))).map_err(to_error)?;
        let mut pages = pages.into_pages();
        while let Some(page) = pages.try_next().await.map_err(to_error)? {
            for item in blobs(page.into_model().map_err(to_error)?)? {
                let listed = self.to_listed(item)?;
                found.extend(listed.filter(|listed| filter.matches(&listed.name)));
            }
        }
        Ok(found)
    }

    pub(super) async fn check_access(&self) -> Result<(), DocumentSourceError> {
        let to_error = |error| azure_error::convert(&error);
        let one = self.list_options(Some(NonZeroU32::MIN));
        let mut pages = self.client.list_blobs(Some(one)).map_err(to_error)?.into_pages();
        match pages.try_next().await.map_err(to_error)? {
            Some(page) => blobs(page.into_model().map_err(to_error)?).map(drop),
            None => Ok(()),
        }
    }

    pub(super) async fn fetch(
        &self,
        listed: &ListedDocument,
        limit: u64,
        scratch: &Path,
    ) -> Result<FetchedFile, DocumentSourceError> {
        if listed.bytes > limit {
            return Err(DocumentSourceError::TooLarge { bytes: listed.bytes, limit });
        }
        let mut left = DOWNLOAD_ATTEMPTS;
        loop {
            left -= 1;
            match self.download(listed, scratch).await {
                Err(DocumentSourceError::Interrupted(_)) if left > 0 => {}
                result => return result.map(|path| FetchedFile(FileLocation::Temporary(path))),
            }
        }
    }

    async fn download(
        &self,
        listed: &ListedDocument,
        scratch: &Path,
    ) -> Result<TempPath, DocumentSourceError> {
        let (file, path) = temporary(&listed.name, scratch)?.into_parts();
        let Some(bytes) = usize::try_from(listed.bytes).ok().and_then(NonZeroUsize::new) else {
            return Ok(path);
        };
        let to_error = |error| azure_error::convert(&error);
        let options = BlobClientDownloadOptions {
            if_match: Some(quoted(&listed.version)),
            // One part: the body is then streamed as it comes in, and not gathered in memory.
            partition_size: Some(bytes),
            parallel: NonZeroUsize::new(1),
            ..BlobClientDownloadOptions::default()
        };
        let blob = self.client.blob_client(&format!("{}{}", self.prefix, listed.name));
        let mut body = match blob.download(Some(options)).await.map_err(to_error) {
            Ok(result) => result.body,
            // A conditional request for a deleted blob may be answered so, too.
            Err(DocumentSourceError::Changed) if matches!(blob.exists().await, Ok(false)) => {
                return Err(DocumentSourceError::Vanished);
            }
            Err(error) => return Err(error),
        };
        let mut file = tokio::fs::File::from_std(file);
        let mut got = 0;
        let broken = |error| DocumentSourceError::Interrupted(azure_error::innermost(&error));
        while let Some(chunk) = body.try_next().await.map_err(broken)? {
            got += chunk.len() as u64;
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        if got != listed.bytes {
            return Err(DocumentSourceError::Interrupted(format!(
                "received {got} bytes of {}",
                listed.bytes
            )));
        }
        Ok(path)
    }

    fn list_options(
        &self,
        page: Option<NonZeroU32>,
    ) -> BlobContainerClientListBlobsOptions<'static> {
        BlobContainerClientListBlobsOptions {
            include: Some(vec![ListBlobsIncludeItem::Metadata]),
            maxresults: page.and_then(|page| page.get().try_into().ok()),
            prefix: Some(self.prefix.clone()).filter(|prefix| !prefix.is_empty()),
            ..BlobContainerClientListBlobsOptions::default()
        }
    }

    /// Converts an item of the listing; `None` if it is no document.
    fn to_listed(&self, item: BlobItem) -> Result<Option<ListedDocument>, DocumentSourceError> {
        let is_past = item.snapshot.is_some()
            || item.deleted == Some(true)
            || item.is_current_version == Some(false);
        let metadata = item.metadata.and_then(|metadata| metadata.values).unwrap_or_default();
        if is_past || is_folder(metadata.iter()) {
            return Ok(None);
        }
        let etag = item.properties.as_ref().and_then(|properties| properties.etag.as_ref());
        let bytes = item.properties.as_ref().and_then(|properties| properties.content_length);
        let (Some(name), Some(etag), Some(bytes)) = (item.name, etag, bytes) else {
            let what = "a blob is listed without its name, ETag or length".to_owned();
            return Err(DocumentSourceError::InvalidResponse(what));
        };
        let version = DocumentVersion(etag.as_ref().trim_matches('"').to_owned());
        let name = name.strip_prefix(&self.prefix).unwrap_or(&name).to_owned();
        // The prefix itself may be a blob, made by tools that show folders.
        Ok((!name.is_empty()).then_some(ListedDocument { name, version, bytes, path: None }))
    }
}

/// Returns the blobs of a page. Other XML, such as a guest network's login page, reads as an empty
/// listing too; every document would then seem to be gone.
fn blobs(page: ListBlobsResponse) -> Result<Vec<BlobItem>, DocumentSourceError> {
    match page.container_name {
        Some(_) => Ok(page.blob_items),
        None => Err(DocumentSourceError::InvalidResponse(
            "the response is not a container listing".to_owned(),
        )),
    }
}

fn is_folder<'a>(mut metadata: impl Iterator<Item = (&'a String, &'a String)>) -> bool {
    metadata.any(|(key, value)| {
        key.eq_ignore_ascii_case(FOLDER_MARKER) && value.eq_ignore_ascii_case("true")
    })
}

fn retries() -> RetryOptions {
    let options = ExponentialRetryOptions {
        max_retries: MAX_RETRIES,
        max_delay: azure_core::time::Duration::seconds(MAX_RETRY_DELAY_S),
        max_total_elapsed: azure_core::time::Duration::seconds(MAX_RETRY_ELAPSED_S),
        ..ExponentialRetryOptions::default()
    };
    RetryOptions::exponential(options)
}

/// Returns the ETag with the quotes that a condition must have and listings lack (RFC 9110, 8.8.3).
fn quoted(version: &DocumentVersion) -> Etag {
    Etag::from(format!("\"{version}\""))
}

/// Creates a temporary file. Readers go by the extension, so it stays.
fn temporary(name: &str, scratch: &Path) -> Result<tempfile::NamedTempFile, DocumentSourceError> {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    let suffix = extension.filter(|e| e.len() <= 16 && e.chars().all(char::is_alphanumeric));
    let suffix = suffix.map_or(String::new(), |extension| format!(".{extension}"));
    Ok(tempfile::Builder::new().prefix("document-").suffix(&suffix).tempfile_in(scratch)?)
}

async fn check_identity(credential: &Arc<dyn TokenCredential>) -> Result<(), DocumentSourceError> {
    let no_token =
        |why: &str| DocumentSourceError::Identity(format!("Entra ID gives no token: {why}"));
    match tokio::time::timeout(TOKEN_TIMEOUT, credential.get_token(&[SCOPE], None)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(no_token(&error.to_string())),
        Err(_) => Err(no_token("its endpoint does not answer")),
    }
}
