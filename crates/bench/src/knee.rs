//! Where more concurrency stops giving more: the saturation knee of a sweep.

use serde::{Deserialize, Serialize};

/// A level whose throughput is this near to the best has all there is to have.
const NEAR: f64 = 0.95;

/// What a level must add to count as a gain.
const GAIN: f64 = 0.02;

/// Levels without a gain after which a sweep has seen enough.
const PATIENCE: usize = 2;

/// One level of a sweep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    pub concurrency: usize,
    /// Successful requests a minute.
    pub rpm: f64,
}

/// The least concurrency that gives nearly all of the best throughput.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Knee {
    pub concurrency: usize,
    pub rpm: f64,
    pub best_rpm: f64,
    /// Whether the sweep went on until more concurrency gave no more; if not, the deployment may
    /// give more than was seen.
    pub saturated: bool,
}

/// The knee of levels in growing order.
pub fn knee(levels: &[Level]) -> Option<Knee> {
    let best_rpm = levels.iter().map(|level| level.rpm).max_by(f64::total_cmp)?;
    let level = levels.iter().find(|level| level.rpm >= NEAR * best_rpm)?;
    let saturated = is_saturated(levels);
    Some(Knee { concurrency: level.concurrency, rpm: level.rpm, best_rpm, saturated })
}

/// Whether the last levels gave no more than those before them.
pub fn is_saturated(levels: &[Level]) -> bool {
    if levels.len() <= PATIENCE {
        return false;
    }
    let (before, last) = levels.split_at(levels.len() - PATIENCE);
    let best = before.iter().map(|level| level.rpm).fold(0.0, f64::max);
    best > 0.0 && last.iter().all(|level| level.rpm <= best * (1.0 + GAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(rpms: &[f64]) -> Vec<Level> {
        let level = |(i, rpm): (usize, &f64)| Level { concurrency: 1 << i, rpm: *rpm };
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
