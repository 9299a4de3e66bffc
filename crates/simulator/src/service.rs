//! Request handling in the service's own order: check the key (401), parse the body (400), find
//! the deployment (404), get the judge's verdict (429, a fault, or an answer), and execute it
//! after its latency.
//!
//! Everything between reading the body and the latency runs without an await, so no lock is held
//! over one. Neighbours: `route` and `request` before it, `judge` and `deployments` beside it;
//! `head`, `reply`, `stream`, `body` and `refusal` build the response.

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

use super::audit_ledger::{AuditLedger, locked};
use super::body::{DeliveryReceipt, ReplyBody};
use super::capacity::CapacityDenial;
use super::deployment::SimulatedDeployment;
use super::deployments::DeploymentRegistry;
use super::error::BadSimulatorSettings;
use super::faults::{InjectedFault, SimulatedTiming, mix};
use super::head::{self, RequestIds, ResponseHead};
use super::judge::{JudgedRequest, RequestJudge, RequestVerdict};
use super::ledger_snapshot::{BillingTier, DeploymentWindow, LedgerSnapshot};
use super::profile::ProfileSetting;
use super::rate_report::ReportedEnd;
use super::refusal::HttpRefusal;
use super::reply::{AnswerWords, ApiAnswer};
use super::request::{ApiRequest, SimulatedApi};
use super::route::{ApiCall, RequestRoute};
use super::settings::SimulatorSettings;
use super::spec;
use super::stream::SseEvents;

/// Maximum request body, above any request that fits a context. Larger ones are refused.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Maximum body of a settings change. Larger ones are refused.
const MAX_CHANGE_BYTES: usize = 64 << 10;

/// Request header that names the standard deployment to which a provisioned one may spill.
const SPILLOVER: HeaderName = HeaderName::from_static("x-ms-spillover-deployment");

/// Retry-After while the service is busy.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct SimulatorService {
    settings: SimulatorSettings,
    region: HeaderValue,
    deployments: DeploymentRegistry,
    judge: RequestJudge,
    ledger: Arc<AuditLedger>,
    started: Instant,
    ids: RequestIds,
}

/// End of a request on its connection.
pub enum RequestEnd {
    Answer(Response<ReplyBody>),
    /// The connection is reset.
    Reset,
    /// The caller disconnected while still sending.
    Gone,
}

/// Decided end of a request, to be executed after a delay.
enum PlannedEnd {
    Answer {
        response: Response<ReplyBody>,
        after: Duration,
        /// Deployment whose rate-limit headers are read when the delay is over.
        report_of: Option<Arc<SimulatedDeployment>>,
    },
    Reset {
        after: Duration,
    },
    Hang,
}

impl SimulatorService {
    /// Builds the service from settings that were checked.
    pub fn new(
        settings: SimulatorSettings,
        region: HeaderValue,
    ) -> Result<Self, BadSimulatorSettings> {
        let ledger = Arc::new(AuditLedger::new(settings.ledger_samples));
        Ok(Self {
            region,
            deployments: DeploymentRegistry::new(&settings)?,
            judge: RequestJudge::new(settings.clone(), ledger.clone()),
            ledger,
            started: Instant::now(),
            ids: RequestIds::new(unix_time().as_nanos() as u64),
            settings,
        })
    }

    /// Applies the scheduled changes when they are due.
    pub async fn run_schedule(&self) {
        let mut changes: Vec<_> = self.settings.changes.iter().collect();
        changes.sort_by_key(|change| change.after);
        for change in changes {
            wait(change.after.saturating_sub(self.started.elapsed())).await;
            if let Err(error) = self.change(change.deployment.as_deref(), &change.settings) {
                tracing::warn!(%error, "a scheduled change conflicts with an earlier change");
            }
        }
    }

    pub async fn handle(&self, request: Request<Incoming>) -> RequestEnd {
        let (parts, body) = request.into_parts();
        let head = ResponseHead::new(&parts.headers, &self.region, &self.ids);
        let response = match RequestRoute::of(&parts.method, &parts.uri) {
            RequestRoute::Call(call) => return self.call(call, head, &parts.headers, body).await,
            RequestRoute::Ledger => head.json(json_body(&self.ledger())),
            RequestRoute::LedgerPrompts => {
                head.json_lines(ReplyBody::Prompts { ledger: self.ledger.clone(), next: 0 })
            }
            RequestRoute::LedgerReset => {
                self.reset_ledger();
                head.json(json_body(&self.ledger()))
            }
            RequestRoute::Models => head.json(json_body(&self.models())),
            RequestRoute::Deployments => {
                head.json(json_body(&self.deployments.list_json(self.now())))
            }
            RequestRoute::Change(name) => return self.handle_change(name, head, body).await,
            RequestRoute::NotFound => head.refuse(HttpRefusal::no_such_path()),
        };
        RequestEnd::Answer(response)
    }

    pub fn ledger(&self) -> LedgerSnapshot {
        let mut ledger = self.ledger.totals();
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
        self.ledger.reset();
        for (_, deployment) in self.deployments.sorted() {
            locked(&deployment.capacity).clear_windows();
        }
    }

    pub fn change(
        &self,
        name: Option<&str>,
        settings: &[ProfileSetting],
    ) -> Result<(), BadSimulatorSettings> {
        self.deployments.change(self.now(), name, settings)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Handles a posted settings change.
    async fn handle_change(
        &self,
        name: Option<&str>,
        head: ResponseHead,
        body: Incoming,
    ) -> RequestEnd {
        let body = match Limited::new(body, MAX_CHANGE_BYTES).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return RequestEnd::Answer(head.refuse(HttpRefusal::body_too_large()));
            }
            Err(_) => return RequestEnd::Gone,
        };
        let done = spec::parse_settings(&String::from_utf8_lossy(&body))
            .map_err(|error| error.to_string())
            .and_then(|settings| self.change(name, &settings).map_err(|error| error.to_string()));
        RequestEnd::Answer(match done {
            Ok(()) => head.json(json_body(&self.deployments.list_json(self.now()))),
            Err(error) => head.refuse(HttpRefusal::invalid(&error, None)),
        })
    }

    async fn call(
        &self,
        call: ApiCall<'_>,
        head: ResponseHead,
        request_headers: &HeaderMap,
        body: Incoming,
    ) -> RequestEnd {
        let decision = if self.has_key(request_headers) {
            match Limited::new(body, MAX_BODY_BYTES).collect().await {
                Ok(body) => self.decide(call, head, request_headers, &body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    self.reject(head, HttpRefusal::body_too_large())
                }
                Err(_) => return RequestEnd::Gone,
            }
        } else {
            self.reject(head, HttpRefusal::unauthorized())
        };
        match decision {
            PlannedEnd::Answer { mut response, after, report_of } => {
                wait(after).await;
                if let Some(deployment) = report_of {
                    let report =
                        locked(&deployment.capacity).report(self.now(), ReportedEnd::Success);
                    head::set_capacity_status(response.headers_mut(), &report);
                }
                RequestEnd::Answer(response)
            }
            PlannedEnd::Reset { after } => {
                wait(after).await;
                RequestEnd::Reset
            }
            PlannedEnd::Hang => std::future::pending().await,
        }
    }

    fn has_key(&self, request_headers: &HeaderMap) -> bool {
        let Some(key) = &self.settings.api_key else { return true };
        let key = key.expose_secret();
        let header = |name| request_headers.get(name).and_then(|value| value.to_str().ok());
        header("api-key") == Some(key)
            || header("authorization").and_then(|v| v.strip_prefix("Bearer ")) == Some(key)
    }

    fn decide(
        &self,
        call: ApiCall<'_>,
        mut head: ResponseHead,
        request_headers: &HeaderMap,
        body: &[u8],
    ) -> PlannedEnd {
        let mut request = match ApiRequest::parse(call.api, body) {
            Ok(ask) => ask,
            Err(refusal) => return self.reject(head, refusal),
        };
        let name = call.deployment.or(request.model.as_deref()).unwrap_or_default();
        let Some(deployment) = self.deployments.find(self.now(), name) else {
            return self.reject(head, HttpRefusal::deployment_not_found());
        };
        let tokens = request.count_tokens(|text| deployment.count_tokens(text));
        request.structured_output =
            self.judge.structured_output(&request, |text| deployment.count_tokens(text));
        if let Err(refusal) = self.check_request(&request, &deployment, tokens) {
            self.set_deployment(&mut head, &deployment, request.api, ReportedEnd::Failure);
            return self.reject(head, refusal);
        }
        let standard = self.spillover(request_headers, &deployment);
        let judgement =
            self.judge.judge(self.now(), &request, tokens, &deployment, standard.as_deref());
        let end = reported_end(judgement.verdict);
        let has_headers = self.set_deployment(&mut head, judgement.served_by, request.api, end);
        let served_by = match judgement.spilled_status {
            Some(status) => {
                head.set_spilled(&deployment.name, status);
                standard.as_ref().unwrap_or(&deployment)
            }
            None => &deployment,
        };
        let mut planned = self.execute(&judgement, call, head, &request);
        let is_late = has_headers
            && end == ReportedEnd::Success
            && locked(&served_by.capacity).profile().meter.reports_at_the_end();
        if let PlannedEnd::Answer { report_of, .. } = &mut planned {
            *report_of = is_late.then(|| served_by.clone());
        }
        planned
    }

    /// Returns the standard deployment that a call to a provisioned one names for spillover.
    fn spillover(
        &self,
        request_headers: &HeaderMap,
        deployment: &SimulatedDeployment,
    ) -> Option<Arc<SimulatedDeployment>> {
        let name = request_headers.get(SPILLOVER)?.to_str().ok()?;
        let is_provisioned = locked(&deployment.capacity).profile().ptu.is_some();
        if is_provisioned { self.deployments.find(self.now(), name) } else { None }
    }

    /// Checks that the request could pass without faults and with the whole quota.
    fn check_request(
        &self,
        request: &ApiRequest<'_>,
        model: &SimulatedDeployment,
        tokens: u32,
    ) -> Result<(), HttpRefusal> {
        if let Some(param) = request.not_for_reasoning.filter(|_| model.is_reasoning) {
            return Err(HttpRefusal::unsupported_parameter(param));
        }
        if request.flex == Some(true) && locked(&model.capacity).profile().flex.is_none() {
            return Err(HttpRefusal::no_flex_tier());
        }
        if request.contains(&self.settings.content_filter_trigger) {
            return Err(HttpRefusal::content_filter());
        }
        let requested_tokens = u64::from(tokens) + u64::from(request.max_output.unwrap_or(0));
        let context = self.settings.max_context;
        let is_too_long =
            request.api != SimulatedApi::Embeddings && requested_tokens > u64::from(context);
        if is_too_long || request.contains(&self.settings.context_trigger) {
            let param = if request.api == SimulatedApi::Chat { "messages" } else { "input" };
            return Err(HttpRefusal::context_length(
                param,
                context,
                requested_tokens.max(u64::from(context) + 1),
            ));
        }
        Ok(())
    }

    fn execute(
        &self,
        judgement: &JudgedRequest<'_>,
        call: ApiCall<'_>,
        head: ResponseHead,
        request: &ApiRequest<'_>,
    ) -> PlannedEnd {
        let JudgedRequest { verdict, usage, output, timing, tier, served_by, .. } = judgement;
        let answer = ApiAnswer {
            api: request.api,
            id: mix(request.key ^ self.settings.seed),
            created: unix_time().as_secs(),
            model: &served_by.version,
            filters: call.is_azure,
            usage: *usage,
            choices: request.choices,
            service_tier: service_tier(request, *tier),
            cut_short: output.cut_short,
            words: AnswerWords {
                start: request.key % 1_024,
                count: output.words.into(),
                structured_output: request
                    .structured_output
                    .as_ref()
                    .map(|form| (form, !output.cut_short)),
            },
            embedding: request.embedding.as_ref(),
        };
        match verdict {
            RequestVerdict::Refused(denial) => {
                PlannedEnd::at_once(head.refuse(denial_refusal(*denial)))
            }
            RequestVerdict::Faulted(fault) => faulted_end(*fault, head, request, &answer, *timing),
            RequestVerdict::Answered => {
                let receipt = DeliveryReceipt { ledger: self.ledger.clone(), key: request.key };
                if request.stream {
                    let events = SseEvents::of(&answer, request.include_usage);
                    let response = head.events(ReplyBody::paced(events, timing.output, receipt));
                    return PlannedEnd::answer(response, timing.first_token);
                }
                let body =
                    ReplyBody::Whole { bytes: answer.to_json().into(), receipt: Some(receipt) };
                PlannedEnd::answer(head.json(body), timing.total())
            }
        }
    }

    /// Counts a request that can never pass, and refuses it.
    fn reject(&self, head: ResponseHead, refusal: HttpRefusal) -> PlannedEnd {
        self.ledger.reject(refusal.code);
        PlannedEnd::at_once(head.refuse(refusal))
    }

    /// Sets the deployment's headers; returns true if they report its capacity.
    fn set_deployment(
        &self,
        head: &mut ResponseHead,
        deployment: &SimulatedDeployment,
        api: SimulatedApi,
        end: ReportedEnd,
    ) -> bool {
        head.set_deployment(&deployment.name);
        if self.settings.odd_rate_headers && api == SimulatedApi::Responses {
            head.set_odd_rate_headers();
            return false;
        }
        head.set_capacity_status(&locked(&deployment.capacity).report(self.now(), end));
        true
    }

    fn models(&self) -> serde_json::Value {
        let model =
            |(name, _): &(_, _)| json!({"id": name, "object": "model", "owned_by": "simulator"});
        let models: Vec<_> = self.deployments.sorted().iter().map(model).collect();
        json!({"object": "list", "data": models})
    }
}

impl PlannedEnd {
    fn answer(response: Response<ReplyBody>, after: Duration) -> Self {
        Self::Answer { response, after, report_of: None }
    }

    fn at_once(response: Response<ReplyBody>) -> Self {
        Self::answer(response, Duration::ZERO)
    }
}

fn faulted_end(
    fault: InjectedFault,
    head: ResponseHead,
    request: &ApiRequest<'_>,
    answer: &ApiAnswer<'_>,
    timing: SimulatedTiming,
) -> PlannedEnd {
    let fail = |head: ResponseHead, refusal, after| PlannedEnd::answer(head.refuse(refusal), after);
    match fault {
        InjectedFault::Busy => fail(head, HttpRefusal::busy(BUSY_RETRY_AFTER), Duration::ZERO),
        InjectedFault::Internal => fail(head, HttpRefusal::internal(), timing.first_token),
        InjectedFault::Unavailable => fail(head, HttpRefusal::unavailable(), timing.first_token),
        InjectedFault::Timeout => fail(head, HttpRefusal::timeout(), timing.total()),
        InjectedFault::ResetBefore => PlannedEnd::Reset { after: Duration::ZERO },
        InjectedFault::ResetAfter => PlannedEnd::Reset { after: timing.total() },
        InjectedFault::Hang => PlannedEnd::Hang,
        InjectedFault::Truncate => {
            let response = if request.stream {
                head.events(ReplyBody::half_of_events(SseEvents::of(answer, request.include_usage)))
            } else {
                head.json(ReplyBody::half(answer.to_json()))
            };
            PlannedEnd::answer(response, timing.total())
        }
    }
}

fn reported_end(verdict: RequestVerdict) -> ReportedEnd {
    match verdict {
        RequestVerdict::Answered => ReportedEnd::Success,
        RequestVerdict::Refused(CapacityDenial::Gateway { .. }) => ReportedEnd::ThrottledByGateway,
        RequestVerdict::Refused(_) => ReportedEnd::Throttled,
        RequestVerdict::Faulted(_) => ReportedEnd::Failure,
    }
}

fn denial_refusal(denial: CapacityDenial) -> HttpRefusal {
    match denial {
        CapacityDenial::Tokens { retry_after } => HttpRefusal::tokens_full(retry_after),
        CapacityDenial::Gateway { retry_after } => HttpRefusal::gateway_full(retry_after),
        CapacityDenial::Requests { retry_after } => HttpRefusal::requests_full(retry_after),
        CapacityDenial::Utilization { retry_after } => HttpRefusal::utilization_full(retry_after),
        CapacityDenial::NoFlexRoom => HttpRefusal::no_flex_room(),
    }
}

/// Returns the answer's `service_tier`, in JSON.
fn service_tier(request: &ApiRequest<'_>, tier: BillingTier) -> &'static str {
    match (request.flex, tier) {
        (None, _) => "null",
        (_, BillingTier::Flex) => r#""flex""#,
        (_, BillingTier::Standard | BillingTier::Provisioned) => r#""default""#,
    }
}

/// Sleeps; uses no timer for a zero span, so that a simulator without latency answers at once.
async fn wait(span: Duration) {
    if !span.is_zero() {
        tokio::time::sleep(span).await;
    }
}

fn json_body(value: &impl Serialize) -> ReplyBody {
    ReplyBody::plain(serde_json::to_vec(value).expect("numbers, strings and lists become JSON"))
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
