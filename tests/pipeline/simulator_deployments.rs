//! Deployments that differ: provisioned ones, the flex tier, other callers, outages, and changes
//! while the simulator runs.

#![expect(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::process::{Command, Stdio};
use std::time::Duration;

use promptmill::simulator::{
    self, DutyCycle, ProfileSpec, SimulatedLatency, Simulator, SimulatorSettings,
};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

const SECOND: Duration = Duration::from_secs(1);

/// A simulator and somebody who calls it.
struct Host {
    sim: Simulator,
    client: Client,
}

async fn start(settings: SimulatorSettings) -> Host {
    let sim = simulator::start(([127, 0, 0, 1], 0).into(), settings).await.unwrap();
    Host { sim, client: promptmill::http_client::builder().no_proxy().build().unwrap() }
}

/// Settings with deployments as the command line takes them.
fn with(deployments: &[&str]) -> SimulatorSettings {
    let overrides = deployments.iter().map(|text| {
        let ProfileSpec { deployment, settings } = text.parse().unwrap();
        (deployment.unwrap(), settings)
    });
    SimulatorSettings { overrides: overrides.collect(), ..SimulatorSettings::default() }
}

impl Host {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.sim.addr())
    }

    /// Calls a deployment, with a spillover deployment if there is one.
    async fn try_ask(&self, body: &Value, spill: Option<&str>) -> reqwest::Result<Response> {
        let request = self.client.post(self.url("/openai/v1/chat/completions"));
        let request = match spill {
            Some(name) => request.header("x-ms-spillover-deployment", name),
            None => request,
        };
        request.body(body.to_string()).send().await
    }

    async fn ask(&self, deployment: &str) -> Response {
        self.try_ask(&chat(deployment, 20), None).await.unwrap()
    }

    async fn change(&self, path: &str, settings: &str) -> (u16, Value) {
        let request = self.client.post(self.url(path)).body(settings.to_owned());
        let response = request.send().await.unwrap();
        (response.status().as_u16(), json_of(response).await)
    }
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// Eight tokens of prompt.
fn chat(deployment: &str, max_tokens: u32) -> Value {
    let messages = [json!({"role": "user", "content": "hello"})];
    json!({"model": deployment, "messages": messages, "max_tokens": max_tokens})
}

/// Some two thousand tokens of prompt, which no correction takes back.
fn long_chat(deployment: &str) -> Value {
    let mut body = chat(deployment, 20);
    body["messages"][0]["content"] = "word ".repeat(2_000).into();
    body
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn each_deployment_has_its_own_settings_and_the_rest_from_the_common_ones() {
    let settings = SimulatorSettings {
        tpm: Some(9_000),
        deployments: vec!["plain".to_owned()],
        ..with(&["small,tpm=28,rate-headers=off", "broken,rate-503=1"])
    };
    let host = start(settings).await;
    let plain = host.ask("plain").await;
    assert_eq!(header(&plain, "x-ratelimit-limit-tokens"), Some("9000"));
    let small = host.ask("small").await;
    assert_eq!((small.status().as_u16(), header(&small, "x-ratelimit-limit-tokens")), (200, None));
    let full = host.ask("small").await;
    assert_eq!(full.status(), 429);
    assert!(header(&full, "retry-after-ms").is_some(), "a refusal still says when to come back");
    assert_eq!(host.ask("broken").await.status(), 503);
    assert_eq!(host.ask("gpt-4o").await.status(), 404, "there are only those that were named");
}

#[tokio::test]
async fn a_provisioned_deployment_tells_its_utilisation_and_when_it_is_below_100_percent() {
    // 1,000 tokens drain in a second, and 1,000 are 100 %.
    let host = start(SimulatorSettings { window: SECOND, ..with(&["ptu,ptu=60000"]) }).await;
    assert_eq!(host.try_ask(&long_chat("ptu"), None).await.unwrap().status(), 200);
    let refused = host.ask("ptu").await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = header(&refused, "retry-after-ms").unwrap().parse().unwrap();
    assert!((1..=1_100).contains(&wait), "a thousand tokens drain in a second, not {wait} ms");
    let utilization = header(&refused, "azure-openai-deployment-utilization").unwrap();
    let percent: f64 = utilization.strip_suffix('%').unwrap().parse().unwrap();
    assert!((50.0..=210.0).contains(&percent), "{utilization}");
    assert_eq!(header(&refused, "x-ratelimit-limit-tokens"), None);
    assert!(json_of(refused).await["error"]["message"].as_str().unwrap().contains("throughput"));

    tokio::time::sleep(Duration::from_millis(wait)).await;
    assert_eq!(host.ask("ptu").await.status(), 200, "it came back when it was told to");
    let ledger = host.sim.ledger();
    assert_eq!((ledger.refused.by_utilization, ledger.tiers.provisioned.requests), (1, 2));
    assert_eq!(ledger.tiers.provisioned, ledger.billed);
}

#[tokio::test]
async fn what_does_not_fit_a_provisioned_deployment_spills_onto_the_one_that_is_named() {
    let host = start(with(&["ptu,ptu=60", "payg,tpm=28"])).await;
    assert_eq!(host.try_ask(&long_chat("ptu"), None).await.unwrap().status(), 200);
    let spilled = host.try_ask(&chat("ptu", 20), Some("payg")).await.unwrap();
    assert_eq!(spilled.status(), 200);
    assert_eq!(header(&spilled, "x-ms-spillover-from-deployment"), Some("ptu"));
    assert_eq!(header(&spilled, "x-ms-deployment-name"), Some("payg"));
    assert_eq!(header(&spilled, "x-ms-spillover-error"), Some("429"));
    assert_eq!(header(&spilled, "x-ratelimit-remaining-tokens"), Some("0"));

    let full = host.try_ask(&chat("ptu", 20), Some("payg")).await.unwrap();
    assert_eq!(full.status(), 429, "the standard deployment's own answer");
    assert_eq!(header(&full, "x-ms-spillover-from-deployment"), Some("ptu"));
    let direct = host.try_ask(&chat("ptu", 20), Some("unknown")).await.unwrap();
    assert_eq!(direct.status(), 429);
    assert_eq!(header(&direct, "x-ms-spillover-from-deployment"), None);

    let ledger = host.sim.ledger();
    assert_eq!((ledger.requests, ledger.spilled), (4, 2));
    assert_eq!((ledger.refused.by_tokens, ledger.refused.by_utilization), (1, 1));
    assert_eq!((ledger.tiers.standard.requests, ledger.tiers.provisioned.requests), (1, 1));
}

#[tokio::test]
async fn flex_calls_need_room_and_are_told_what_they_were_billed_as() {
    let host = start(with(&["flexible,flex=on", "full,flex=1ms/24h", "rigid"])).await;
    let flex = |deployment: &str| {
        let mut body = chat(deployment, 20);
        body["service_tier"] = "flex".into();
        body
    };
    let answer = json_of(host.try_ask(&flex("flexible"), None).await.unwrap()).await;
    assert_eq!(answer["service_tier"], "flex");
    let mut default = flex("flexible");
    default["service_tier"] = "default".into();
    let answer = json_of(host.try_ask(&default, None).await.unwrap()).await;
    assert_eq!(answer["service_tier"], "default");
    let answer = json_of(host.ask("rigid").await).await;
    assert_eq!(answer["service_tier"], Value::Null, "who does not ask is told nothing");

    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(host.try_ask(&flex("full"), None).await.unwrap().status(), 429);
    assert_eq!(host.ask("full").await.status(), 200, "the standard tier has room");
    let rigid = host.try_ask(&flex("rigid"), None).await.unwrap();
    assert_eq!(rigid.status(), 400);
    assert_eq!(json_of(rigid).await["error"]["param"], "service_tier");

    let ledger = host.sim.ledger();
    assert_eq!((ledger.tiers.flex.requests, ledger.tiers.standard.requests), (1, 3));
    assert_eq!(ledger.refused.by_flex, 1);
    assert_eq!(ledger.billed.requests, 4, "what had no room is not billed");
}

#[tokio::test]
async fn other_callers_take_their_part_of_the_quota() {
    let overrides = with(&["shared,tpm=600000,other-tpm=300000"]).overrides;
    let host =
        start(SimulatorSettings { overrides, window: SECOND, ..SimulatorSettings::default() })
            .await;
    let body = chat("shared", 1_000);
    while host.sim.ledger().windows.len() < 3 {
        host.try_ask(&body, None).await.unwrap();
    }
    let windows = host.sim.ledger().windows;
    let whole = &windows[1].window;
    assert!(whole.charged + whole.others <= 10_000, "{whole:?}");
    assert!((1..=5_000).contains(&whole.others), "{whole:?}");
    assert!(whole.charged > 0, "{whole:?}");
}

#[tokio::test]
async fn what_is_counted_when_it_is_used_shows_in_the_headers_of_the_answer() {
    let host = start(with(&[
        "old,tpm=1000,meter=first,rate-headers=classic",
        "used,tpm=1000,counts=billed",
        "made-good,tpm=1000,counts=corrected",
    ]))
    .await;
    let told = |response: &Response, name: &str| {
        header(response, &format!("x-ratelimit-{name}-tokens")).map(str::to_owned)
    };
    let old = host.try_ask(&chat("old", 500), None).await.unwrap();
    assert_eq!(told(&old, "remaining").as_deref(), Some("492"), "8 tokens of prompt and the most");
    assert_eq!((told(&old, "limit").as_deref(), told(&old, "reset")), (Some("1000"), None));
    for name in ["used", "made-good"] {
        let answer = host.try_ask(&chat(name, 500), None).await.unwrap();
        let left: u64 = told(&answer, "remaining").unwrap().parse().unwrap();
        let used = json_of(answer).await["usage"]["total_tokens"].as_u64().unwrap();
        assert_eq!(left, 1_000 - used, "{name}");
    }
}

#[tokio::test]
async fn a_schedule_changes_the_quota_and_the_headers_tell() {
    let changes = ["0s:a,tpm=30000", "60s:a,tpm=60000"].map(|text| text.parse().unwrap());
    let settings =
        SimulatorSettings { changes: changes.into(), ..with(&["a,tpm=60000", "b,tpm=60000"]) };
    let host = start(settings).await;
    let limit = async |name| {
        let response = host.ask(name).await;
        header(&response, "x-ratelimit-limit-tokens").unwrap().to_owned()
    };
    while limit("a").await != "30000" {
        tokio::task::yield_now().await;
    }
    assert_eq!(limit("b").await, "60000", "only the one that was named");
}

#[tokio::test]
async fn deployments_are_changed_and_listed_while_they_run() {
    let host = start(with(&["east,tpm=28", "ptu,ptu=6000"])).await;
    assert_eq!(host.ask("east").await.status(), 200);
    assert_eq!(host.ask("east").await.status(), 429);
    let (status, listed) = host.change("/deployments/east", "tpm=100,latency-ms=5").await;
    assert_eq!((status, &listed["deployments"][0]["name"]), (200, &json!("east")));
    let settings = listed["deployments"][0]["settings"].as_str().unwrap();
    assert!(settings.starts_with("tpm=100,rpm=none,latency-ms=5,"), "{settings}");
    assert_eq!(listed["deployments"][1]["utilization"], 0.0);
    assert_eq!(host.ask("east").await.status(), 200);

    for (path, settings, part) in [
        ("/deployments/east", "tpm=soon", "tpm must be a whole number"),
        ("/deployments/east", "rate-500=0.9,rate-503=0.9", "add up to 1"),
        ("/deployments/west", "tpm=1", "no deployment 'west'"),
        ("/deployments", "flex=on", "no flex tier"),
    ] {
        let (status, error) = host.change(path, settings).await;
        assert_eq!(status, 400, "{path} {settings}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
    let all = json_of(host.client.get(host.url("/deployments")).send().await.unwrap()).await;
    assert_eq!(all["deployments"][0], listed["deployments"][0], "what was refused changed nothing");
}

#[tokio::test]
async fn a_deployment_goes_down_for_a_while_and_the_others_stay_up() {
    let host = start(with(&["east", "west"])).await;
    for (down, status) in [("500", Some(500)), ("503", Some(503)), ("reset", None)] {
        host.change("/deployments/east", &format!("down={down}")).await;
        let answer = host.try_ask(&chat("east", 20), None).await;
        assert_eq!(answer.ok().map(|answer| answer.status().as_u16()), status, "{down}");
        assert_eq!(host.ask("west").await.status(), 200);
    }
    host.change("/deployments/east", "down=503:100ms").await;
    while host.ask("east").await.status() != 200 {
        tokio::task::yield_now().await;
    }
    let ledger = host.sim.ledger();
    assert_eq!((ledger.faults.internal, ledger.faults.reset_before), (1, 1));
    assert_eq!(ledger.billed.requests, 4, "nothing is billed by what is down");
}

#[tokio::test]
async fn a_library_user_changes_it_by_values() {
    use simulator::{OutageKind, ProfileSetting};
    let host = start(SimulatorSettings::default()).await;
    let latency = SimulatedLatency { base_ms: 1.0, ..SimulatedLatency::default() };
    let flex = Some(DutyCycle { on: SECOND, period: SECOND });
    host.sim.change(None, &[ProfileSetting::Latency(latency), ProfileSetting::Flex(flex)]).unwrap();
    host.sim
        .change(Some("b"), &[ProfileSetting::Down(Some((OutageKind::Unavailable, None)))])
        .unwrap();
    assert_eq!(host.ask("a").await.status(), 200);
    assert_eq!(host.ask("b").await.status(), 503);
    assert!(host.sim.change(Some("no name"), &[]).is_err());
}

#[test]
fn the_accounting_runs_in_simulated_time_without_a_socket() {
    use simulator::ForeignTraffic;
    use simulator::quota::ServiceQuota;
    use simulator::quota_status::{QuotaLimits, QuotaVerdict};
    let minute = 60 * SECOND;
    let limits = QuotaLimits { tpm: Some(60_000), rpm: None };
    let mut quota = ServiceQuota::new(limits, minute, SECOND);
    quota.set_foreign_traffic(
        Duration::ZERO,
        Some(ForeignTraffic { tpm: 6_000, bursts: DutyCycle::ALWAYS }),
    );
    let (mut now, mut halved) = (Duration::ZERO, false);
    while now < 5 * minute {
        if now >= 2 * minute && !halved {
            quota.set_limits(now, QuotaLimits { tpm: Some(30_000), rpm: None });
            halved = true;
        }
        now += match quota.admit(now, 100) {
            QuotaVerdict::Admitted => SECOND / 50,
            QuotaVerdict::TokensFull { retry_after }
            | QuotaVerdict::GatewayFull { retry_after }
            | QuotaVerdict::RequestsFull { retry_after } => retry_after,
        };
    }
    assert_eq!(quota.status(now).limits.tpm, Some(30_000));
    let windows: Vec<_> = quota.windows().collect();
    assert_eq!(windows.len(), 5);
    for (window, quota) in windows.iter().zip([60_000, 60_000, 30_000, 30_000, 30_000]) {
        assert_eq!(window.quota, Some(quota));
        assert!(window.charged + window.others <= quota, "{window:?}");
        assert!(window.charged + window.others > quota - 100, "{window:?}");
        assert!(window.others > 0, "{window:?}");
    }
}

/// The command with a schedule and deployments of its own, as another process.
#[tokio::test]
async fn the_command_line_says_all_of_it() {
    let mut simulate = tokio::process::Command::new(env!("CARGO_BIN_EXE_promptmill"));
    let args = "simulate --port 0 --tpm 9000 --no-rate-headers --deployment east,latency-ms=1 \
                --deployment ptu,ptu=6000,rate-headers=on --change 0s:east,rate-500=1";
    simulate.args(args.split_whitespace()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = simulate.spawn().unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).await.unwrap();
    let client = promptmill::http_client::builder().no_proxy().build().unwrap();
    let ask = async |name| {
        let request = client.post(format!("{}/v1/chat/completions", url.trim()));
        request.body(chat(name, 20).to_string()).send().await.unwrap()
    };
    assert!(header(&ask("ptu").await, "azure-openai-deployment-utilization").is_some());
    loop {
        let east = ask("east").await;
        assert_eq!(header(&east, "x-ratelimit-limit-tokens"), None);
        if east.status() == 500 {
            break;
        }
    }
    for (args, part) in [
        (["--deployment", "tpm=1"], "begins with a name"),
        (["--deployment", "east,tpn=1"], "'tpn' is no setting"),
        (["--change", "east,tpm=1"], "a time and a colon"),
    ] {
        let mut simulate = tokio::process::Command::new(env!("CARGO_BIN_EXE_promptmill"));
        let output = simulate.args(["simulate", "--port", "0"]).args(args).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(part), "{said}");
    }
}

/// OpenAI's own Python client waits as a provisioned deployment tells it, and reads what tier it was
/// billed as. It needs an interpreter that has the package `openai`, named by
/// `PROMPTMILL_PEER_PYTHON`, and says so where there is none.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "a test that did not run says so")]
async fn the_openai_sdk_gets_along_with_provisioned_and_flex_deployments() {
    let Ok(python) = std::env::var("PROMPTMILL_PEER_PYTHON") else {
        eprintln!("not run: PROMPTMILL_PEER_PYTHON is not set");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/openai_sdk_tiers.py");
    // 1,000 tokens drain in a second, and 1,000 are 100 %.
    let window = SECOND;
    let deployments = ["ptu,ptu=60000", "payg", "flexible,flex=on", "full,flex=1ms/24h", "rigid"];
    let host = start(SimulatorSettings { window, ..with(&deployments) }).await;
    let mut command = Command::new(&python);
    command.arg(script).arg(host.url(""));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let ledger = host.sim.ledger();
    assert!(ledger.refused.by_utilization >= 2, "one that was retried, and one that was not");
    assert_eq!(ledger.spilled, 1);
}
