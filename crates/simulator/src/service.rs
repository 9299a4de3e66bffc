//! One request from its first byte to its last, in the service's own order: is the key good, can
//! it be understood (400), is there such a deployment (404), then the judge's word (429, a fault,
//! or an answer), carried out after the time it takes.
//!
//! Everything up to the waiting is done in one piece without await and without holding a lock over
//! one. Neighbours: `route` and `request` before it, `judge` and `deployments` beside it; `head`,
//! `reply`, `stream`, `body` and `refusal` word the answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::body::{Receipt, Reply};
use super::books::{Books, locked};
use super::capacity::Denial;
use super::deployment::Deployment;
use super::deployments::Deployments;
use super::faults::{Fault, Pace, mix};
use super::head::{Head, RequestIds};
use super::judge::{Fate, Judge, Judgement};
use super::ledger::{DeploymentWindow, Ledger, Tier};
use super::profile::Setting;
use super::refusal::Refusal;
use super::reply::{Answer, Words};
use super::request::{Api, Ask};
use super::route::{Call, Route};
use super::settings::{BadSettings, Settings};
use super::spec;
use super::stream::Events;

/// Larger bodies are refused. It is above what any request within a context can have.
const LARGEST_BODY: usize = 64 << 20;

/// Longer lists of settings are refused.
const LARGEST_CHANGE: usize = 64 << 10;

/// Names the standard deployment for what a provisioned one can't take.
const SPILLOVER: HeaderName = HeaderName::from_static("x-ms-spillover-deployment");

/// When callers should come back while the service is busy.
const BUSY_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Service {
    settings: Settings,
    region: HeaderValue,
    deployments: Deployments,
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
    pub fn new(settings: Settings, region: HeaderValue) -> Result<Self, BadSettings> {
        let books = Arc::new(Books::new(settings.ledger_samples));
        Ok(Self {
            region,
            deployments: Deployments::new(&settings)?,
            judge: Judge::new(settings.clone(), books.clone()),
            books,
            started: Instant::now(),
            ids: RequestIds::new(unix_time().as_nanos() as u64),
            settings,
        })
    }

    /// Makes the changes of the schedule when they are due.
    pub async fn keep_schedule(&self) {
        let mut changes: Vec<_> = self.settings.changes.iter().collect();
        changes.sort_by_key(|change| change.after);
        for change in changes {
            wait(change.after.saturating_sub(self.started.elapsed())).await;
            if let Err(error) = self.change(change.deployment.as_deref(), &change.settings) {
                tracing::warn!(%error, "a scheduled change does not fit what was changed before");
            }
        }
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
            Route::Deployments => head.json(json_body(&self.deployments.listed(self.now()))),
            Route::Change(name) => return self.change_by(name, head, body).await,
            Route::Nowhere => head.refuse(Refusal::no_such_path()),
        };
        End::Answer(response)
    }

    pub fn ledger(&self) -> Ledger {
        let mut ledger = self.books.totals();
        for (name, deployment) in self.deployments.sorted() {
            let capacity = locked(&deployment.capacity);
            ledger.windows.extend(capacity.windows().map(|window| DeploymentWindow {
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
        for (_, deployment) in self.deployments.sorted() {
            locked(&deployment.capacity).forget_windows();
        }
    }

    pub fn change(&self, name: Option<&str>, settings: &[Setting]) -> Result<(), BadSettings> {
        self.deployments.change(self.now(), name, settings)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A change that somebody posted.
    async fn change_by(&self, name: Option<&str>, head: Head, body: Incoming) -> End {
        let body = match Limited::new(body, LARGEST_CHANGE).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return End::Answer(head.refuse(Refusal::body_too_large()));
            }
            Err(_) => return End::Gone,
        };
        let done = spec::settings(&String::from_utf8_lossy(&body))
            .map_err(|error| error.to_string())
            .and_then(|settings| self.change(name, &settings).map_err(|error| error.to_string()));
        End::Answer(match done {
            Ok(()) => head.json(json_body(&self.deployments.listed(self.now()))),
            Err(error) => head.refuse(Refusal::invalid(&error, None)),
        })
    }

    async fn call(&self, call: Call<'_>, head: Head, asked: &HeaderMap, body: Incoming) -> End {
        let decision = if self.has_key(asked) {
            match Limited::new(body, LARGEST_BODY).collect().await {
                Ok(body) => self.decide(call, head, asked, &body.to_bytes()),
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

    fn decide(&self, call: Call<'_>, mut head: Head, asked: &HeaderMap, body: &[u8]) -> Decision {
        let mut ask = match Ask::parse(call.api, body) {
            Ok(ask) => ask,
            Err(refusal) => return self.reject(head, refusal),
        };
        let name = call.deployment.or(ask.model.as_deref()).unwrap_or_default();
        let Some(deployment) = self.deployments.find(self.now(), name) else {
            return self.reject(head, Refusal::deployment_not_found());
        };
        let tokens = ask.count_tokens(|text| deployment.count_tokens(text));
        ask.form = self.judge.form(&ask, |text| deployment.count_tokens(text));
        if let Err(refusal) = self.can_pass(&ask, &deployment, tokens) {
            self.set_deployment(&mut head, &deployment, ask.api);
            return self.reject(head, refusal);
        }
        let standard = self.spillover(asked, &deployment);
        let standard = standard.as_deref();
        let judgement = self.judge.judge(self.now(), &ask, tokens, &deployment, standard);
        self.set_deployment(&mut head, judgement.served, ask.api);
        if let Some(status) = judgement.spilled {
            head.set_spilled(&deployment.name, status);
        }
        self.carry_out(&judgement, call, head, &ask)
    }

    /// The standard deployment that a call to a provisioned one names for when that is full.
    fn spillover(&self, asked: &HeaderMap, deployment: &Deployment) -> Option<Arc<Deployment>> {
        let name = asked.get(SPILLOVER)?.to_str().ok()?;
        let is_provisioned = locked(&deployment.capacity).profile().ptu.is_some();
        if is_provisioned { self.deployments.find(self.now(), name) } else { None }
    }

    /// Whether the request could pass on a day without faults and with all of the quota.
    fn can_pass(&self, ask: &Ask<'_>, model: &Deployment, tokens: u32) -> Result<(), Refusal> {
        if let Some(param) = ask.not_for_reasoning.filter(|_| model.reasons) {
            return Err(Refusal::unsupported_parameter(param));
        }
        if ask.flex == Some(true) && locked(&model.capacity).profile().flex.is_none() {
            return Err(Refusal::no_flex_tier());
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
        judgement: &Judgement<'_>,
        call: Call<'_>,
        head: Head,
        ask: &Ask<'_>,
    ) -> Decision {
        let Judgement { fate, usage, output, pace, tier, served, .. } = judgement;
        let answer = Answer {
            api: ask.api,
            id: mix(ask.key ^ self.settings.seed),
            created: unix_time().as_secs(),
            model: &served.version,
            filters: call.azure,
            usage: *usage,
            choices: ask.choices,
            service_tier: service_tier(ask, *tier),
            cut_short: output.cut_short,
            words: Words {
                start: ask.key % 1_024,
                count: output.words.into(),
                form: ask.form.as_ref().map(|form| (form, !output.cut_short)),
            },
            embedding: ask.embedding.as_ref(),
        };
        match fate {
            Fate::Refused(denial) => Decision::at_once(head.refuse(refused(*denial))),
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

    fn set_deployment(&self, head: &mut Head, deployment: &Deployment, api: Api) {
        head.set_deployment(&deployment.name);
        let reading = locked(&deployment.capacity).reading(self.now());
        if self.settings.odd_rate_headers && api == Api::Responses {
            return head.set_odd_standing();
        }
        head.set_reading(&reading);
    }

    fn models(&self) -> serde_json::Value {
        let model =
            |(name, _): &(_, _)| json!({"id": name, "object": "model", "owned_by": "simulator"});
        let models: Vec<_> = self.deployments.sorted().iter().map(model).collect();
        json!({"object": "list", "data": models})
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

fn refused(denial: Denial) -> Refusal {
    match denial {
        Denial::Tokens { retry_after } => Refusal::tokens_full(retry_after),
        Denial::Requests { retry_after } => Refusal::requests_full(retry_after),
        Denial::Utilization { retry_after } => Refusal::utilization_full(retry_after),
        Denial::NoFlexRoom => Refusal::no_flex_room(),
    }
}

/// The answer's `service_tier`, in JSON.
fn service_tier(ask: &Ask<'_>, tier: Tier) -> &'static str {
    match (ask.flex, tier) {
        (None, _) => "null",
        (_, Tier::Flex) => r#""flex""#,
        (_, Tier::Standard | Tier::Provisioned) => r#""default""#,
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
