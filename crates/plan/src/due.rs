//! Due times: a moment, or a time of day in a time zone.

use std::fmt;
use std::str::FromStr;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Due time as the user writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueTime {
    At(Timestamp),
    /// Next occurrence of this time of day, in a time zone that is given beside it.
    Daily(Time),
}

/// Text that is no due time.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is neither a time of day, such as 06:00, nor a moment, such as 2026-11-24T06:00:00+09:00"
)]
pub struct BadDueTime(String);

impl FromStr for DueTime {
    type Err = BadDueTime;

    fn from_str(text: &str) -> Result<Self, BadDueTime> {
        let moment = text.parse().map(Self::At).ok();
        let time = || text.parse().map(Self::Daily).ok();
        moment.or_else(time).ok_or_else(|| BadDueTime(text.to_owned()))
    }
}

impl fmt::Display for DueTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at) => at.fmt(f),
            Self::Daily(time) => time.strftime("%H:%M").fmt(f),
        }
    }
}

impl DueTime {
    /// Returns the moment: for a time of day, the first after `from`. If clocks skip it, it is the
    /// hour later; if they show it twice, the first.
    pub fn after(self, from: Timestamp, zone: &TimeZone) -> Timestamp {
        let time = match self {
            Self::At(at) => return at,
            Self::Daily(time) => time,
        };
        let begin = from.to_zoned_datetime(zone.clone());
        let on = |days: i32| {
            let date = begin.date().saturating_add(Span::new().days(days));
            zone.to_timestamp(date.to_datetime(time)).unwrap_or(Timestamp::MAX)
        };
        Some(on(0)).filter(|at| *at > from).unwrap_or_else(|| on(1))
    }
}

/// Returns a time zone by its IANA name; without one, the machine's.
///
/// # Errors
/// If there is none of that name.
pub fn zone(name: Option<&str>) -> Result<TimeZone, jiff::Error> {
    name.map_or_else(|| Ok(TimeZone::system()), TimeZone::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(due: &str, from: &str, zone_name: &str) -> String {
        let due: DueTime = due.parse().unwrap();
        let zone = zone(Some(zone_name)).unwrap();
        due.after(from.parse().unwrap(), &zone).to_string()
    }

    #[test]
    fn a_time_of_day_is_the_next_one_where_it_is_said() {
        let evening = "2026-11-24T22:00:00+09:00";
        assert_eq!(after("06:00", evening, "Asia/Tokyo"), "2026-11-24T21:00:00Z");
        assert_eq!(after("22:30", evening, "Asia/Tokyo"), "2026-11-24T13:30:00Z");
        assert_eq!(after("22:00", evening, "Asia/Tokyo"), "2026-11-25T13:00:00Z");
        let moment = "2026-11-25T06:00:00+09:00";
        assert_eq!(after(moment, evening, "Europe/Berlin"), "2026-11-24T21:00:00Z");
    }

    #[test]
    fn the_night_in_which_clocks_change_has_its_own_length() {
        let spring = "2026-03-28T22:00:00+01:00";
        assert_eq!(after("06:00", spring, "Europe/Berlin"), "2026-03-29T04:00:00Z");
        assert_eq!(after("02:30", spring, "Europe/Berlin"), "2026-03-29T01:30:00Z");
    }

    #[test]
    fn what_is_no_time_is_told_with_a_mend() {
        let said = "tomorrow".parse::<DueTime>().unwrap_err().to_string();
        assert!(said.contains("06:00"), "{said}");
    }
}
