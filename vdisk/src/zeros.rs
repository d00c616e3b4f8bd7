//! Finds the parts of a buffer that are worth writing. Total; does no I/O.

/// The runs of whole grains of `grain` bytes of `buffer` that are not all zero, as ranges, in order: a run
/// of zeros shorter than a grain counts with its neighbours.
///
/// # Panics
/// When `grain` is 0.
#[must_use]
pub fn data_runs(buffer: &[u8], grain: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, bytes) in buffer.chunks(grain).enumerate() {
        if is_zero(bytes) {
            continue;
        }
        let start = i * grain;
        let end = start + bytes.len();
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

/// Whether all bytes are zero; compares words, which the compiler turns into vectors.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<64>();
    let zero = |word: &[u8; 64]| word.iter().fold(0, |all, byte| all | byte) == 0;
    words.iter().all(zero) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAIN: usize = 4096;

    #[test]
    fn zeros_are_left_out_and_nothing_else_is() {
        let mut buffer = vec![0; 10 * GRAIN + 100];
        assert!(data_runs(&buffer, GRAIN).is_empty());
        buffer[0] = 1;
        buffer[3 * GRAIN - 1] = 1;
        buffer[3 * GRAIN] = 1;
        buffer[10 * GRAIN + 99] = 1;
        let runs = data_runs(&buffer, GRAIN);
        assert_eq!(
            runs,
            [0..GRAIN, 2 * GRAIN..4 * GRAIN, 10 * GRAIN..10 * GRAIN + 100]
        );
        assert!(data_runs(&[], GRAIN).is_empty());
    }
}
