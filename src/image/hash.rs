//! The 128-bit FNV-1a hash: it tells things apart that nobody has made alike on purpose.

const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// The hash of no bytes.
pub(super) const START: u128 = OFFSET;

/// The hash of all bytes.
pub(super) fn of(bytes: &[u8]) -> u128 {
    continued(START, bytes)
}

/// The hash of what came before and these bytes.
pub(super) fn continued(before: u128, bytes: &[u8]) -> u128 {
    bytes.iter().fold(before, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_those_of_the_definition() {
        assert_eq!(of(b""), OFFSET);
        assert_eq!(of(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(of(b"foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
        assert_eq!(continued(of(b"foo"), b"bar"), of(b"foobar"));
    }
}
