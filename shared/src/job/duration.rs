//! Durations as people write them: `90s`, `30m`, `2h`, `7d`.

/// Longest duration: a year. A number beyond it is a slip of the hand.
const MOST_SECONDS: u64 = 365 * 86_400;

/// What is allowed, in words that follow "must be".
pub(crate) const ALLOWED: &str = "a duration such as \"90s\", \"30m\", \"2h\" or \"7d\", of at most \"365d\"";

/// The pattern of a duration, for editors.
pub(crate) const PATTERN: &str = "^[1-9][0-9]{0,8}[smhd]$";

/// Seconds of a duration; `None` where the text is none, or not within bounds.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let unit = text.chars().next_back()?;
    let number = &text[..text.len() - unit.len_utf8()];
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) || number.starts_with('0') {
        return None;
    }
    let seconds = number.parse::<u64>().ok()?.checked_mul(scale)?;
    i64::try_from(seconds).ok().filter(|_| (1..=MOST_SECONDS).contains(&seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, expected) in [("90s", 90), ("30m", 1_800), ("2h", 7_200), ("365d", 31_536_000)] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in
            ["", "s", "2", "2 h", "-2h", "+2h", "0s", "02h", "1.5h", "366d", "99999999999999999999d", "2\u{e9}", "2H"]
        {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
