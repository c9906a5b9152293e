//! When something is due that happens again and again: a cron line, in UTC.
//!
//! No clock here: whoever asks says what time it is.

use chrono::{DateTime, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use serde::{Deserialize, Serialize};

/// Longest line; one beyond it is no line that a person wrote.
const LONGEST: usize = 200;

/// What is allowed, in words that follow "must be".
pub const ALLOWED: &str =
    "a cron line in UTC, such as \"0 2 * * *\": minute, hour, day of the month, month, day of the week";

/// The fields of a line: what each is called, and what may stand in it.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, or L for the last"),
    ("month", "1 to 12, or JAN to DEC"),
    ("day of the week", "0 to 7, both of which are Sunday, or SUN to SAT"),
];

/// From where it is looked whether a line is due at all: 1970.
const BEGINNING: u64 = 0;

/// A cron line that is due some time: five fields, or six with seconds before them, or a nickname such as `@daily`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Schedule {
    line: String,
    cron: Cron,
}

impl Schedule {
    /// Reads a line; `Err` says what is wrong with it, in words that follow the line.
    pub fn parse(line: &str) -> Result<Self, String> {
        if line.len() > LONGEST {
            return Err(format!("has {} bytes, and a line has {LONGEST} at most", line.len()));
        }
        let cron = read(line).ok_or_else(|| problem(line))?;
        let schedule = Self { line: line.to_owned(), cron };
        if schedule.next_after(BEGINNING).is_none() {
            return Err("is never due: no month has that day".to_owned());
        }
        Ok(schedule)
    }

    /// The next moment at which it is due after another one, both in milliseconds since 1970; `None` at the end of time.
    pub fn next_after(&self, moment_ms: u64) -> Option<u64> {
        let moment: DateTime<Utc> = DateTime::from_timestamp_millis(i64::try_from(moment_ms).ok()?)?;
        let next = self.cron.find_next_occurrence(&moment, false).ok()?;
        let next_ms = u64::try_from(next.timestamp()).ok()?.checked_mul(1_000)?;
        (next_ms > moment_ms).then_some(next_ms)
    }
}

impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.line)
    }
}

impl TryFrom<String> for Schedule {
    type Error = String;

    fn try_from(line: String) -> Result<Self, String> {
        Self::parse(&line).map_err(|problem| format!("the cron line {line:?} {problem}"))
    }
}

impl From<Schedule> for String {
    fn from(schedule: Schedule) -> Self {
        schedule.line
    }
}

fn read(line: &str) -> Option<Cron> {
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    parser.parse(line).ok()
}

/// What is wrong with a line that cannot be read.
fn problem(line: &str) -> String {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if !(5..=6).contains(&fields.len()) {
        let count = match fields.len() {
            1 => "one field".to_owned(),
            count => format!("{count} fields"),
        };
        return format!(
            "has {count}, and a cron line has five: minute, hour, day of the month, month, day of the week"
        );
    }
    let known = &FIELDS[FIELDS.len() - fields.len()..];
    for (at, (field, (name, allowed))) in fields.iter().zip(known).enumerate() {
        let alone: Vec<&str> = (0..fields.len()).map(|other| if other == at { *field } else { "*" }).collect();
        if read(&alone.join(" ")).is_none() {
            return format!(
                "has the {name} {field:?}, which may be {allowed}, `*`, a range, a list, or steps such as */2"
            );
        }
    }
    "cannot be read".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-02-28, a Wednesday, 23:30 UTC.
    const WEDNESDAY: u64 = 1_709_163_000_000;
    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;

    #[test]
    fn a_line_is_due_when_cron_says_so() {
        for (line, after) in [
            ("0 2 * * *", 2 * HOUR + 30 * MINUTE),
            ("30 23 * * *", DAY),
            ("*/20 * * * *", 10 * MINUTE),
            ("*/5 * * * * *", 5_000),
            ("0 0 29 2 *", 30 * MINUTE),
            ("0 0 * * SUN", 3 * DAY + 30 * MINUTE),
            ("0 0 * * 7", 3 * DAY + 30 * MINUTE),
            ("15 3 1 JAN *", 307 * DAY + 3 * HOUR + 45 * MINUTE),
            // The thirteenth, and each Friday.
            ("0 0 13 * FRI", DAY + 30 * MINUTE),
            ("@daily", 30 * MINUTE),
        ] {
            let schedule = Schedule::parse(line).unwrap_or_else(|problem| panic!("{line} {problem}"));
            assert_eq!(schedule.next_after(WEDNESDAY), Some(WEDNESDAY + after), "{line}");
            let between = WEDNESDAY + after - 1;
            assert_eq!(schedule.next_after(between), Some(WEDNESDAY + after), "{line}, a moment before");
        }
        let leap = Schedule::parse("0 0 29 2 *").unwrap();
        let (first, second) = (leap.next_after(WEDNESDAY).unwrap(), leap.next_after(WEDNESDAY + HOUR).unwrap());
        assert_eq!((second - first) / DAY, 4 * 365 + 1);
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        for (line, said) in [
            ("0 2 * *", "has 4 fields, and a cron line has five"),
            ("daily", "has one field, and a cron line has five"),
            ("61 2 * * *", "has the minute \"61\", which may be 0 to 59"),
            ("0 24 * * *", "has the hour \"24\", which may be 0 to 23"),
            ("0 2 * 13 *", "has the month \"13\""),
            ("0 2 * * MOON", "has the day of the week \"MOON\""),
            ("0 0 2 * * * 2030", "has 7 fields"),
            ("0 2 30 2 *", "is never due"),
        ] {
            let problem = Schedule::parse(line).unwrap_err();
            assert!(problem.starts_with(said), "{line} {problem}");
        }
        assert!(Schedule::parse(&"*".repeat(1_000)).is_err());
    }

    #[test]
    fn it_travels_as_its_line() {
        let schedule = Schedule::parse("0 2 * * *").unwrap();
        assert_eq!(serde_json::to_string(&schedule).unwrap(), "\"0 2 * * *\"");
        assert_eq!(serde_json::from_str::<Schedule>("\"0 2 * * *\"").unwrap(), schedule);
        let wrong = serde_json::from_str::<Schedule>("\"0 2\"").unwrap_err().to_string();
        assert!(wrong.contains("the cron line \"0 2\" has 2 fields"), "{wrong}");
    }
}
