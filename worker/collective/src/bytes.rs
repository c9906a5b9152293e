//! Numbers as the bytes they are in memory. Ranks of one group run on machines of one byte order.

/// The bytes of a slice of numbers.
pub(crate) fn of(numbers: &[f32]) -> &[u8] {
    // SAFETY: f32 has no padding and u8 no alignment; the length is that of the same memory, under the same borrow.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// The bytes of a slice of numbers, to be written.
pub(crate) fn of_mut(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above; every pattern of bits is an f32.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}
