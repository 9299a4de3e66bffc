//! Saturation knee of a sweep: the concurrency beyond which throughput no longer grows.

use serde::{Deserialize, Serialize};

/// Share of the best throughput at which a level counts as having reached it.
const NEAR_BEST: f64 = 0.95;

/// Relative increase that a level must add to count as a gain.
const MIN_GAIN: f64 = 0.02;

/// Levels without a gain after which a sweep ends.
const PATIENCE: usize = 2;

/// One level of a sweep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SweepLevel {
    pub concurrency: usize,
    /// Successful requests a minute.
    pub rpm: f64,
}

/// Least concurrency that gives nearly all of the best throughput.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Knee {
    pub concurrency: usize,
    pub rpm: f64,
    pub best_rpm: f64,
    /// True if the sweep went on until more concurrency gave no more; if not, the deployment may
    /// give more than was seen.
    pub saturated: bool,
}

/// Returns the knee of levels in growing order.
pub fn knee(levels: &[SweepLevel]) -> Option<Knee> {
    let best_rpm = levels.iter().map(|level| level.rpm).max_by(f64::total_cmp)?;
    let level = levels.iter().find(|level| level.rpm >= NEAR_BEST * best_rpm)?;
    let saturated = is_saturated(levels);
    Some(Knee { concurrency: level.concurrency, rpm: level.rpm, best_rpm, saturated })
}

/// Returns whether the last levels gave no more than those before them.
pub fn is_saturated(levels: &[SweepLevel]) -> bool {
    if levels.len() <= PATIENCE {
        return false;
    }
    let (before, last) = levels.split_at(levels.len() - PATIENCE);
    let best = before.iter().map(|level| level.rpm).fold(0.0, f64::max);
    best > 0.0 && last.iter().all(|level| level.rpm <= best * (1.0 + MIN_GAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(rpms: &[f64]) -> Vec<SweepLevel> {
        let level = |(i, rpm): (usize, &f64)| SweepLevel { concurrency: 1 << i, rpm: *rpm };
        rpms.iter().enumerate().map(level).collect()
    }

    #[test]
    fn the_knee_is_where_the_gains_end() {
        let levels = levels(&[100.0, 199.0, 390.0, 590.0, 600.0, 598.0]);
        let expected = Knee { concurrency: 8, rpm: 590.0, best_rpm: 600.0, saturated: true };
        assert_eq!(knee(&levels), Some(expected));
        assert!(!is_saturated(&levels[..5]), "one level without a gain may be chance");
    }

    #[test]
    fn throughput_that_still_grows_is_not_saturated() {
        let found = knee(&levels(&[100.0, 200.0, 400.0])).unwrap();
        assert_eq!((found.concurrency, found.saturated), (4, false));
    }

    #[test]
    fn a_service_that_answers_nothing_has_no_saturation() {
        assert!(!is_saturated(&levels(&[0.0, 0.0, 0.0, 0.0])));
        assert_eq!(knee(&[]), None);
    }
}
