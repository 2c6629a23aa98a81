//! Sizes, rates and lists of ids, as people write them.

/// A size such as `5GB`, `500MiB` or a number of bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let scale: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(format!("unknown unit {unit:?}: use B, KB, MB, GB, TB, KiB, MiB, GiB or TiB")),
    };
    let number: f64 = digits.trim().parse().map_err(|_| format!("{digits:?} is not a number"))?;
    let bytes = number * scale as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(format!("{text} is not a usable size")) }
}

/// Bytes a second, such as `50GB/s`.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    let bytes = text.strip_suffix("/s").ok_or_else(|| format!("{text:?} is no rate such as 50GB/s"))?;
    parse_size(bytes).map(|bytes| bytes as f64)
}

/// Token ids separated by commas or spaces.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    let ids: Vec<u32> = parts
        .map(|part| part.parse().map_err(|_| format!("{part:?} is not a token id")))
        .collect::<Result<_, _>>()?;
    if ids.is_empty() { Err("no token ids: write them as 1,5,17".into()) } else { Ok(ids) }
}

/// Operations a second, such as `989T`, `989 TFLOPS` or `989e12`.
pub(crate) fn parse_flops(text: &str) -> Option<f64> {
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.trim_end_matches("FLOPS").trim_end_matches("FLOP/S").trim_end();
    let (digits, unit) = match number.char_indices().last() {
        Some((at, 'M')) => (&number[..at], 1e6),
        Some((at, 'G')) => (&number[..at], 1e9),
        Some((at, 'T')) => (&number[..at], 1e12),
        Some((at, 'P')) => (&number[..at], 1e15),
        _ => (number, 1.0),
    };
    let rate = digits.trim().parse::<f64>().ok()? * unit;
    (rate >= 0.0 && rate.is_finite()).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ids_are_parsed_or_named() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1.5MiB"), Ok(1_572_864));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "0", "GB", "5XB", "-1GB", "1e30GB", "nanGB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_ids("1,5, 17"), Ok(vec![1, 5, 17]));
        assert!(parse_ids("1,x").is_err_and(|e| e.contains("\"x\"")));
        assert!(parse_ids(" ").is_err());
    }

    #[test]
    fn rates_of_arithmetic_have_units_or_none() {
        for (text, rate) in
            [("989T", 989e12), ("989 TFLOPS", 989e12), ("1.5e12", 1.5e12), ("40gflop/s", 4e10)]
        {
            assert_eq!(parse_flops(text), Some(rate));
        }
        assert_eq!((parse_flops("fast"), parse_flops("-1T"), parse_flops("")), (None, None, None));
    }
}
