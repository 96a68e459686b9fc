//! Numbers in tar headers: octal text, or base 256 where octal is too short.

/// Parses a numeric field; blank is 0, `None` is nonsense.
pub(super) fn parse(field: &[u8]) -> Option<i128> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

/// As [`parse`], for what cannot be negative.
pub(super) fn parse_unsigned<T: TryFrom<i128>>(field: &[u8]) -> Option<T> {
    T::try_from(parse(field)?).ok()
}

fn octal(field: &[u8]) -> Option<i128> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    let digits = field[..end].trim_ascii();
    digits.iter().try_fold(0i128, |value, digit| match digit {
        b'0'..=b'7' => Some(value * 8 + i128::from(digit - b'0')),
        _ => None,
    })
}

/// Big-endian two's complement; the top bit marks the form, the next one is the sign.
fn base_256(field: &[u8]) -> Option<i128> {
    let (first, rest) = field.split_first()?;
    let head = i128::from(first & 0x3f) - i128::from(first & 0x40);
    rest.iter().try_fold(head, |value, byte| {
        value.checked_mul(256)?.checked_add(i128::from(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        assert_eq!(parse(b"0000644\0"), Some(0o644));
        assert_eq!(parse(b"  755 \0\0"), Some(0o755));
        assert_eq!(parse(b"\0\0\0\0"), Some(0));
        assert_eq!(parse(b"12x4\0"), None);
        assert_eq!(parse(b"-1\0"), None);
        assert_eq!(parse(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(parse(&[0xff; 12]), Some(-1));
        assert_eq!(parse_unsigned::<u64>(&[0xff; 12]), None);
        assert_eq!(parse_unsigned::<u32>(b"77777777777\0"), None);
        assert_eq!(parse(&[0xbf; 30]), None);
    }
}
