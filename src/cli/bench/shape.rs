//! Sizes of requests and goals for their answers, made of the flags.

use super::flags::{RequestFlags, ShapeFlag};
use bench::Slo;
use bench::sizes::RequestShape;

impl RequestFlags {
    pub(super) fn shape(&self) -> RequestShape {
        let named = match self.shape {
            ShapeFlag::Balanced => RequestShape::BALANCED,
            ShapeFlag::Context => RequestShape::CONTEXT,
            ShapeFlag::Generation => RequestShape::GENERATION,
        };
        RequestShape {
            prompt: self.prompt_tokens.unwrap_or(named.prompt),
            output: self.output_tokens.unwrap_or(named.output),
        }
    }

    pub(super) fn slo(&self) -> Slo {
        Slo { ttft_ms: self.slo_ttft_ms, tbt_ms: self.slo_tbt_ms, e2e_ms: self.slo_e2e_ms }
    }
}
