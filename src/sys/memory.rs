//! What becomes of memory that is not used any more.

/// Gives what is free back to the system now. Takes milliseconds; for after something large that is done seldom.
///
/// mimalloc gives back what was freed some while ago when more is freed (its options `purge_delay` and
/// `arena_purge_mult`). After a long list was read nothing of that size is, so what reading took would stay ours.
pub fn give_back() {
    // SAFETY: takes no pointer, and may be called by any thread at any time.
    #[allow(unsafe_code, reason = "no safe face for mi_collect in mimalloc")]
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        alloc::{GlobalAlloc as _, Layout},
        fs,
    };

    use mimalloc::MiMalloc;

    use super::*;

    fn resident() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn what_is_free_goes_back_to_the_system_at_once() {
        const SIZE: usize = 256 << 20;
        let layout = Layout::from_size_align(SIZE, 16).unwrap();
        let before = resident();
        // SAFETY: the block is `SIZE` bytes long, and freed once, with the layout it was made with.
        #[allow(unsafe_code, reason = "tests are not built with mimalloc as their allocator")]
        unsafe {
            let block = MiMalloc.alloc(layout);
            assert!(!block.is_null());
            block.write_bytes(1, SIZE);
            MiMalloc.dealloc(block, layout);
        }
        give_back();
        // Other tests take some meanwhile.
        assert!(resident() < before + SIZE / 2, "{before} {}", resident());
    }
}
