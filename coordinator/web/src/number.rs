//! Numbers as people read them.

/// Seconds as `850 ms`, `12.3 s`, `4 min 05 s`, `2 h 10 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "finite and not negative")]
    let whole = seconds.round() as u64;
    match whole {
        0..1 => format!("{:.0} ms", seconds * 1000.0),
        1..100 => format!("{seconds:.1} s"),
        100..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Bytes with a binary unit.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A count with a decimal unit: `312`, `49.2 k`, `2.7 M`.
pub(crate) fn count(count: u64) -> String {
    scaled(count as f64, 1000.0, &["", "k", "M", "G"])
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let text = if unit == 0 { format!("{value:.0} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) };
    text.trim_end().to_owned()
}

/// A score with three digits, without the leading zero's noise.
pub(crate) fn score(score: f64) -> String {
    if score.is_nan() { "not a number".to_owned() } else { format!("{score:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(duration(0.85), "0.8 s");
        assert_eq!(duration(0.2), "200 ms");
        assert_eq!(duration(245.0), "4 min 05 s");
        assert_eq!(duration(f64::NAN), "–");
        assert_eq!(bytes(1_500_000), "1.4 MiB");
        assert_eq!(count(312), "312");
        assert_eq!(count(2_654_208), "2.7 M");
    }
}
