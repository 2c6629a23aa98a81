//! Decimal digits as Python's `re` and `int` know them: every script's, not only ASCII.

/// The zero of every run of ten decimal digits (general category Nd, Unicode 14).
const ZEROS: [u32; 66] = [
    0x0030, 0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66,
    0x0DE6, 0x0E50, 0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50,
    0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30,
    0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0,
    0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60, 0x16AC0, 0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC,
    0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0,
];

/// The value of a decimal digit of any script.
fn digit(c: char) -> Option<u8> {
    let code = u32::from(c);
    let run = ZEROS.partition_point(|&zero| zero <= code).checked_sub(1)?;
    u8::try_from(code - ZEROS[run]).ok().filter(|&value| value < 10)
}

/// The digits that `text` starts with, at most `most`: as ASCII, and their length in `text` in bytes.
pub(super) fn leading_digits(text: &str, most: usize) -> (String, usize) {
    let (mut ascii, mut bytes) = (String::new(), 0);
    for c in text.chars().take(most) {
        let Some(value) = digit(c) else { break };
        ascii.push(char::from(b'0' + value));
        bytes += c.len_utf8();
    }
    (ascii, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_every_script_and_nothing_else() {
        assert_eq!(leading_digits("７5٣, 1", usize::MAX), ("753".into(), 3 + 1 + 2));
        assert_eq!(leading_digits("123", 2), ("12".into(), 2));
        // a superscript, a fraction, a Roman and a Chinese numeral are no decimal digits
        for other in ["²", "½", "Ⅷ", "八", "", "x", "/", ":"] {
            assert_eq!(leading_digits(other, 9), (String::new(), 0), "{other}");
        }
        assert_eq!(leading_digits("\u{1D7FF}", 1).0, "9");
    }
}
