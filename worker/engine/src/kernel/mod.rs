//! Arithmetic of our own on fp32 slices in host memory: products with packed right factors, layer norms, activations.
//!
//! libtorch packs the right factor of every product anew, although a trunk's weights never change, and walks over
//! activations once for each small operation. These kernels pack once and walk once. Each has a scalar form that
//! the tests hold the others against.
//!
//! A row's result never depends on the other rows, nor on how many there are: every sum over a row runs in one fixed
//! order, whatever the width of the machine's vectors. Machines with fused multiply-add round differently from those
//! without; the two are different numeric classes. No kernel starts a thread.

use std::cell::Cell;

mod bend;
pub(crate) mod fuse;
mod norm;
mod panels;
mod product;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub(crate) use bend::{Bend, exponential};
pub(crate) use norm::{Norm, Outputs, normalise, normalise_alone, normalise_backward, together};
pub(crate) use panels::{Panels, WIDE as PANEL_COLUMNS};
pub(crate) use product::{Left, Right, Start, count, product, product_once, turned};

thread_local! {
    static MULTIPLIED: Cell<u64> = const { Cell::new(0) };
}

/// How many multiplications this thread's products with weights have asked for since the last call. Only real
/// rows and columns count, so the number says whether work that nobody needs is still left out.
pub fn take_multiplications() -> u64 {
    MULTIPLIED.take()
}

#[cfg(test)]
thread_local! {
    /// Instructions that this thread's kernels use in place of the best ones.
    pub(crate) static ASKED: Cell<Option<Instructions>> = const { Cell::new(None) };
}

/// Which instructions the kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// What every machine has.
    Plain,
    /// Vectors of 8 with fused multiply-add.
    Avx2,
    /// Vectors of 16 with fused multiply-add: the same bytes as [`Self::Avx2`].
    Avx512,
}

impl Instructions {
    /// The best that this machine has.
    pub(crate) fn here() -> Self {
        #[cfg(test)]
        if let Some(asked) = ASKED.get() {
            return asked;
        }
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("fma") {
                return Self::Avx512;
            }
            if has!("avx2") && has!("fma") {
                return Self::Avx2;
            }
        }
        Self::Plain
    }
}

#[cfg(test)]
impl Instructions {
    /// All that this machine has.
    pub(crate) fn all() -> Vec<Self> {
        let all = [Self::Plain, Self::Avx2, Self::Avx512];
        let here = all.iter().position(|known| *known == Self::here()).expect("one of all");
        all[..=here].to_vec()
    }

    /// What comes out where kernels use these in place of the best ones.
    pub(crate) fn with<T>(self, run: impl FnOnce() -> T) -> T {
        /// Also where the closure fails.
        struct Back;
        impl Drop for Back {
            fn drop(&mut self) {
                ASKED.set(None);
            }
        }
        let _back = Back;
        ASKED.set(Some(self));
        run()
    }

    /// What comes out with the best ones, which all others must give as well.
    #[track_caller]
    pub(crate) fn same<T: PartialEq + std::fmt::Debug>(run: impl Fn() -> T) -> T {
        let expected = run();
        for instructions in Self::all() {
            assert_eq!(instructions.with(&run), expected, "{instructions:?}");
        }
        expected
    }
}

/// A function on slices that is compiled for each set of instructions, without fused multiply-add: the same bytes
/// everywhere.
macro_rules! vectorised {
    ($(#[$doc:meta])* $visible:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        $visible fn $name($($argument: $kind),*) {
            #[inline(always)]
            fn body($($argument: $kind),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                use crate::kernel::Instructions;
                #[target_feature(enable = "avx512f,avx512vl,avx512dq")]
                fn avx512($($argument: $kind),*) {
                    body($($argument),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $kind),*) {
                    body($($argument),*);
                }
                match Instructions::here() {
                    // SAFETY: the machine has the instructions that the function is compiled for.
                    Instructions::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    Instructions::Avx2 => return unsafe { avx2($($argument),*) },
                    Instructions::Plain => {}
                }
            }
            body($($argument),*);
        }
    };
}
pub(crate) use vectorised;

vectorised! {
    /// `out += x`, element by element.
    pub(crate) fn add(out: &mut [f32], x: &[f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }
}

vectorised! {
    /// `out *= x`, element by element.
    pub(crate) fn multiply(out: &mut [f32], x: &[f32]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out *= x);
    }
}

vectorised! {
    /// Adds every row of `x`, one after the other, to `out`.
    pub(crate) fn add_rows(out: &mut [f32], x: &[f32]) {
        for row in x.chunks_exact(out.len()) {
            out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
        }
    }
}

vectorised! {
    /// `x · factor + bias` in the place of each row, which has a factor of its own.
    pub(crate) fn scale_rows(x: &mut [f32], factors: &[f32], bias: &[f32]) {
        for (row, factor) in x.chunks_exact_mut(bias.len()).zip(factors) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x = *x * factor + bias);
        }
    }
}

vectorised! {
    /// `out *= factor`.
    pub(crate) fn scale(out: &mut [f32], factor: f32) {
        out.iter_mut().for_each(|out| *out *= factor);
    }
}
