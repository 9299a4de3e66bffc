//! Sends requests at their times, or so many at a time, and gathers what became of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::call::{self, Retry, Sample, Times};
use super::pacer::Pacer;
use super::prompts::Prompts;
use super::report::Ended;
use super::shapes::Load;
use super::tally::{Live, Slo, Span, Tally};
use domain::job::Job;
use model::Client;

/// Ended requests that may wait to be counted.
const SAMPLES_AHEAD: usize = 4096;

/// What is benchmarked, and how.
pub struct Bench {
    pub client: Client,
    pub prompts: Mutex<Prompts>,
    pub retry: Retry,
    /// Requests of an open loop that may be in flight; more wait, and the wait is in their figures.
    pub max_in_flight: usize,
    /// What counts as good.
    pub slo: Slo,
    /// The share of failed requests (429s are none) in ten seconds at which it stops.
    pub stop_at_error_rate: f64,
    pub seed: u64,
}

/// One load for one time.
#[derive(Debug, Clone)]
pub struct Phase {
    pub load: Load,
    /// Requests that are meant to start in it are sent and not measured.
    pub warm_up: Duration,
    /// Of the measured part. Without it, `count` or the end of a replay ends the phase.
    pub duration: Option<Duration>,
    /// Measured requests.
    pub count: Option<u64>,
}

/// What a phase came to.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) tally: Tally,
    pub(super) ended: Ended,
}

/// What the tasks of a phase share.
struct Run {
    bench: Arc<Bench>,
    zero: Instant,
    warm_up: Duration,
    until: Option<Duration>,
    count: Option<u64>,
    /// Measured requests that were started.
    counted: AtomicU64,
    in_flight: AtomicUsize,
    /// Microseconds that the pacer spent polling the clock in the measured part.
    polling: AtomicU64,
    /// Requests of the measured part that were never started.
    unsent: AtomicU64,
    halt: CancellationToken,
}

/// Runs one phase to its end. `live` hears of every second.
pub(super) async fn phase(
    bench: &Arc<Bench>,
    phase: &Phase,
    stop: &CancellationToken,
    live: &mut (dyn FnMut(&Live) + Send),
) -> Measured {
    let run = Arc::new(Run {
        bench: bench.clone(),
        zero: Instant::now(),
        warm_up: phase.warm_up,
        until: phase.duration.map(|duration| phase.warm_up + duration),
        count: phase.count,
        counted: AtomicU64::new(0),
        in_flight: AtomicUsize::new(0),
        polling: AtomicU64::new(0),
        unsent: AtomicU64::new(0),
        halt: stop.child_token(),
    });
    let (send, samples) = mpsc::channel(SAMPLES_AHEAD);
    let sending = match phase.load.clone() {
        Load::Concurrency(calls) => {
            for _ in 0..calls {
                tokio::spawn(run.clone().closed(send.clone()));
            }
            drop(send);
            None
        }
        load => Some(tokio::spawn(run.clone().open(load, send))),
    };
    let tally = Tally::new(Span { start: run.warm_up, end: run.until }, bench.slo);
    let measured = run.gather(tally, samples, live).await;
    if let Some(sending) = sending
        && sending.await.is_err()
    {
        tracing::error!("the task that sends requests panicked; its message is above");
    }
    let ended = match measured.ended {
        Ended::Complete if stop.is_cancelled() => Ended::Interrupted,
        ended => ended,
    };
    Measured { ended, ..measured }
}

impl Run {
    /// Starts each request at its time, whatever became of those before it.
    async fn open(self: Arc<Self>, load: Load, send: mpsc::Sender<Sample>) {
        let room = Arc::new(Semaphore::new(self.bench.max_in_flight));
        let sizes = match &load {
            Load::Replay(arrivals) => arrivals.clone(),
            _ => Arc::default(),
        };
        let mut pacer = Pacer::default();
        let mut starts = load.starts(self.bench.seed).enumerate();
        while let Some((n, intended)) = starts.next().filter(|(_, at)| self.may_start(*at)) {
            let sizes = sizes.get(n).map(|arrival| (arrival.prompt_tokens, arrival.output_tokens));
            let job = self.next_job(sizes);
            tokio::select! {
                () = pacer.wait_until(self.zero + intended) => {}
                () = self.halt.cancelled() => break,
            }
            if intended < self.warm_up {
                pacer.polling = Duration::ZERO;
            }
            let place = tokio::select! {
                biased;
                place = room.clone().acquire_owned() => place,
                () = self.halt.cancelled() => break,
                () = self.end() => {
                    let rest = starts.take_while(|(_, at)| self.may_start(*at)).count();
                    self.unsent.store(1 + rest as u64, Ordering::Relaxed);
                    break;
                }
            };
            let (run, send) = (self.clone(), send.clone());
            tokio::spawn(async move {
                // Nobody closes the semaphore, so this is a place, given back at the call's end.
                let _place = place;
                run.call(&job, intended, &send).await;
            });
        }
        self.polling.store(micros(pacer.polling), Ordering::Relaxed);
    }

    /// Starts the next request when the one before it ends.
    async fn closed(self: Arc<Self>, send: mpsc::Sender<Sample>) {
        while !self.halt.is_cancelled() {
            let intended = self.zero.elapsed();
            if !self.may_start(intended) {
                break;
            }
            let job = self.next_job(None);
            self.call(&job, intended, &send).await;
        }
    }

    /// Whether a request that is meant for this time belongs to the phase.
    fn may_start(&self, intended: Duration) -> bool {
        if self.until.is_some_and(|until| intended >= until) {
            return false;
        }
        let measured = intended >= self.warm_up;
        match self.count {
            Some(count) if measured => self.counted.fetch_add(1, Ordering::Relaxed) < count,
            _ => true,
        }
    }

    /// Comes with the end of the measured part.
    async fn end(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(self.zero + until).await,
            None => std::future::pending().await,
        }
    }

    fn next_job(&self, sizes: Option<(u32, u32)>) -> Job {
        self.bench.prompts.lock().unwrap_or_else(PoisonError::into_inner).next(sizes)
    }

    async fn call(&self, job: &Job, intended: Duration, send: &mpsc::Sender<Sample>) {
        let times = Times { zero: self.zero, intended, until: self.until };
        let Bench { client, retry, .. } = self.bench.as_ref();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let sample = call::make(client, job, *retry, times, &self.halt).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        // The gatherer stays until all senders are gone.
        let _ = send.send(sample).await;
    }

    /// Takes in samples until no task can send any more.
    async fn gather(
        &self,
        mut tally: Tally,
        mut samples: mpsc::Receiver<Sample>,
        live: &mut (dyn FnMut(&Live) + Send),
    ) -> Measured {
        let mut ended = Ended::Complete;
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        seconds.tick().await;
        let measured_from = tokio::time::sleep_until(self.zero + self.warm_up);
        let measured_to = self.end();
        tokio::pin!(measured_from, measured_to);
        let (mut before, mut after) = (None, None);
        loop {
            tokio::select! {
                sample = samples.recv() => {
                    let Some(sample) = sample else { break };
                    if let Some(why) = tally.add(&sample, self.bench.stop_at_error_rate)
                        && ended == Ended::Complete
                    {
                        ended = why;
                        self.halt.cancel();
                    }
                }
                _ = seconds.tick() => {
                    let in_flight = self.in_flight.load(Ordering::Relaxed);
                    live(&tally.second(self.zero.elapsed(), in_flight));
                }
                () = &mut measured_from, if before.is_none() => before = Some(processor_time()),
                () = &mut measured_to, if after.is_none() => after = Some(processor_time()),
            }
        }
        let spent = after.unwrap_or_else(processor_time).saturating_sub(before.unwrap_or_default());
        let polling = Duration::from_micros(self.polling.load(Ordering::Relaxed));
        tally.counts.unsent = self.unsent.load(Ordering::Relaxed);
        tally.close(self.zero.elapsed(), spent.saturating_sub(polling));
        Measured { tally, ended }
    }
}

/// The processor time of this process so far.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
