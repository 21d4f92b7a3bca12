//! Sizes as people write them: `512`, `64k`, `100m`, `1.5g`.

/// The bytes that `text` stands for: a number and a unit of 1024, as Docker has them; without a unit, bytes.
///
/// ```
/// use bouvet_host::parse_size;
///
/// assert_eq!(parse_size("512"), Some(512));
/// assert_eq!(parse_size("1.5g"), Some(1536 * 1024 * 1024));
/// assert_eq!(parse_size("many"), None);
/// ```
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(1 << shift),
        Some((whole, fraction)) => {
            let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
            // More digits than make a byte of the largest unit say nothing.
            let fraction = fraction.get(..fraction.len().min(12))?;
            let parts = fraction.parse::<u128>().ok()? << shift;
            whole.checked_add(u64::try_from(parts / 10u128.pow(u32::try_from(fraction.len()).ok()?)).ok()?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("64k", 64 << 10),
            ("100m", 100 << 20),
            ("100MB", 100 << 20),
            ("1GiB", 1 << 30),
            ("1.5g", 3 << 29),
            ("2b", 2),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "m", "-1", "1x", "1 2", "1.5.g", "99999999999t", ".", "1e3", "ü"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
