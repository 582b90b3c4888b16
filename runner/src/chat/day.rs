//! The day that chat templates write down: `strftime_now`, as `transformers` gives it to them.
//!
//! Of a reply it is today, in UTC. Of examples it is always the same day, that which templates of Llama 3
//! write where there is no clock: the tokens of a run's examples have to be the same when it is resumed, and
//! on every machine.

use core::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_OF_DAY: u64 = 24 * 60 * 60;
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A second, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Day {
    /// Seconds since 1970.
    seconds: u64,
}

impl Day {
    /// 26 July 2024, of examples.
    pub(super) const OF_EXAMPLES: Self = Self { seconds: 19_930 * SECONDS_OF_DAY };

    /// This second.
    pub(super) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { seconds: since.map_or(0, |since| since.as_secs()) }
    }

    /// Year, month from 1 and day from 1, by Howard Hinnant's `civil_from_days`
    /// (<https://howardhinnant.github.io/date_algorithms.html>).
    fn date(self) -> (u64, usize, u64) {
        // Since 1 March of the year 0, in eras of 400 years.
        let days = self.seconds / SECONDS_OF_DAY + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (era * 400 + year + u64::from(month <= 2), month as usize, day)
    }

    /// As Python's `strftime` writes it, in English.
    ///
    /// # Errors
    /// A directive that is not known.
    pub(super) fn format(self, format: &str) -> Result<String, String> {
        let (year, month, day) = self.date();
        let of_day = self.seconds % SECONDS_OF_DAY;
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let weekday = DAYS[((self.seconds / SECONDS_OF_DAY + 4) % 7) as usize];
        let (hour_of_12, half) = ((hour + 11) % 12 + 1, if hour < 12 { "AM" } else { "PM" });
        let mut out = String::new();
        let mut signs = format.chars();
        while let Some(sign) = signs.next() {
            if sign != '%' {
                out.push(sign);
                continue;
            }
            let mut directive = signs.next();
            // Without a nought before it.
            let is_bare = directive == Some('-');
            if is_bare {
                directive = signs.next();
            }
            let number = match directive {
                Some('d') => Some(day),
                Some('m') => Some(month as u64),
                Some('y') => Some(year % 100),
                Some('H') => Some(hour),
                Some('I') => Some(hour_of_12),
                Some('M') => Some(minute),
                Some('S') => Some(second),
                _ => None,
            };
            // Writing to a String cannot fail.
            let _ = match (number, directive) {
                (Some(number), _) if is_bare => write!(out, "{number}"),
                (Some(number), _) => write!(out, "{number:02}"),
                (None, Some('Y')) => write!(out, "{year}"),
                (None, Some('e')) => write!(out, "{day:2}"),
                (None, Some('B')) => write!(out, "{}", MONTHS[month - 1]),
                (None, Some('b' | 'h')) => write!(out, "{}", &MONTHS[month - 1][..3]),
                (None, Some('A')) => write!(out, "{weekday}"),
                (None, Some('a')) => write!(out, "{}", &weekday[..3]),
                (None, Some('p')) => write!(out, "{half}"),
                (None, Some('F')) => write!(out, "{year}-{month:02}-{day:02}"),
                (None, Some('T')) => write!(out, "{hour:02}:{minute:02}:{second:02}"),
                (None, Some('Z')) => write!(out, "UTC"),
                (None, Some('z')) => write!(out, "+0000"),
                (None, Some('%')) => write!(out, "%"),
                (None, directive) => {
                    let sign = directive.map(String::from).unwrap_or_default();
                    return Err(format!("strftime_now does not know %{sign}"));
                }
            };
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are those of Python's `datetime.fromtimestamp(seconds, UTC).strftime`.
    #[test]
    fn days_are_written_as_python_does() {
        let all = "%a %A %d %-d %e %b %B %m %y %Y %H %I %p %M %S %F %T %%";
        for (seconds, text) in [
            (0, "Thu Thursday 01 1  1 Jan January 01 70 1970 00 12 AM 00 00 1970-01-01 00:00:00 %"),
            (
                951_782_399,
                "Mon Monday 28 28 28 Feb February 02 00 2000 23 11 PM 59 59 2000-02-28 23:59:59 %",
            ),
            (
                951_782_400,
                "Tue Tuesday 29 29 29 Feb February 02 00 2000 00 12 AM 00 00 2000-02-29 00:00:00 %",
            ),
            (
                4_107_587_696,
                "Mon Monday 01 1  1 Mar March 03 00 2100 12 12 PM 34 56 2100-03-01 12:34:56 %",
            ),
        ] {
            assert_eq!(Day { seconds }.format(all).as_deref(), Ok(text), "{seconds}");
        }
        assert_eq!(Day::OF_EXAMPLES.format("%d %b %Y").as_deref(), Ok("26 Jul 2024"));
        assert_eq!(Day::OF_EXAMPLES.format("é%Z%z").as_deref(), Ok("éUTC+0000"));
        assert!(Day::now().seconds > Day::OF_EXAMPLES.seconds);
        for (format, told) in
            [("%", "know %"), ("%Q", "know %Q"), ("%-", "know %"), ("%é", "know %é")]
        {
            assert!(Day::now().format(format).unwrap_err().ends_with(told), "{format}");
        }
    }
}
