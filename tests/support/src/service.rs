//! The simulator beside a test, and its ledger.

use std::collections::HashMap;
use std::time::Duration;

use promptmill::simulator::{self, LedgerSnapshot, Simulator, SimulatorSettings};

/// A simulator beside the test; its runtime lives as long as this value.
pub struct Service {
    simulator: Simulator,
    _runtime: tokio::runtime::Runtime,
}

impl Service {
    pub fn start(settings: SimulatorSettings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let simulator = runtime.block_on(simulator::start(address, settings)).unwrap();
        Self { simulator, _runtime: runtime }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.simulator.addr())
    }

    pub fn ledger(&self) -> LedgerSnapshot {
        self.simulator.ledger()
    }

    /// How often each prompt was answered, by its text.
    pub fn answered(&self) -> HashMap<String, u64> {
        let url = format!("http://{}/ledger?prompts=true", self.simulator.addr());
        let client = promptmill::http_client::builder().no_proxy().build().unwrap();
        let text = self
            ._runtime
            .block_on(async { client.get(url).send().await.unwrap().text().await.unwrap() });
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["prompt"].as_str().unwrap().to_owned(), line["answered"].as_u64().unwrap())
        };
        text.lines().map(line).collect()
    }
}

/// Waits for something that must happen, for as long as any slow machine may need.
pub fn wait_until(happened: impl FnMut() -> bool) {
    wait_for(Duration::from_secs(30), happened);
}

/// Waits for something that must happen within this time.
pub fn wait_for(at_most: Duration, mut happened: impl FnMut() -> bool) {
    let (_keep_open, ticks) = std::sync::mpsc::channel::<()>();
    for _ in 0..at_most.as_millis() / 10 {
        if happened() {
            return;
        }
        let _ = ticks.recv_timeout(Duration::from_millis(10));
    }
    panic!("it did not happen within {at_most:?}");
}
