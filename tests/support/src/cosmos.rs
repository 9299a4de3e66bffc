//! A Cosmos DB for tests: a server of this process, a database of each test.

#[allow(dead_code, clippy::duplicate_mod, reason = "some test binaries have it beside `support`")]
#[path = "secrets.rs"]
mod secrets;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use cosmos_host::Host;
use promptmill::store::cosmos::{
    CosmosConsistency, CosmosCredential, CosmosSettings, CosmosStore, init,
};

/// One server for all tests of a binary. It has a runtime of its own, since a test's ends with it.
pub fn shared_host() -> &'static Host {
    static HOST: OnceLock<(tokio::runtime::Runtime, Host)> = OnceLock::new();
    let (_, host) = HOST.get_or_init(|| {
        let start = || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let host = runtime.block_on(own_host());
            (runtime, host)
        };
        // A runtime can't be blocked on from within another one.
        std::thread::scope(|scope| scope.spawn(start).join().unwrap())
    });
    host
}

/// A server that a test may break.
pub async fn own_host() -> Host {
    secrets::watch();
    let address = "127.0.0.1:0".parse().unwrap();
    cosmos_host::start(address, cosmos_host::Settings::default()).await.unwrap()
}

/// Settings with a new database.
pub fn settings(host: &Host) -> CosmosSettings {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    CosmosSettings {
        endpoint: host.endpoint(),
        database: format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        credential: CosmosCredential::Key(host.key().into()),
        emulator: true,
        preferred_regions: Vec::new(),
        consistency: CosmosConsistency::Account,
        shards: NonZeroU32::new(8).unwrap(),
        writes_in_flight: NonZeroUsize::new(32).unwrap(),
        patience_s: 30,
    }
}

/// A store on a new, initialised database.
pub async fn store(host: &Host) -> CosmosStore {
    let settings = settings(host);
    init(&settings).await.unwrap();
    CosmosStore::connect(&settings).await.unwrap()
}
