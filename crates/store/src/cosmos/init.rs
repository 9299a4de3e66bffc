//! Creates the database and its containers where they are missing.

use azure_data_cosmos::models::{ContainerProperties, IndexingPolicy, TimeToLive};
use azure_data_cosmos::{CosmosClient, CosmosError};

use super::error::store_error;
use super::items::{BATCHES, OUTCOMES, PAYLOADS, SHARES, USAGE};
use super::settings::{CosmosCredential, CosmosSettings};
use crate::{HEARTBEAT_TTL, StoreError};

/// Reason why the containers were not created.
#[derive(Debug, thiserror::Error)]
enum CannotInit {
    #[error(
        "an Entra ID identity can't create databases and containers: deploy them with Bicep or the \
         Azure CLI, or run `promptmill init` with the account key"
    )]
    NeedsKey,
    #[error(
        "container '{container}' exists with the partition key {found}, not {expected}: \
         choose another database"
    )]
    OtherPartitionKey { container: String, found: String, expected: &'static str },
}

/// Creates what is missing and leaves alone what is there.
///
/// # Errors
/// Says what can't be created and why; with Entra ID, that it has to be there already.
pub async fn init(settings: &CosmosSettings) -> Result<(), StoreError> {
    if !matches!(settings.credential, CosmosCredential::Key(_)) {
        return Err(StoreError::Refused(CannotInit::NeedsKey.into()));
    }
    let client = settings.client().await?;
    let created = client.create_database(&settings.database, None).await;
    unless_there(created.map(drop), "creating the database")?;
    for (name, partition_key) in [
        (OUTCOMES, "/pk"),
        (BATCHES, "/id"),
        (USAGE, "/batchId"),
        (SHARES, "/pk"),
        (PAYLOADS, "/id"),
    ] {
        create_container(&client, &settings.database, name, partition_key).await?;
    }
    Ok(())
}

async fn create_container(
    client: &CosmosClient,
    database: &str,
    name: &'static str,
    partition_key: &'static str,
) -> Result<(), StoreError> {
    let mut properties = ContainerProperties::new(name, partition_key.into());
    properties = match name {
        OUTCOMES => properties.with_indexing_policy(outcomes_index()),
        // Bodies of jobs carry their own TTL; those of outcomes stay.
        PAYLOADS => properties
            .with_indexing_policy(excluding(&["/*"]))
            .with_default_ttl(TimeToLive::NoDefault),
        // Read whole: an index would only make its many writes cost more.
        SHARES => properties
            .with_default_ttl(TimeToLive::Seconds(HEARTBEAT_TTL.as_secs() as u32))
            .with_indexing_policy(excluding(&["/*"])),
        _ => properties,
    };
    let database = client.database_client(database.to_owned());
    let created = database.create_container(properties, None).await;
    unless_there(created.map(drop), "creating a container")?;
    check_partition_key(&database, name, partition_key).await
}

async fn check_partition_key(
    database: &azure_data_cosmos::DatabaseClient,
    name: &'static str,
    expected: &'static str,
) -> Result<(), StoreError> {
    let failed = |e| store_error("reading a container", e);
    let container = database.container_client(name, None).await.map_err(failed)?;
    let properties = container.read(None).await.map_err(failed)?.into_model().map_err(failed)?;
    let found = properties.partition_key.paths().join(", ");
    if found != expected {
        let container = name.to_owned();
        let other = CannotInit::OtherPartitionKey { container, found, expected };
        return Err(StoreError::Refused(other.into()));
    }
    Ok(())
}

/// Excludes texts that nobody searches: an index costs request units at each write.
fn outcomes_index() -> IndexingPolicy {
    excluding(&["/body/?", "/metadata/?", "/failure/message/?"]).with_included_path("/*")
}

fn excluding(paths: &[&str]) -> IndexingPolicy {
    let mut policy = IndexingPolicy::default();
    policy.automatic = true;
    paths.iter().fold(policy, |policy, path| policy.with_excluded_path(*path))
}

fn unless_there(created: Result<(), CosmosError>, doing: &'static str) -> Result<(), StoreError> {
    match created {
        Err(e) if e.status().is_conflict() => Ok(()),
        created => created.map_err(|e| store_error(doing, e)),
    }
}
