//! Documents in a container of Azure Blob Storage.
//!
//! Listed is what a reader of the container sees now: no snapshots, former versions or deleted blobs,
//! and none of the empty blobs that stand for folders. A document comes by one request that names the
//! listed ETag, so that a blob that was written meanwhile is told, never read in two halves.

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

use super::address::Address;
use super::choose::Choice;
use super::{BlobSettings, Fetched, Listed, Place, SourceError, Version, fault};

/// After the first try of a request. With the waits between, of up to 5 s, it lasts through a change of
/// servers on the other side, and not through the night.
const MORE_TRIES: u32 = 4;
const LONGEST_WAIT_S: i64 = 5;
const PATIENCE_S: i64 = 60;

/// Tries of a download that breaks off in the middle.
const DOWNLOADS: usize = 3;

/// How long a token may take. The SDK tries for minutes by itself, and the Azure CLI takes seconds.
const TOKEN_PATIENCE: Duration = Duration::from_secs(30);
const SCOPE: &str = "https://storage.azure.com/.default";

/// Marks an empty blob as a folder, in data lakes and by Hadoop's drivers.
const FOLDER_MARK: &str = "hdi_isfolder";

/// A container, or the blobs below a prefix of it.
pub struct Container {
    client: BlobContainerClient,
    prefix: String,
    /// Blobs that one request lists; absent: as many as the service likes, 5,000.
    page: Option<NonZeroU32>,
}

impl Container {
    /// As [`super::Source::open`].
    ///
    /// # Errors
    /// If the URL is none of Blob Storage, or the identity gives no token.
    pub async fn open(given: &str, settings: &BlobSettings) -> Result<Self, SourceError> {
        settings.check()?;
        let Address { mut container, prefix } = Address::parse(given, settings.emulator)?;
        let credential = settings.identity()?;
        if let Some(credential) = &credential {
            if container.scheme() == "http" {
                let problem = "an identity's token goes over https:// only";
                return Err(SourceError::Address { address: given.to_owned(), problem });
            }
            try_identity(credential).await?;
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
        let client = client.map_err(|error| fault::told(&error))?;
        Ok(Self { client, prefix, page: None })
    }

    /// Lists so many blobs by a request.
    #[must_use]
    pub fn with_page(self, blobs: NonZeroU32) -> Self {
        Self { page: Some(blobs), ..self }
    }

    pub(super) async fn list(&self, choice: &Choice) -> Result<Vec<Listed>, SourceError> {
        let mut found = Vec::new();
        let told = |error| fault::told(&error);
        let pages = self.client.list_blobs(Some(self.wanted(self.page))).map_err(told)?;
        let mut pages = pages.into_pages();
        while let Some(page) = pages.try_next().await.map_err(told)? {
            for item in blobs(page.into_model().map_err(told)?)? {
                let listed = self.listed(item)?;
                found.extend(listed.filter(|listed| choice.takes(&listed.name)));
            }
        }
        Ok(found)
    }

    pub(super) async fn reach(&self) -> Result<(), SourceError> {
        let told = |error| fault::told(&error);
        let one = self.wanted(Some(NonZeroU32::MIN));
        let mut pages = self.client.list_blobs(Some(one)).map_err(told)?.into_pages();
        match pages.try_next().await.map_err(told)? {
            Some(page) => blobs(page.into_model().map_err(told)?).map(drop),
            None => Ok(()),
        }
    }

    pub(super) async fn fetch(
        &self,
        listed: &Listed,
        limit: u64,
        scratch: &Path,
    ) -> Result<Fetched, SourceError> {
        if listed.bytes > limit {
            return Err(SourceError::TooLarge { bytes: listed.bytes, limit });
        }
        let mut left = DOWNLOADS;
        loop {
            left -= 1;
            match self.download(listed, scratch).await {
                Err(SourceError::BrokenOff(_)) if left > 0 => {}
                result => return result.map(|path| Fetched(Place::Ours(path))),
            }
        }
    }

    async fn download(&self, listed: &Listed, scratch: &Path) -> Result<TempPath, SourceError> {
        let (file, path) = temporary(&listed.name, scratch)?.into_parts();
        let Some(bytes) = usize::try_from(listed.bytes).ok().and_then(NonZeroUsize::new) else {
            return Ok(path);
        };
        let told = |error| fault::told(&error);
        let options = BlobClientDownloadOptions {
            if_match: Some(quoted(&listed.version)),
            // One part: the body is then passed on as it comes in, and not gathered in memory.
            partition_size: Some(bytes),
            parallel: NonZeroUsize::new(1),
            ..BlobClientDownloadOptions::default()
        };
        let blob = self.client.blob_client(&format!("{}{}", self.prefix, listed.name));
        let mut body = match blob.download(Some(options)).await.map_err(told) {
            Ok(result) => result.body,
            // To ask for a version of what is gone may be answered so, too.
            Err(SourceError::Changed) if matches!(blob.exists().await, Ok(false)) => {
                return Err(SourceError::Vanished);
            }
            Err(error) => return Err(error),
        };
        let mut file = tokio::fs::File::from_std(file);
        let mut got = 0;
        let broken = |error| SourceError::BrokenOff(fault::innermost(&error));
        while let Some(chunk) = body.try_next().await.map_err(broken)? {
            got += chunk.len() as u64;
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        if got != listed.bytes {
            return Err(SourceError::BrokenOff(format!("{got} bytes came of {}", listed.bytes)));
        }
        Ok(path)
    }

    fn wanted(&self, page: Option<NonZeroU32>) -> BlobContainerClientListBlobsOptions<'static> {
        BlobContainerClientListBlobsOptions {
            include: Some(vec![ListBlobsIncludeItem::Metadata]),
            maxresults: page.and_then(|page| page.get().try_into().ok()),
            prefix: Some(self.prefix.clone()).filter(|prefix| !prefix.is_empty()),
            ..BlobContainerClientListBlobsOptions::default()
        }
    }

    /// None for what is no document.
    fn listed(&self, item: BlobItem) -> Result<Option<Listed>, SourceError> {
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
            return Err(SourceError::Answer(what));
        };
        let version = Version(etag.as_ref().trim_matches('"').to_owned());
        let name = name.strip_prefix(&self.prefix).unwrap_or(&name).to_owned();
        // The prefix itself may be a blob, made by tools that show folders.
        Ok((!name.is_empty()).then_some(Listed { name, version, bytes, path: None }))
    }
}

/// Whatever else is XML, such as a network's page for guests, reads as an empty listing too; and then
/// every document would seem to be gone.
fn blobs(page: ListBlobsResponse) -> Result<Vec<BlobItem>, SourceError> {
    match page.container_name {
        Some(_) => Ok(page.blob_items),
        None => Err(SourceError::Answer("it is no listing of a container".to_owned())),
    }
}

fn is_folder<'a>(mut metadata: impl Iterator<Item = (&'a String, &'a String)>) -> bool {
    metadata.any(|(key, value)| {
        key.eq_ignore_ascii_case(FOLDER_MARK) && value.eq_ignore_ascii_case("true")
    })
}

fn retries() -> RetryOptions {
    let options = ExponentialRetryOptions {
        max_retries: MORE_TRIES,
        max_delay: azure_core::time::Duration::seconds(LONGEST_WAIT_S),
        max_total_elapsed: azure_core::time::Duration::seconds(PATIENCE_S),
        ..ExponentialRetryOptions::default()
    };
    RetryOptions::exponential(options)
}

/// Listings have ETags without the quotes that a condition must have (RFC 9110, 8.8.3).
fn quoted(version: &Version) -> Etag {
    Etag::from(format!("\"{version}\""))
}

/// Readers go by the extension, so it stays.
fn temporary(name: &str, scratch: &Path) -> Result<tempfile::NamedTempFile, SourceError> {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    let suffix = extension.filter(|e| e.len() <= 16 && e.chars().all(char::is_alphanumeric));
    let suffix = suffix.map_or(String::new(), |extension| format!(".{extension}"));
    Ok(tempfile::Builder::new().prefix("document-").suffix(&suffix).tempfile_in(scratch)?)
}

async fn try_identity(credential: &Arc<dyn TokenCredential>) -> Result<(), SourceError> {
    let no_token = |why: &str| SourceError::Identity(format!("Entra ID gives no token: {why}"));
    match tokio::time::timeout(TOKEN_PATIENCE, credential.get_token(&[SCOPE], None)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(no_token(&error.to_string())),
        Err(_) => Err(no_token("its endpoint does not answer")),
    }
}
