//! Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011).
//!
//! Every random number in Graftwork is a pure function of a seed, a purpose and a position, so no checkpoint holds
//! random state and no thread, worker or restart can change a draw. libtorch's global generator is never used.

/// What a random number is for; each purpose is a stream of its own under the same seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights. Position: tensor, element.
    InitialWeights = 1,
    /// Order of blocks of rows. Position: epoch, block.
    BlockOrder = 2,
    /// Order inside the shuffle window. Position: epoch, row.
    WindowOrder = 3,
    /// Dropout. Position: site and step, row and element.
    Dropout = 4,
    /// Layers dropped by AdapterDrop. Position: step.
    AdapterDrop = 5,
    /// Which split a row belongs to. Position: row or group.
    Split = 6,
    /// Which combinations of a sweep are tried. Position: draw.
    Sweep = 7,
    /// What happens in a simulation; nothing that is trained. Position: 0, draw.
    Simulation = 1_000,
}

/// Numbers of 32 bits, as [`Stream::blocks`] computes with them.
pub trait Words: Sized {
    /// One word in the place of all of these.
    fn filled(&self, word: u32) -> Self;
    /// Upper and lower 32 bits of the products with a factor below 2^32.
    fn times(&self, factor: u64) -> [Self; 2];
    /// Exclusive or with others, and with a word of the key.
    fn mixed(&self, others: &Self, key: u32) -> Self;
}

/// A stream of random numbers, addressed by position.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    purpose: u32,
}

impl Stream {
    /// The stream of a purpose under a seed.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the seed")]
        let key = [seed as u32, (seed >> 32) as u32];
        Self { key, purpose: purpose as u32 }
    }

    /// Four 32-bit numbers at a position: `major` below 2^32 is a site or an epoch, `minor` an element or a row.
    pub fn block(&self, major: u32, minor: u64) -> [u32; 4] {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the position")]
        let counter = [minor as u32, (minor >> 32) as u32, major, self.purpose];
        philox(counter, self.key)
    }

    /// The blocks at sixteen positions of one `major`, one after the other. Without branches, so that a caller that is
    /// compiled for vectors computes them side by side.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "compiled with the caller's instructions")]
    pub fn sixteen_blocks(&self, major: u32, first_minor: u64) -> [[u32; 4]; 16] {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the position")]
        let halves = |n: u64| ((n >> 32) as u32, n as u32);
        let (mut a, mut b) = ([0; 16], [0; 16]);
        for (lane, (a, b)) in a.iter_mut().zip(&mut b).enumerate() {
            (*b, *a) = halves(first_minor.wrapping_add(lane as u64));
        }
        let (mut c, mut d) = ([major; 16], [self.purpose; 16]);
        let mut key = self.key;
        for _ in 0..10 {
            for lane in 0..16 {
                let (high0, low0) = halves(u64::from(a[lane]) * FACTORS[0]);
                let (high1, low1) = halves(u64::from(c[lane]) * FACTORS[1]);
                (a[lane], b[lane], c[lane], d[lane]) = (high1 ^ b[lane] ^ key[0], low1, high0 ^ d[lane] ^ key[1], low0);
            }
            key = next(key);
        }
        std::array::from_fn(|lane| [a[lane], b[lane], c[lane], d[lane]])
    }

    /// The blocks at many positions at once, in words of any kind. `minor` comes in two halves, the lower one first.
    pub fn blocks<W: Words>(&self, major: W, [low, high]: [W; 2]) -> [W; 4] {
        let purpose = major.filled(self.purpose);
        let (mut counter, mut key) = ([low, high, major, purpose], self.key);
        for _ in 0..10 {
            let [high0, low0] = counter[0].times(FACTORS[0]);
            let [high1, low1] = counter[2].times(FACTORS[1]);
            counter = [high1.mixed(&counter[1], key[0]), low1, high0.mixed(&counter[3], key[1]), low0];
            key = next(key);
        }
        counter
    }

    /// One 64-bit number at a position.
    pub fn u64(&self, major: u32, minor: u64) -> u64 {
        let [low, high, ..] = self.block(major, minor);
        u64::from(low) | u64::from(high) << 32
    }

    /// A number below `bound` at a position, without bias worth naming for bounds below 2^40.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&self, major: u32, minor: u64, bound: u64) -> u64 {
        assert!(bound > 0, "a random number below 0 does not exist");
        ((u128::from(self.u64(major, minor)) * u128::from(bound)) >> 64) as u64
    }

    /// A uniform number in [0, 1) with 24 random bits at a position.
    pub fn uniform(&self, major: u32, minor: u64) -> f32 {
        unit(self.block(major, minor)[0])
    }

    /// Fills with uniform numbers in [0, 1), four to a block, starting at block 0 of `major`.
    pub fn fill_uniform(&self, major: u32, out: &mut [f32]) {
        for (index, chunk) in out.chunks_mut(4).enumerate() {
            let block = self.block(major, index as u64);
            for (value, bits) in chunk.iter_mut().zip(block) {
                *value = unit(bits);
            }
        }
    }

    /// Fills with standard normal numbers (Box–Muller), four to a block, starting at block 0 of `major`.
    pub fn fill_normal(&self, major: u32, out: &mut [f32]) {
        for (index, chunk) in out.chunks_mut(4).enumerate() {
            let [a, b, c, d] = self.block(major, index as u64);
            let (first, second) = (normal_pair(a, b), normal_pair(c, d));
            let normals = [first.0, first.1, second.0, second.1];
            chunk.copy_from_slice(&normals[..chunk.len()]);
        }
    }
}

fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Two standard normal numbers, computed in f64 so that they do not depend on f32 approximations.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]
fn normal_pair(a: u32, b: u32) -> (f32, f32) {
    let (u, v) = ((f64::from(a) + 0.5) / 4_294_967_296.0, (f64::from(b) + 0.5) / 4_294_967_296.0);
    let (radius, angle) = ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * v);
    ((radius * angle.cos()) as f32, (radius * angle.sin()) as f32)
}

const FACTORS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];

#[inline(always)]
#[expect(clippy::inline_always, reason = "compiled with the caller's instructions")]
fn next(key: [u32; 2]) -> [u32; 2] {
    [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)]
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * FACTORS[0];
        let second = u64::from(counter[2]) * FACTORS[1];
        #[expect(clippy::cast_possible_truncation, reason = "the halves of 64-bit products")]
        let halves = |n: u64| ((n >> 32) as u32, n as u32);
        let ((high0, low0), (high1, low1)) = (halves(first), halves(second));
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = next(key);
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn sixteen_blocks_are_those_of_their_positions() {
        let stream = Stream::new(u64::MAX - 5, Purpose::Dropout);
        for minor in [0, 7, u64::from(u32::MAX) - 3, 12 << 24 | 5] {
            let expected: Vec<[u32; 4]> = (0..16).map(|lane| stream.block(9, minor + lane)).collect();
            assert_eq!(stream.sixteen_blocks(9, minor).as_slice(), expected);
        }
    }

    /// Plain words.
    struct Plain(u32);

    impl Words for Plain {
        fn filled(&self, word: u32) -> Self {
            Self(word)
        }

        fn times(&self, factor: u64) -> [Self; 2] {
            let product = u64::from(self.0) * factor;
            [product >> 32, product & 0xffff_ffff].map(|half| Self(u32::try_from(half).unwrap()))
        }

        fn mixed(&self, others: &Self, key: u32) -> Self {
            Self(self.0 ^ others.0 ^ key)
        }
    }

    #[test]
    fn blocks_in_words_of_another_kind_are_the_same() {
        let stream = Stream::new(u64::MAX - 5, Purpose::Dropout);
        for (major, [high, low]) in [(0, [0, 0]), (9, [0, 7]), (u32::MAX, [12, u32::MAX - 3])] {
            let found = stream.blocks(Plain(major), [Plain(low), Plain(high)]).map(|word| word.0);
            assert_eq!(found, stream.block(major, u64::from(high) << 32 | u64::from(low)));
        }
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_deviation_one() {
        let mut numbers = vec![0.0; 100_000];
        Stream::new(17, Purpose::InitialWeights).fill_normal(3, &mut numbers);
        let mean: f64 = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / 1e5;
        let variance: f64 = numbers.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn purposes_and_positions_are_independent() {
        let a = Stream::new(17, Purpose::Dropout);
        let b = Stream::new(17, Purpose::Split);
        assert_ne!(a.block(0, 0), b.block(0, 0));
        assert_ne!(a.block(0, 0), a.block(0, 1));
        assert!((0..1000).all(|i| a.below(0, i, 7) < 7));
    }
}
