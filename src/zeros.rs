//! Finds the parts of a buffer that are worth writing.

/// The grain of the search: a run of zeros shorter than this is written with its neighbours.
const GRAIN: usize = 4096;

/// The runs of whole grains of `buffer` that are not all zero, as ranges, in order.
pub(crate) fn data_runs(buffer: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (i, grain) in buffer.chunks(GRAIN).enumerate() {
        if is_zero(grain) {
            continue;
        }
        let start = i * GRAIN;
        let end = start + grain.len();
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

    #[test]
    fn zeros_are_left_out_and_nothing_else_is() {
        let mut buffer = vec![0; 10 * GRAIN + 100];
        assert!(data_runs(&buffer).is_empty());
        buffer[0] = 1;
        buffer[3 * GRAIN - 1] = 1;
        buffer[3 * GRAIN] = 1;
        buffer[10 * GRAIN + 99] = 1;
        let runs = data_runs(&buffer);
        assert_eq!(
            runs,
            [0..GRAIN, 2 * GRAIN..4 * GRAIN, 10 * GRAIN..10 * GRAIN + 100]
        );
        assert!(data_runs(&[]).is_empty());
    }
}
