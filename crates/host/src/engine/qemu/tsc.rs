//! The rate of this machine's time stamp counter.
//!
//! Under software emulation the guest reads the host's counter, and cannot calibrate it by itself when the
//! host is busy: it would then run without a usable clock. So it is told (`tsc_early_khz`).

use std::time::{Duration, Instant};

const MEASURE: Duration = Duration::from_millis(60);

/// The rate of this machine's time stamp counter in kHz, measured to some ten parts in a million within a tenth of a
/// second: what a kernel under software emulation must be told (`tsc_early_khz`). Zero where there is no such counter.
pub async fn measure_khz() -> u64 {
    let (start, from) = sample();
    tokio::time::sleep(MEASURE).await;
    let (end, to) = sample();
    let nanoseconds = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX).max(1);
    u64::try_from(u128::from(to - from) * 1_000_000 / u128::from(nanoseconds)).unwrap_or(u64::MAX)
}

/// The clock and the counter at one moment: the closest pair of a few, in case we are interrupted between.
fn sample() -> (Instant, u64) {
    let pairs = (0..16).map(|_| {
        let before = Instant::now();
        let counter = read();
        let gap = before.elapsed();
        (gap, before + gap / 2, counter)
    });
    pairs
        .min_by_key(|(gap, ..)| *gap)
        .map_or_else(|| (Instant::now(), read()), |(_, at, counter)| (at, counter))
}

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    #[expect(unsafe_code, reason = "there is no safe form of the instruction")]
    // SAFETY: every x86_64 processor has it, and Linux leaves it enabled for user space.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    #[tokio::test]
    async fn a_rate_is_plausible() {
        let khz = super::measure_khz().await;
        assert!((100_000..10_000_000).contains(&khz), "{khz} kHz");
    }
}
