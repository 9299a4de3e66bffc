//! Keeps this instance's shares of all quotas: exchanges words with its siblings, beat by beat.
//!
//! `admission::shares` decides; here is the talking: to the conductor, which admits by the shares
//! and knows the demands, and to the store, where the siblings' words are. People's questions come
//! and are answered the same way.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::Target;
use super::explain::{Answer, Desk, Question};
use admission::shares::{BEAT, Shares};
use admission::snapshot::Standing;
use domain::share::Word;
use store::{Store, StoreError};

/// How long the conductor is waited for; then its last demands stand.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

/// How long a store that is away may keep us from ending.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// What the conductor is asked for.
pub(super) enum Order {
    /// To use these fractions of the quotas, in the order of the targets.
    Use(Vec<f64>),
    /// To take those jobs out of line whose batches may not go any more.
    Recheck,
    /// To say how the deployments stand.
    Report(oneshot::Sender<Vec<Standing>>),
    /// To tell people of the jobs that it holds.
    Explain(Question, oneshot::Sender<Answer>),
}

pub(super) struct Sharing {
    store: Arc<dyn Store>,
    orders: mpsc::Sender<Order>,
    /// Name and quota of each target.
    targets: Vec<(String, String)>,
    shares: Shares,
    word: Word,
    standings: Vec<Standing>,
    measured_at: Instant,
    desk: Desk,
    /// Questions without an answer.
    open: Vec<(Uuid, Question)>,
    /// Somebody waits for an answer that we have: the beat is too far off.
    has_answers: bool,
    looked: bool,
    failing: bool,
}

impl Sharing {
    pub(super) fn new(
        store: Arc<dyn Store>,
        targets: &[Target],
        orders: mpsc::Sender<Order>,
    ) -> Self {
        let quota = |target: &Target| {
            let model = target.member.models.first().map(String::as_str);
            target.client.quota_key(model)
        };
        let targets: Vec<_> = targets.iter().map(|t| (t.member.name.clone(), quota(t))).collect();
        let shares = Shares::new(targets.iter().map(|(_, quota)| quota.clone()));
        let about = json!({
            "host": host(),
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "started": Timestamp::now().to_string(),
        });
        let word = Word { instance: Uuid::new_v4(), beat: 0, parts: shares.parts(), about };
        Self {
            store,
            orders,
            targets,
            shares,
            word,
            standings: Vec::new(),
            measured_at: Instant::now(),
            desk: Desk::default(),
            open: Vec::new(),
            has_answers: false,
            looked: false,
            failing: false,
        }
    }

    /// Runs until stopped; then the siblings are told at once.
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
            let exchanged = timeout(BEAT, self.exchange()).await;
            self.note(exchanged.map_err(|_| "the store takes too long".to_owned()));
            self.apply();
            self.answer().await;
        }
        let goodbye = timeout(GOODBYE_WAIT, self.store.remove_word(self.word.instance));
        if !matches!(goodbye.await, Ok(Ok(()))) {
            debug!("the siblings will find out by themselves that this worker has gone");
        }
    }

    /// Asks the conductor for the demands, about once a beat: shorter times would tell of chance.
    async fn measure(&mut self) {
        if self.measured_at.elapsed() < BEAT * 3 / 4 {
            return;
        }
        let (answer, answered) = oneshot::channel();
        if self.orders.try_send(Order::Report(answer)).is_err() {
            return;
        }
        if let Ok(Ok(standings)) = timeout(ANSWER_WAIT, answered).await {
            self.measured_at = Instant::now();
            self.standings = standings;
            for ((_, quota), standing) in self.targets.iter().zip(&self.standings) {
                self.shares.want(quota, standing.demand);
            }
        }
    }

    async fn exchange(&mut self) -> Result<(), StoreError> {
        if !self.looked {
            let words = self.siblings().await?;
            self.shares.look(words, Instant::now());
            self.looked = true;
        }
        let began = Instant::now();
        self.word.beat += 1;
        self.word.parts = self.shares.parts();
        self.word.about["deployments"] = self.deployments();
        self.desk.tell(&mut self.word.about);
        self.store.put_word(&self.word).await?;
        let words = self.siblings().await?;
        self.open = self.desk.hear(&words);
        self.shares.exchanged(&self.word.parts, words, began, Instant::now());
        Ok(())
    }

    /// Gathers the answers for those who ask; the next word tells them.
    async fn answer(&mut self) {
        for (asker, question) in std::mem::take(&mut self.open) {
            let (answer, answered) = oneshot::channel();
            if self.orders.try_send(Order::Explain(question, answer)).is_err() {
                return;
            }
            let Ok(Ok(answer)) = timeout(ANSWER_WAIT, answered).await else { return };
            self.desk.answer(asker, answer);
            self.has_answers = true;
        }
    }

    async fn siblings(&self) -> Result<Vec<Word>, StoreError> {
        let mut words = self.store.words().await?;
        words.retain(|word| word.instance != self.word.instance);
        Ok(words)
    }

    fn deployments(&self) -> serde_json::Value {
        let named = self.targets.iter().zip(&self.standings);
        named
            .map(|((name, quota), standing)| {
                json!({ "name": name, "quota": quota, "standing": standing })
            })
            .collect()
    }

    fn note(&mut self, exchanged: Result<Result<(), StoreError>, String>) {
        let failed = match exchanged {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(why) => Some(why),
        };
        match failed {
            Some(why) => {
                self.shares.failed(Instant::now());
                if !self.failing {
                    warn!(error = why, "can't reach the siblings; this worker's share will shrink");
                }
                self.failing = true;
            }
            None => {
                if self.failing {
                    info!("the siblings are reached again");
                }
                self.failing = false;
            }
        }
    }

    fn apply(&self) {
        let now = Instant::now();
        let fractions: Vec<f64> =
            self.targets.iter().map(|(_, quota)| self.shares.fraction(quota, now)).collect();
        debug!(siblings = self.shares.siblings(), ?fractions, "shares");
        // Where the conductor is behind, it hears of it next time; it admits nothing meanwhile.
        let _ = self.orders.try_send(Order::Use(fractions));
    }
}

/// What people know this machine or container by.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok());
    name.or_else(|| std::env::var("COMPUTERNAME").ok()).unwrap_or_default().trim().to_owned()
}
