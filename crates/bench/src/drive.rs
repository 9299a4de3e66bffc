//! Sends requests on schedule or at a fixed concurrency, and collects their samples.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::call::{self, RequestSample, RequestTimes, RetryPolicy};
use super::counts::{BenchStopReason, Slo};
use super::load_shapes::{LoadPhase, LoadShape};
use super::pacer::Pacer;
use super::prompts::PromptGenerator;
use super::tally::{LiveStats, MeasuredSpan, PhaseMeasurement, PhaseTally};
use domain::job::Job;
use domain::mutex::lock;
use model::ModelClient;

/// Finished requests that may wait to be counted.
const SAMPLES_AHEAD: usize = 4096;

/// Configuration of a benchmark.
pub struct Bench {
    pub client: ModelClient,
    pub prompts: Mutex<PromptGenerator>,
    pub retry: RetryPolicy,
    /// Requests of an open loop that may be in flight; more wait, and the wait is in their figures.
    pub max_in_flight: usize,
    /// Service level of a good answer.
    pub slo: Slo,
    /// Share of failed requests (429s are none) in ten seconds above which the run stops.
    pub stop_at_error_rate: f64,
    pub seed: u64,
}

/// State that the tasks of a phase share.
struct PhaseRun {
    bench: Arc<Bench>,
    phase_start: Instant,
    warm_up: Duration,
    until: Option<Duration>,
    count: Option<u64>,
    /// Measured requests that have started.
    measured_started: AtomicU64,
    in_flight: AtomicUsize,
    /// Microseconds that the pacer spent polling the clock in the measured part.
    polling_micros: AtomicU64,
    /// Requests of the measured part that were never started.
    unsent: AtomicU64,
    halt: CancellationToken,
}

/// Runs one phase to its end and calls `live` every second.
pub(super) async fn run_phase(
    bench: &Arc<Bench>,
    phase: &LoadPhase,
    stop: &CancellationToken,
    live: &mut (dyn FnMut(&LiveStats) + Send),
) -> PhaseMeasurement {
    let run = Arc::new(PhaseRun {
        bench: bench.clone(),
        phase_start: Instant::now(),
        warm_up: phase.warm_up,
        until: phase.duration.map(|duration| phase.warm_up + duration),
        count: phase.count,
        measured_started: AtomicU64::new(0),
        in_flight: AtomicUsize::new(0),
        polling_micros: AtomicU64::new(0),
        unsent: AtomicU64::new(0),
        halt: stop.child_token(),
    });
    let (send, samples) = mpsc::channel(SAMPLES_AHEAD);
    let sending = match phase.load.clone() {
        LoadShape::Concurrency(calls) => {
            for _ in 0..calls {
                tokio::spawn(run.clone().closed_loop(send.clone()));
            }
            drop(send);
            None
        }
        load => Some(tokio::spawn(run.clone().open_loop(load, send))),
    };
    let tally = PhaseTally::new(MeasuredSpan { start: run.warm_up, end: run.until }, bench.slo);
    let measured = run.collect_samples(tally, samples, live).await;
    if let Some(sending) = sending
        && sending.await.is_err()
    {
        tracing::error!("the task that sends requests panicked; its message is above");
    }
    let ended = match measured.ended {
        BenchStopReason::Complete if stop.is_cancelled() => BenchStopReason::Interrupted,
        ended => ended,
    };
    PhaseMeasurement { ended, ..measured }
}

impl PhaseRun {
    /// Open loop: starts each request at its time, regardless of those before it.
    async fn open_loop(self: Arc<Self>, load: LoadShape, send: mpsc::Sender<RequestSample>) {
        let room = Arc::new(Semaphore::new(self.bench.max_in_flight));
        let sizes = match &load {
            LoadShape::Replay(arrivals) => arrivals.clone(),
            _ => Arc::default(),
        };
        let mut pacer = Pacer::default();
        let mut starts = load.starts(self.bench.seed).enumerate();
        while let Some((n, intended)) = starts.next().filter(|(_, at)| self.try_start(*at)) {
            let sizes = sizes.get(n).map(|arrival| (arrival.prompt_tokens, arrival.output_tokens));
            let job = self.next_job(sizes);
            tokio::select! {
                () = pacer.wait_until(self.phase_start + intended) => {}
                () = self.halt.cancelled() => break,
            }
            if intended < self.warm_up {
                pacer.polling = Duration::ZERO;
            }
            let place = tokio::select! {
                biased;
                place = room.clone().acquire_owned() => place,
                () = self.halt.cancelled() => break,
                () = self.wait_for_end() => {
                    let rest = starts.take_while(|(_, at)| self.try_start(*at)).count();
                    self.unsent.store(1 + rest as u64, Ordering::Relaxed);
                    break;
                }
            };
            let (run, send) = (self.clone(), send.clone());
            tokio::spawn(async move {
                // Nobody closes the semaphore, so this is a permit, released at the call's end.
                let _place = place;
                run.call(&job, intended, &send).await;
            });
        }
        self.polling_micros.store(micros(pacer.polling), Ordering::Relaxed);
    }

    /// Closed loop: starts the next request when the one before it ends, and, if that was given up
    /// although it should be tried again, when its wait is over: with retries nobody floods a
    /// service that asks for a pause.
    async fn closed_loop(self: Arc<Self>, send: mpsc::Sender<RequestSample>) {
        while !self.halt.is_cancelled() {
            let intended = self.phase_start.elapsed();
            if !self.try_start(intended) {
                break;
            }
            let job = self.next_job(None);
            let wait = self.call(&job, intended, &send).await;
            self.rest(wait).await;
        }
    }

    /// Waits so long, but no longer than the phase lasts.
    async fn rest(&self, wait: Duration) {
        if wait.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.wait_for_end() => {}
            () = self.halt.cancelled() => {}
        }
    }

    /// Returns whether a request meant for this time belongs to the phase; counts it if measured.
    fn try_start(&self, intended: Duration) -> bool {
        if self.until.is_some_and(|until| intended >= until) {
            return false;
        }
        let measured = intended >= self.warm_up;
        match self.count {
            Some(count) if measured => {
                self.measured_started.fetch_add(1, Ordering::Relaxed) < count
            }
            _ => true,
        }
    }

    /// Completes at the end of the measured part.
    async fn wait_for_end(&self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(self.phase_start + until).await,
            None => std::future::pending().await,
        }
    }

    fn next_job(&self, sizes: Option<(u32, u32)>) -> Job {
        lock(&self.bench.prompts).next(sizes)
    }

    /// Makes one request; returns the wait that is left of it if it was given up.
    async fn call(
        &self,
        job: &Job,
        intended: Duration,
        send: &mpsc::Sender<RequestSample>,
    ) -> Duration {
        let times = RequestTimes { phase_start: self.phase_start, intended, until: self.until };
        let Bench { client, retry, .. } = self.bench.as_ref();
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let (sample, wait) = call::send_with_retries(client, job, *retry, times, &self.halt).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        // The collector stays until all senders are gone.
        let _ = send.send(sample).await;
        wait
    }

    /// Collects samples until no task can send any more.
    async fn collect_samples(
        &self,
        mut tally: PhaseTally,
        mut samples: mpsc::Receiver<RequestSample>,
        live: &mut (dyn FnMut(&LiveStats) + Send),
    ) -> PhaseMeasurement {
        let mut ended = BenchStopReason::Complete;
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        seconds.tick().await;
        let measured_from = tokio::time::sleep_until(self.phase_start + self.warm_up);
        let measured_to = self.wait_for_end();
        tokio::pin!(measured_from, measured_to);
        let (mut before, mut after) = (None, None);
        loop {
            tokio::select! {
                sample = samples.recv() => {
                    let Some(sample) = sample else { break };
                    if let Some(why) = tally.add(&sample, self.bench.stop_at_error_rate)
                        && ended == BenchStopReason::Complete
                    {
                        ended = why;
                        self.halt.cancel();
                    }
                }
                _ = seconds.tick() => {
                    let in_flight = self.in_flight.load(Ordering::Relaxed);
                    live(&tally.close_second(self.phase_start.elapsed(), in_flight));
                }
                () = &mut measured_from, if before.is_none() => before = Some(processor_time()),
                () = &mut measured_to, if after.is_none() => after = Some(processor_time()),
            }
        }
        let spent = after.unwrap_or_else(processor_time).saturating_sub(before.unwrap_or_default());
        let polling = Duration::from_micros(self.polling_micros.load(Ordering::Relaxed));
        tally.counts.unsent = self.unsent.load(Ordering::Relaxed);
        tally.close(self.phase_start.elapsed(), spent.saturating_sub(polling));
        PhaseMeasurement { tally, ended }
    }
}

/// Returns the processor time of this process so far.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
