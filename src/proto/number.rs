//! Numbers as decimal digits.

/// Appends a number without going through the formatter.
pub(super) fn decimal(out: &mut Vec<u8>, mut number: u64) {
    const MAX_DIGITS: usize = 20;
    let mut digits = [0; MAX_DIGITS];
    let mut at = MAX_DIGITS;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_without_a_leading_zero() {
        for number in [0, 1, 9, 10, 4096, u64::MAX] {
            let mut out = b"+".to_vec();
            decimal(&mut out, number);
            assert_eq!(out, format!("+{number}").as_bytes());
        }
    }
}
