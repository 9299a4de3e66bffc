//! Attribute names: OpenTelemetry's semantic conventions for messaging (v1.44) and for generative AI
//! (open-telemetry/semantic-conventions-genai), then our own.

pub(super) const ERROR_TYPE: &str = "error.type";
pub(super) const SERVER_ADDRESS: &str = "server.address";
pub(super) const SERVER_PORT: &str = "server.port";
pub(super) const HTTP_STATUS: &str = "http.response.status_code";

pub(super) const SYSTEM: &str = "messaging.system";
pub(super) const DESTINATION: &str = "messaging.destination.name";
pub(super) const OPERATION_NAME: &str = "messaging.operation.name";
pub(super) const OPERATION_TYPE: &str = "messaging.operation.type";
pub(super) const MESSAGE_ID: &str = "messaging.message.id";
pub(super) const CONVERSATION_ID: &str = "messaging.message.conversation_id";
pub(super) const BATCH_COUNT: &str = "messaging.batch.message_count";
pub(super) const DELIVERY_COUNT: &str = "messaging.servicebus.message.delivery_count";
pub(super) const ENQUEUED_TIME: &str = "messaging.servicebus.message.enqueued_time";
pub(super) const DISPOSITION: &str = "messaging.servicebus.disposition_status";

pub(super) const GEN_AI_OPERATION: &str = "gen_ai.operation.name";
pub(super) const GEN_AI_PROVIDER: &str = "gen_ai.provider.name";
pub(super) const REQUEST_MODEL: &str = "gen_ai.request.model";
pub(super) const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
pub(super) const REQUEST_STREAM: &str = "gen_ai.request.stream";
pub(super) const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(super) const RESPONSE_ID: &str = "gen_ai.response.id";
pub(super) const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
pub(super) const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub(super) const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub(super) const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub(super) const REASONING_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
pub(super) const TOKEN_TYPE: &str = "gen_ai.token.type";
pub(super) const INPUT_MESSAGES: &str = "gen_ai.input.messages";
pub(super) const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
pub(super) const API_TYPE: &str = "openai.api.type";
pub(super) const SERVICE_TIER: &str = "openai.response.service_tier";

pub(super) const BATCH: &str = "promptmill.batch";
pub(super) const DEPLOYMENT: &str = "promptmill.deployment";
pub(super) const ENDING: &str = "promptmill.ending";
pub(super) const ATTEMPT: &str = "promptmill.try";
pub(super) const CHARGE: &str = "promptmill.charge";
pub(super) const FIRST: &str = "promptmill.first";
