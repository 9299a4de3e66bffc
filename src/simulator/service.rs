//! One request from its first byte to its last, in the service's own order: is the key good, can
//! it be understood (400), is there such a deployment (404), then the judge's word (429, a fault,
//! or an answer), carried out after the time it takes.
//!
//! Everything up to the waiting is done in one piece without await and without holding a lock over
//! one. Neighbours: `route` and `request` before it, `judge` beside it; `head`, `reply`, `stream`,
//! `body` and `refusal` word the answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::body::{Receipt, Reply};
use super::deployment::Deployment;
use super::faults::{Fault, Pace, mix};
use super::head::{Head, RequestIds};
use super::judge::{Fate, Judge, Judgement};
use super::ledger::{Books, DeploymentWindow, Ledger, locked};
use super::quota::{Limits, Quota, Verdict};
use super::refusal::Refusal;
use super::reply::{Answer, Words};
use super::request::{Api, Ask};
use super::route::{Call, Route};
use super::settings::Settings;
use super::stream::Events;

/// Larger bodies are refused. It is above what any request within a context can have.
const LARGEST_BODY: usize = 64 << 20;

/// Deployments that are opened for names that nobody told of before.
const MOST_DEPLOYMENTS: usize = 1_000;

/// When callers should come back while the service is busy.
const BUSY_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Service {
    settings: Settings,
    region: HeaderValue,
    limits: Mutex<Limits>,
    deployments: RwLock<HashMap<Box<str>, Arc<Deployment>>>,
    judge: Judge,
    books: Arc<Books>,
    started: Instant,
    ids: RequestIds,
}

/// How a request ends.
pub enum End {
    Answer(Response<Reply>),
    /// The connection is reset.
    Reset,
    /// The caller went away while still sending.
    Gone,
}

/// What was decided, to be carried out after a while.
enum Decision {
    Answer { response: Response<Reply>, after: Duration },
    Reset { after: Duration },
    Hang,
}

impl Service {
    /// Takes settings that were checked.
    pub fn new(settings: Settings, region: HeaderValue) -> Self {
        let books = Arc::new(Books::new(settings.ledger_samples));
        let service = Self {
            region,
            limits: Mutex::new(settings.limits()),
            deployments: RwLock::default(),
            judge: Judge::new(settings.clone(), books.clone()),
            books,
            started: Instant::now(),
            ids: RequestIds::new(unix_time().as_nanos() as u64),
            settings,
        };
        for name in &service.settings.deployments {
            service.open(name);
        }
        service
    }

    pub async fn handle(&self, request: Request<Incoming>) -> End {
        let (parts, body) = request.into_parts();
        let head = Head::new(&parts.headers, &self.region, &self.ids);
        let response = match Route::of(&parts.method, &parts.uri) {
            Route::Call(call) => return self.call(call, head, &parts.headers, body).await,
            Route::Ledger => head.json(json_body(&self.ledger())),
            Route::LedgerPrompts => {
                head.json_lines(Reply::Prompts { books: self.books.clone(), next: 0 })
            }
            Route::LedgerReset => {
                self.reset_ledger();
                head.json(json_body(&self.ledger()))
            }
            Route::Models => head.json(json_body(&self.models())),
            Route::Nowhere => head.refuse(Refusal::no_such_path()),
        };
        End::Answer(response)
    }

    pub fn ledger(&self) -> Ledger {
        let mut ledger = self.books.totals();
        for (name, deployment) in self.all_deployments() {
            let quota = locked(&deployment.quota);
            ledger.windows.extend(quota.windows().map(|window| DeploymentWindow {
                deployment: name.to_string(),
                window: window.clone(),
            }));
        }
        let place = |w: &DeploymentWindow| (w.window.index, w.deployment.clone());
        ledger.windows.sort_by_cached_key(place);
        ledger
    }

    pub fn reset_ledger(&self) {
        self.books.reset();
        for (_, deployment) in self.all_deployments() {
            locked(&deployment.quota).forget_windows();
        }
    }

    pub fn set_limits(&self, limits: Limits) {
        *locked(&self.limits) = limits;
        let now = self.started.elapsed();
        for (_, deployment) in self.all_deployments() {
            locked(&deployment.quota).set_limits(now, limits);
        }
    }

    async fn call(&self, call: Call<'_>, head: Head, asked: &HeaderMap, body: Incoming) -> End {
        let decision = if self.has_key(asked) {
            match Limited::new(body, LARGEST_BODY).collect().await {
                Ok(body) => self.decide(call, head, &body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    self.reject(head, Refusal::body_too_large())
                }
                Err(_) => return End::Gone,
            }
        } else {
            self.reject(head, Refusal::unauthorized())
        };
        match decision {
            Decision::Answer { response, after } => {
                wait(after).await;
                End::Answer(response)
            }
            Decision::Reset { after } => {
                wait(after).await;
                End::Reset
            }
            Decision::Hang => std::future::pending().await,
        }
    }

    fn has_key(&self, asked: &HeaderMap) -> bool {
        let Some(key) = &self.settings.api_key else { return true };
        let key = key.expose_secret();
        let header = |name| asked.get(name).and_then(|value| value.to_str().ok());
        header("api-key") == Some(key)
            || header("authorization").and_then(|v| v.strip_prefix("Bearer ")) == Some(key)
    }

    fn decide(&self, call: Call<'_>, mut head: Head, body: &[u8]) -> Decision {
        let ask = match Ask::parse(call.api, body) {
            Ok(ask) => ask,
            Err(refusal) => return self.reject(head, refusal),
        };
        let name = call.deployment.or(ask.model.as_deref()).unwrap_or_default();
        let Some(deployment) = self.deployment(name) else {
            return self.reject(head, Refusal::deployment_not_found());
        };
        head.set_deployment(&deployment.name);
        let prompt_tokens = ask.count_tokens(|text| deployment.count_tokens(text));
        if let Err(refusal) = self.can_pass(&ask, &deployment, prompt_tokens) {
            self.set_standing(&mut head, &deployment, ask.api);
            return self.reject(head, refusal);
        }
        let judgement = self.judge.judge(self.started.elapsed(), &ask, &deployment, prompt_tokens);
        self.set_standing(&mut head, &deployment, ask.api);
        self.carry_out(&judgement, call, head, &ask, &deployment)
    }

    /// Whether the request could pass on a day without faults and with all of the quota.
    fn can_pass(&self, ask: &Ask<'_>, model: &Deployment, tokens: u32) -> Result<(), Refusal> {
        if let Some(param) = ask.not_for_reasoning.filter(|_| model.reasons) {
            return Err(Refusal::unsupported_parameter(param));
        }
        if ask.says(&self.settings.content_filter_trigger) {
            return Err(Refusal::content_filter());
        }
        let asked = u64::from(tokens) + u64::from(ask.max_output.unwrap_or(0));
        let context = self.settings.max_context;
        let is_too_long = ask.api != Api::Embeddings && asked > u64::from(context);
        if is_too_long || ask.says(&self.settings.context_trigger) {
            let param = if ask.api == Api::Chat { "messages" } else { "input" };
            return Err(Refusal::context_length(param, context, asked.max(u64::from(context) + 1)));
        }
        Ok(())
    }

    fn carry_out(
        &self,
        judgement: &Judgement,
        call: Call<'_>,
        head: Head,
        ask: &Ask<'_>,
        deployment: &Deployment,
    ) -> Decision {
        let Judgement { fate, usage, output, pace } = judgement;
        let answer = Answer {
            api: ask.api,
            id: mix(ask.key ^ self.settings.seed),
            created: unix_time().as_secs(),
            model: &deployment.version,
            filters: call.azure,
            usage: *usage,
            choices: ask.choices,
            cut_short: output.cut_short,
            words: Words { start: ask.key % 1_024, count: output.visible.into() },
            embedding: ask.embedding.as_ref(),
        };
        match fate {
            Fate::Refused(verdict) => Decision::at_once(head.refuse(refused(*verdict))),
            Fate::Struck(fault) => struck(*fault, head, ask, &answer, *pace),
            Fate::Answered => {
                let receipt = Receipt { books: self.books.clone(), key: ask.key };
                if ask.stream {
                    let events = Events::of(&answer, ask.include_usage);
                    let response = head.events(Reply::paced(events, pace.output, receipt));
                    return Decision::Answer { response, after: pace.first_token };
                }
                let body = Reply::Whole { bytes: answer.whole().into(), receipt: Some(receipt) };
                Decision::Answer { response: head.json(body), after: pace.total() }
            }
        }
    }

    /// Counts a request that can never pass, and says so.
    fn reject(&self, head: Head, refusal: Refusal) -> Decision {
        self.books.reject(refusal.code);
        Decision::at_once(head.refuse(refusal))
    }

    fn set_standing(&self, head: &mut Head, deployment: &Deployment, api: Api) {
        if self.settings.odd_rate_headers && api == Api::Responses {
            return head.set_odd_standing();
        }
        head.set_standing(&locked(&deployment.quota).standing(self.started.elapsed()));
    }

    fn deployment(&self, name: &str) -> Option<Arc<Deployment>> {
        let deployments = self.deployments.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(deployment) = deployments.get(name) {
            return Some(deployment.clone());
        }
        let is_room = deployments.len() < MOST_DEPLOYMENTS;
        drop(deployments);
        if self.settings.deployments.is_empty() && is_room { self.open(name) } else { None }
    }

    fn open(&self, name: &str) -> Option<Arc<Deployment>> {
        let Settings { window, request_slice, .. } = self.settings;
        let quota = Quota::new(*locked(&self.limits), window, request_slice);
        let fresh = Deployment::new(name, quota)?;
        let mut all = self.deployments.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have opened it since it was looked for.
        Some(all.entry(name.into()).or_insert_with(|| Arc::new(fresh)).clone())
    }

    fn all_deployments(&self) -> Vec<(Box<str>, Arc<Deployment>)> {
        let all = self.deployments.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, deployment)| (name.clone(), deployment.clone())).collect()
    }

    fn models(&self) -> serde_json::Value {
        let mut names: Vec<_> = self.all_deployments().into_iter().map(|(name, _)| name).collect();
        names.sort();
        let model = |name| json!({"id": name, "object": "model", "owned_by": "simulator"});
        json!({"object": "list", "data": names.iter().map(model).collect::<Vec<_>>()})
    }
}

impl Decision {
    fn at_once(response: Response<Reply>) -> Self {
        Self::Answer { response, after: Duration::ZERO }
    }
}

fn struck(fault: Fault, head: Head, ask: &Ask<'_>, answer: &Answer<'_>, pace: Pace) -> Decision {
    let fail =
        |head: Head, refusal, after| Decision::Answer { response: head.refuse(refusal), after };
    match fault {
        Fault::Busy => fail(head, Refusal::busy(BUSY_FOR), Duration::ZERO),
        Fault::Internal => fail(head, Refusal::internal(), pace.first_token),
        Fault::Unavailable => fail(head, Refusal::unavailable(), pace.first_token),
        Fault::Timeout => fail(head, Refusal::timeout(), pace.total()),
        Fault::ResetBefore => Decision::Reset { after: Duration::ZERO },
        Fault::ResetAfter => Decision::Reset { after: pace.total() },
        Fault::Hang => Decision::Hang,
        Fault::Truncate => {
            let response = if ask.stream {
                head.events(Reply::half_of_events(Events::of(answer, ask.include_usage)))
            } else {
                head.json(Reply::half(answer.whole()))
            };
            Decision::Answer { response, after: pace.total() }
        }
    }
}

fn refused(verdict: Verdict) -> Refusal {
    match verdict {
        Verdict::TokensFull { retry_after } => Refusal::tokens_full(retry_after),
        Verdict::RequestsFull { retry_after } => Refusal::requests_full(retry_after),
        Verdict::Admitted => unreachable!("an admitted request is not refused"),
    }
}

/// No timer at all for no wait: a simulator without latency is to answer as fast as it can.
async fn wait(span: Duration) {
    if !span.is_zero() {
        tokio::time::sleep(span).await;
    }
}

fn json_body(value: &impl Serialize) -> Reply {
    Reply::plain(serde_json::to_vec(value).expect("numbers, strings and lists become JSON"))
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
