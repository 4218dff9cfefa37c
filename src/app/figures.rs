//! Figures as readers see them: counts, durations, medians.

/// Formats a number with its unit in the right form: `1 step`, `1,056 steps`.
pub(crate) fn counted(number: u64, unit: &str) -> String {
    format!("{} {unit}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Formats `1721891` as `1,721,891`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a duration as `7.5 s`, `12:05` or `3:20:00`.
pub(crate) fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{}:{:02}", whole / 60, whole % 60),
        _ => format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60),
    }
}

/// Formats a duration with two units: `7.5 s`, `12 min 05 s` or `3 h 20 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// Formats a long duration as `45 min` or `5 h`.
pub(crate) fn roughly(seconds: f64) -> String {
    match seconds / 3600.0 {
        hours if hours < 1.5 => format!("{:.0} min", seconds / 60.0),
        hours if hours < 10.0 => format!("{hours:.1} h"),
        hours => format!("{hours:.0} h"),
    }
}

/// Returns the median of sorted values; `None` if there are none.
pub(crate) fn median(sorted: &[f64]) -> Option<f64> {
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_durations_are_readable() {
        assert_eq!([0, 999, 1000, 1_721_891].map(grouped), ["0", "999", "1,000", "1,721,891"]);
        assert_eq!([0.04, 59.4, 59.6, 3599.0, 12_000.0].map(clock), ["0.0 s", "59.4 s", "1:00", "59:59", "3:20:00"]);
        assert_eq!([59.4, 725.0, 12_000.0].map(duration), ["59.4 s", "12 min 05 s", "3 h 20 min"]);
        assert_eq!([1800.0, 5_300.0, 20_000.0, 40_000.0].map(roughly), ["30 min", "88 min", "5.6 h", "11 h"]);
        assert_eq!([0, 1, 1056].map(|n| counted(n, "step")), ["0 steps", "1 step", "1,056 steps"]);
    }

    #[test]
    fn median_of_an_even_number_is_the_middle_of_two() {
        assert_eq!(
            [&[][..], &[3.0], &[1.0, 2.0], &[1.0, 2.0, 9.0]].map(median),
            [None, Some(3.0), Some(1.5), Some(2.0)]
        );
    }
}
