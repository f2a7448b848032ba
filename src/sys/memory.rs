//! What becomes of memory that is not used any more.

/// Smallest block that goes back to the system as soon as it is freed, in bytes.
const LARGE: libc::c_int = 1 << 20;

/// From now on, blocks of a MiB and more go back to the system as soon as they are freed.
///
/// Left alone, glibc learns from the first large block that is freed to keep such blocks for later (mallopt(3),
/// `M_MMAP_THRESHOLD`): what reading a long list took once would stay ours for good. Other C libraries do not learn.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: sets a number in the allocator, under its own lock; it has no other effect and cannot fail for this one.
        #[allow(unsafe_code, reason = "no safe face for mallopt in std or nix")]
        let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_env = "gnu")]
    fn a_large_block_is_a_mapping_of_its_own_even_after_larger_ones_were_freed() {
        return_large_blocks();
        let block = |size: usize| vec![1_u8; size];
        drop(block(16 << 20));
        // glibc puts its header of 16 bytes in front, at the beginning of the mapping; a block of the heap lies anywhere.
        let blocks: Vec<Vec<u8>> = (0..4).map(|number| block((1 << 20) + 4096 * number + 16 * 5)).collect();
        for block in &blocks {
            assert_eq!(block.as_ptr() as usize % 4096, 16);
        }
    }
}
