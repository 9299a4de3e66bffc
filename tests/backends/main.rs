//! The queues and stores, and many workers on them.

mod claim_check;
mod copies;
mod fleet;
mod fleet_input;
mod identity;
mod odd_night;
mod queue;
mod service_bus;
mod service_bus_https;
mod service_bus_peer;
mod service_bus_tls;
mod state_file;
mod store;
mod store_cosmos;
mod store_cosmos_peers;
mod workers;
