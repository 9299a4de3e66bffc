//! Texts of the page, in each of its languages.

use std::str::FromStr;

use serde::Serialize;

use domain::outcome::OutcomeStatus;
use store::BatchState;

use super::BalanceFault;

/// Language of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReportLanguage {
    #[default]
    English,
    Japanese,
}

/// Name of a language that the page does not support.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is none of en, ja")]
pub struct UnknownLanguage(String);

impl FromStr for ReportLanguage {
    type Err = UnknownLanguage;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "en" => Ok(Self::English),
            "ja" => Ok(Self::Japanese),
            _ => Err(UnknownLanguage(name.to_owned())),
        }
    }
}

/// All texts of the page, besides figures.
#[derive(Serialize)]
pub(super) struct PageTexts {
    pub(super) code: &'static str,
    pub(super) batch: &'static str,
    pub(super) counted: &'static str,
    pub(super) created: &'static str,
    pub(super) first_ended: &'static str,
    pub(super) last_ended: &'static str,
    pub(super) balance: &'static str,
    pub(super) balances: &'static str,
    pub(super) does_not_balance: &'static str,
    pub(super) went_in: &'static str,
    pub(super) pending: &'static str,
    pub(super) ended: &'static str,
    pub(super) endings: [&'static str; 5],
    pub(super) jobs: &'static str,
    pub(super) tokens_and_cost: &'static str,
    pub(super) deployment: &'static str,
    pub(super) none_answered: &'static str,
    pub(super) model: &'static str,
    pub(super) tier: &'static str,
    pub(super) calls: &'static str,
    pub(super) prompt: &'static str,
    pub(super) cached: &'static str,
    pub(super) completion: &'static str,
    pub(super) reasoning: &'static str,
    pub(super) cost: &'static str,
    pub(super) unknown: &'static str,
    pub(super) total: &'static str,
    pub(super) prices: &'static str,
    pub(super) unpriced: &'static str,
    pub(super) over_time: &'static str,
    pub(super) jobs_per_minute: &'static str,
    pub(super) tokens_per_minute: &'static str,
    pub(super) throttled_over_time: &'static str,
    pub(super) tokens_note: &'static str,
    pub(super) quota: &'static str,
    pub(super) since: &'static str,
    pub(super) seconds: &'static str,
    pub(super) minutes: &'static str,
    pub(super) hours: &'static str,
    pub(super) distributions: &'static str,
    pub(super) latency: &'static str,
    pub(super) milliseconds: &'static str,
    pub(super) prompt_size: &'static str,
    pub(super) answer_size: &'static str,
    pub(super) tokens: &'static str,
    pub(super) mean: &'static str,
    pub(super) least: &'static str,
    pub(super) most: &'static str,
    pub(super) troubles: &'static str,
    pub(super) throttled: &'static str,
    pub(super) jobs_throttled: &'static str,
    pub(super) retries: &'static str,
    pub(super) jobs_retried: &'static str,
    pub(super) withdrawn: &'static str,
    pub(super) calls_a_job: &'static str,
    pub(super) failures: &'static str,
    pub(super) no_failures: &'static str,
    pub(super) ending: &'static str,
    pub(super) cause: &'static str,
    pub(super) examples: &'static str,
    pub(super) deadlines: &'static str,
    pub(super) met: &'static str,
    pub(super) missed: &'static str,
    pub(super) latest_by: &'static str,
    pub(super) no_deadlines: &'static str,
}

const ENGLISH: PageTexts = PageTexts {
    code: "en",
    batch: "Batch",
    counted: "Counted",
    created: "Created",
    first_ended: "First job ended",
    last_ended: "Last job ended",
    balance: "Jobs in and out",
    balances: "It balances: every job that went in has ended or waits in the queue.",
    does_not_balance: "IT DOES NOT BALANCE:",
    went_in: "Went in",
    pending: "Pending",
    ended: "Ended",
    endings: ["Succeeded", "Failed", "Dead", "Cancelled", "Expired"],
    jobs: "Jobs",
    tokens_and_cost: "Tokens and cost",
    deployment: "Deployment",
    none_answered: "(none answered)",
    model: "Model",
    tier: "Tier",
    calls: "Calls",
    prompt: "Prompt",
    cached: "of which cached",
    completion: "Completion",
    reasoning: "of which reasoning",
    cost: "Cost",
    unknown: "unknown",
    total: "Total",
    prices: "Prices of",
    unpriced: "tokens are of models without a known price",
    over_time: "Over time",
    jobs_per_minute: "jobs a minute",
    tokens_per_minute: "tokens a minute",
    throttled_over_time: "429s and retries a minute",
    tokens_note: "Tokens are counted when their job ends; the service counts them when a call \
                  begins.",
    quota: "quota (as known when this was counted)",
    since: "since",
    seconds: "seconds",
    minutes: "minutes",
    hours: "hours",
    distributions: "Distributions",
    latency: "Latency of the last call of each job",
    milliseconds: "milliseconds",
    prompt_size: "Prompt tokens of answered jobs",
    answer_size: "Completion tokens of answered jobs",
    tokens: "tokens",
    mean: "mean",
    least: "least",
    most: "most",
    troubles: "Throttling and retries",
    throttled: "Throttled calls (429)",
    jobs_throttled: "Jobs throttled at least once",
    retries: "Retried calls",
    jobs_retried: "Retried jobs",
    withdrawn: "Dead outcomes of resubmitted jobs",
    calls_a_job: "Calls per job",
    failures: "Jobs without an answer",
    no_failures: "None.",
    ending: "Ending",
    cause: "Cause",
    examples: "Messages",
    deadlines: "Deadlines",
    met: "Met",
    missed: "Missed",
    latest_by: "Largest delay (seconds)",
    no_deadlines: "No ended job had a deadline.",
};

const JAPANESE: PageTexts = PageTexts {
    code: "ja",
    batch: "バッチ",
    counted: "集計日時",
    created: "作成日時",
    first_ended: "最初のジョブの終了",
    last_ended: "最後のジョブの終了",
    balance: "投入と結果",
    balances: "収支は一致しています。投入されたジョブはすべて終了したか、キューで待機中です。",
    does_not_balance: "収支が一致しません：",
    went_in: "投入",
    pending: "未完了",
    ended: "終了",
    endings: ["成功", "失敗", "デッドレター", "取消", "期限切れ"],
    jobs: "ジョブ数",
    tokens_and_cost: "トークンと費用",
    deployment: "デプロイ",
    none_answered: "（応答なし）",
    model: "モデル",
    tier: "層",
    calls: "呼び出し",
    prompt: "プロンプト",
    cached: "うちキャッシュ",
    completion: "出力",
    reasoning: "うち推論",
    cost: "費用",
    unknown: "不明",
    total: "合計",
    prices: "料金表の日付",
    unpriced: "トークンは料金が不明なモデルのものです",
    over_time: "時間推移",
    jobs_per_minute: "ジョブ／分",
    tokens_per_minute: "トークン／分",
    throttled_over_time: "429と再試行／分",
    tokens_note: "トークンはジョブの終了時点で計上しています。サービス側の計上は呼び出しの開始時です。",
    quota: "クォータ（集計時点）",
    since: "起点",
    seconds: "秒",
    minutes: "分",
    hours: "時間",
    distributions: "分布",
    latency: "各ジョブの最後の呼び出しの所要時間",
    milliseconds: "ミリ秒",
    prompt_size: "回答を得たジョブのプロンプトトークン",
    answer_size: "回答を得たジョブの出力トークン",
    tokens: "トークン",
    mean: "平均",
    least: "最小",
    most: "最大",
    troubles: "拒否と再試行",
    throttled: "クォータ不足で拒否された呼び出し（429）",
    jobs_throttled: "429を受けたジョブ",
    retries: "再試行した呼び出し",
    jobs_retried: "再試行したジョブ",
    withdrawn: "デッドレターから再投入された回数",
    calls_a_job: "ジョブあたりの呼び出し回数",
    failures: "回答のないジョブ",
    no_failures: "ありません。",
    ending: "結果",
    cause: "原因",
    examples: "メッセージ",
    deadlines: "期限",
    met: "期限内",
    missed: "期限超過",
    latest_by: "最大の遅れ（秒）",
    no_deadlines: "期限のある終了ジョブはありません。",
};

impl ReportLanguage {
    pub(super) fn texts(self) -> &'static PageTexts {
        match self {
            Self::English => &ENGLISH,
            Self::Japanese => &JAPANESE,
        }
    }
}

impl PageTexts {
    pub(super) fn ending(&self, ending: OutcomeStatus) -> &'static str {
        let place = OutcomeStatus::ALL.iter().position(|known| *known == ending);
        place.map_or("", |place| self.endings[place])
    }

    pub(super) fn state(&self, state: BatchState) -> &'static str {
        if self.code == ENGLISH.code {
            return state.as_str();
        }
        match state {
            BatchState::Enqueuing => "投入中",
            BatchState::Running => "実行中",
            BatchState::Paused => "一時停止",
            BatchState::Cancelled => "取消",
            BatchState::Done => "完了",
        }
    }

    pub(super) fn fault(&self, fault: BalanceFault) -> String {
        if self.code == ENGLISH.code {
            return fault.to_string();
        }
        match fault {
            BalanceFault::MoreThanWentIn { jobs } => {
                format!("投入数より{jobs}件多いジョブが終了しています")
            }
            BalanceFault::InNoPlace { jobs } => format!(
                "{jobs}件のジョブには結果もキューのメッセージもありません。入力を再度投入してください"
            ),
            BalanceFault::OutcomesMissing { outcomes } => {
                format!("記録時に数えた{outcomes}件の結果がストアにありません")
            }
        }
    }
}
