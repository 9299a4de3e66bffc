//! Request shapes: tokens of a prompt, and tokens that its answer may have.

use std::fmt;
use std::str::FromStr;

use rand::rngs::SmallRng;
use rand::{Rng, RngExt};
use rand_distr::{Distribution, LogNormal, Normal};

/// Longest prompt that is made; models with more context than this do not exist.
const MAX_TOKENS: u32 = 2_000_000;

/// Distribution from which a number of tokens is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SizeDistribution {
    Fixed(u32),
    /// Both ends included.
    Uniform {
        low: u32,
        high: u32,
    },
    Normal {
        mean: f64,
        sd: f64,
    },
    /// `sigma` is the standard deviation of the logarithm.
    LogNormal {
        median: f64,
        sigma: f64,
    },
}

/// Text that describes no token count or distribution.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is no number of tokens: write 500, uniform:100..900, normal:500,100 (mean, standard \
     deviation) or lognormal:500,0.8 (median, sigma)"
)]
pub struct BadSizeDistribution(String);

impl SizeDistribution {
    /// Draws one number, at least 1.
    pub fn draw(self, rng: &mut SmallRng) -> u32 {
        let real = match self {
            Self::Fixed(tokens) => return tokens,
            Self::Uniform { low, high } => return rng.random_range(low..=high),
            Self::Normal { mean, sd } => sample_or(Normal::new(mean, sd).ok(), rng, mean),
            Self::LogNormal { median, sigma } => {
                sample_or(LogNormal::new(median.ln(), sigma).ok(), rng, median)
            }
        };
        real.round().clamp(1.0, f64::from(MAX_TOKENS)) as u32
    }
}

fn sample_or(of: Option<impl Distribution<f64>>, rng: &mut impl Rng, otherwise: f64) -> f64 {
    of.map_or(otherwise, |distribution| distribution.sample(rng))
}

impl FromStr for SizeDistribution {
    type Err = BadSizeDistribution;

    fn from_str(text: &str) -> Result<Self, BadSizeDistribution> {
        parse_sizes(text).ok_or_else(|| BadSizeDistribution(text.to_owned()))
    }
}

fn parse_sizes(text: &str) -> Option<SizeDistribution> {
    let tokens = |text: &str| text.trim().parse().ok().filter(|n| (1..=MAX_TOKENS).contains(n));
    let real = |text: &str| text.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0);
    let Some((kind, numbers)) = text.split_once(':') else {
        return tokens(text).map(SizeDistribution::Fixed);
    };
    match kind.trim() {
        "uniform" => {
            let (low, high) = numbers.split_once("..")?;
            let (low, high) = (tokens(low)?, tokens(high)?);
            (low <= high).then_some(SizeDistribution::Uniform { low, high })
        }
        "normal" => {
            let (mean, sd) = numbers.split_once(',')?;
            Some(SizeDistribution::Normal { mean: real(mean)?, sd: real(sd)? })
        }
        "lognormal" => {
            let (median, sigma) = numbers.split_once(',')?;
            let median = real(median).filter(|m| *m >= 1.0)?;
            Some(SizeDistribution::LogNormal { median, sigma: real(sigma)? })
        }
        _ => None,
    }
}

impl fmt::Display for SizeDistribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "{tokens}"),
            Self::Uniform { low, high } => write!(f, "uniform:{low}..{high}"),
            Self::Normal { mean, sd } => write!(f, "normal:{mean},{sd}"),
            Self::LogNormal { median, sigma } => write!(f, "lognormal:{median},{sigma}"),
        }
    }
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestShape {
    pub prompt: SizeDistribution,
    /// Maximum of the answer.
    pub output: SizeDistribution,
}

impl RequestShape {
    /// Prompt and answer of similar length.
    pub const BALANCED: Self =
        Self { prompt: SizeDistribution::Fixed(500), output: SizeDistribution::Fixed(500) };
    /// Long documents, short answers.
    pub const CONTEXT: Self =
        Self { prompt: SizeDistribution::Fixed(2_000), output: SizeDistribution::Fixed(200) };
    /// Short prompts, long answers.
    pub const GENERATION: Self =
        Self { prompt: SizeDistribution::Fixed(500), output: SizeDistribution::Fixed(1_000) };
}

impl fmt::Display for RequestShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "prompts of {} tokens, answers of up to {}", self.prompt, self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn draws(text: &str) -> Vec<f64> {
        let sizes: SizeDistribution = text.parse().unwrap();
        assert_eq!(sizes.to_string(), text, "what is shown can be typed");
        let mut rng = SmallRng::seed_from_u64(1);
        let mut all: Vec<f64> = (0..20_000).map(|_| f64::from(sizes.draw(&mut rng))).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    #[test]
    fn each_distribution_has_its_centre_and_its_spread() {
        let near = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.05;
        let quartiles = |all: &[f64]| (all[5_000], all[10_000], all[15_000]);
        assert_eq!(quartiles(&draws("500")), (500.0, 500.0, 500.0));
        let (low, middle, high) = quartiles(&draws("uniform:100..900"));
        assert!(near(low, 300.0) && near(middle, 500.0) && near(high, 700.0));
        let (low, middle, high) = quartiles(&draws("normal:500,100"));
        assert!(near(low, 432.6) && near(middle, 500.0) && near(high, 567.4));
        let (low, middle, high) = quartiles(&draws("lognormal:500,0.8"));
        assert!(near(low, 291.5) && near(middle, 500.0) && near(high, 857.6));
    }

    #[test]
    fn no_draw_is_below_one_token() {
        assert!(draws("normal:2,50")[0] >= 1.0);
    }

    #[test]
    fn what_is_no_size_is_told_with_examples() {
        for bad in ["", "0", "-1", "uniform:9..1", "normal:1", "lognormal:0,1", "zipf:1,2"] {
            let error = bad.parse::<SizeDistribution>().unwrap_err();
            assert!(error.to_string().contains("uniform:100..900"), "{bad}");
        }
    }
}
