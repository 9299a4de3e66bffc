//! Keeps this instance's shares of all quotas: exchanges heartbeats with its siblings.
//!
//! `admission::shares` decides; this task communicates: with the dispatcher, which admits by the
//! shares and knows the demands, and with the store, where the siblings' heartbeats are. People's
//! inquiries arrive and are answered the same way.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::command::DispatcherCommand;
use super::inquiry::OpenInquiries;
use super::settings::WorkerTarget;
use admission::shares::QuotaShares;
use domain::deployment::DemandSnapshot;
use domain::heartbeat::{DeploymentReport, EXCHANGE_INTERVAL, Heartbeat, WorkerStatus};
use domain::inquiry::WorkerInquiry;
use store::{Store, StoreError};

/// Time to wait for the dispatcher; after that its last demands stand.
const DISPATCHER_TIMEOUT: Duration = Duration::from_millis(500);

/// Time that an unreachable store may delay our end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Deployment whose quota is shared.
struct SharedTarget {
    name: String,
    /// Key of its quota, the same at every instance.
    quota: String,
}

pub(super) struct ShareExchange {
    store: Arc<dyn Store>,
    commands: mpsc::Sender<DispatcherCommand>,
    targets: Vec<SharedTarget>,
    shares: QuotaShares,
    heartbeat: Heartbeat,
    snapshots: Vec<DemandSnapshot>,
    measured_at: Instant,
    inquiries: OpenInquiries,
    /// Inquiries without an answer.
    unanswered: Vec<(Uuid, WorkerInquiry)>,
    /// We have an answer for somebody who waits: the next heartbeat is too far off.
    has_answers: bool,
    has_observed: bool,
    is_failing: bool,
}

impl ShareExchange {
    pub(super) fn new(
        store: Arc<dyn Store>,
        targets: &[WorkerTarget],
        commands: mpsc::Sender<DispatcherCommand>,
    ) -> Self {
        let shared = |target: &WorkerTarget| {
            let model = target.member.models.first().map(String::as_str);
            let quota = target.client.quota_key(model);
            SharedTarget { name: target.member.name.clone(), quota }
        };
        let targets: Vec<_> = targets.iter().map(shared).collect();
        let shares = QuotaShares::new(targets.iter().map(|target| target.quota.clone()));
        let status = WorkerStatus {
            host: Some(host()),
            pid: Some(std::process::id()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            started: Some(Timestamp::now()),
            ..WorkerStatus::default()
        };
        let heartbeat = Heartbeat {
            instance: Uuid::new_v4(),
            sequence: 0,
            quota_claims: shares.quota_claims(),
            status,
        };
        Self {
            store,
            commands,
            targets,
            shares,
            heartbeat,
            snapshots: Vec::new(),
            measured_at: Instant::now(),
            inquiries: OpenInquiries::default(),
            unanswered: Vec::new(),
            has_answers: false,
            has_observed: false,
            is_failing: false,
        }
    }

    /// Runs until stopped; then removes its heartbeat, so that the siblings know at once.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        self.apply();
        loop {
            let now = Instant::now();
            let has_answers = std::mem::take(&mut self.has_answers);
            let due = if has_answers { now } else { self.shares.next_exchange(now) };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep_until(due) => {}
            }
            self.measure().await;
            let exchanged = timeout(EXCHANGE_INTERVAL, self.exchange()).await;
            self.log_result(exchanged.map_err(|_| "the store takes too long".to_owned()));
            self.apply();
            self.answer_inquiries().await;
        }
        let goodbye =
            timeout(SHUTDOWN_TIMEOUT, self.store.delete_heartbeat(self.heartbeat.instance));
        if !matches!(goodbye.await, Ok(Ok(()))) {
            debug!("the siblings will find out by themselves that this worker has gone");
        }
    }

    /// Asks the dispatcher for the demands, about once a beat: shorter times would measure chance.
    async fn measure(&mut self) {
        if self.measured_at.elapsed() < EXCHANGE_INTERVAL * 3 / 4 {
            return;
        }
        let (answer, answered) = oneshot::channel();
        if self.commands.try_send(DispatcherCommand::Report(answer)).is_err() {
            return;
        }
        if let Ok(Ok(snapshots)) = timeout(DISPATCHER_TIMEOUT, answered).await {
            self.measured_at = Instant::now();
            self.snapshots = snapshots;
            for (target, snapshot) in self.targets.iter().zip(&self.snapshots) {
                self.shares.set_demand(&target.quota, snapshot.demand);
            }
        }
    }

    async fn exchange(&mut self) -> Result<(), StoreError> {
        if !self.has_observed {
            let words = self.siblings().await?;
            self.shares.observe_siblings(words, Instant::now());
            self.has_observed = true;
        }
        let began = Instant::now();
        self.heartbeat.sequence += 1;
        self.heartbeat.quota_claims = self.shares.quota_claims();
        self.heartbeat.status.deployments = self.deployments();
        self.heartbeat.status.answers = self.inquiries.answers();
        self.store.put_heartbeat(&self.heartbeat).await?;
        let words = self.siblings().await?;
        self.unanswered = self.inquiries.update(&words);
        self.shares.record_exchange(&self.heartbeat.quota_claims, words, began, Instant::now());
        Ok(())
    }

    /// Collects the answers to open inquiries; the next heartbeat carries them.
    async fn answer_inquiries(&mut self) {
        for (asker, question) in std::mem::take(&mut self.unanswered) {
            let (answer, answered) = oneshot::channel();
            if self.commands.try_send(DispatcherCommand::Explain(question, answer)).is_err() {
                return;
            }
            let Ok(Ok(answer)) = timeout(DISPATCHER_TIMEOUT, answered).await else { return };
            self.inquiries.answer(asker, answer);
            self.has_answers = true;
        }
    }

    async fn siblings(&self) -> Result<Vec<Heartbeat>, StoreError> {
        let mut words = self.store.heartbeats().await?;
        words.retain(|word| word.instance != self.heartbeat.instance);
        Ok(words)
    }

    fn deployments(&self) -> Vec<DeploymentReport> {
        let named = self.targets.iter().zip(&self.snapshots);
        named
            .map(|(target, snapshot)| DeploymentReport {
                name: target.name.clone(),
                quota: target.quota.clone(),
                snapshot: snapshot.clone(),
            })
            .collect()
    }

    fn log_result(&mut self, exchanged: Result<Result<(), StoreError>, String>) {
        let failed = match exchanged {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(why) => Some(why),
        };
        match failed {
            Some(why) => {
                self.shares.record_failure(Instant::now());
                if !self.is_failing {
                    warn!(error = why, "can't reach the siblings; this worker's share will shrink");
                }
                self.is_failing = true;
            }
            None => {
                if self.is_failing {
                    info!("the siblings are reached again");
                }
                self.is_failing = false;
            }
        }
    }

    fn apply(&self) {
        let now = Instant::now();
        let fractions: Vec<f64> =
            self.targets.iter().map(|t| self.shares.fraction(&t.quota, now)).collect();
        debug!(siblings = self.shares.siblings(), ?fractions, "shares");
        // If the dispatcher is behind, it gets them next time; it admits nothing meanwhile.
        let _ = self.commands.try_send(DispatcherCommand::UseShares(fractions));
    }
}

/// Returns the name of this machine or container as people know it.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok());
    name.or_else(|| std::env::var("COMPUTERNAME").ok()).unwrap_or_default().trim().to_owned()
}
