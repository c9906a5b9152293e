//! Did anything get worse? Statistics over two nights of the same measurements, and over a history of costs.
//!
//! Pure: no clock, no file, no thread, and random numbers are a function of a seed. So the same nights give the same
//! verdicts. README.md says what is tested and why; `examples/operating.rs` measures how often it is wrong.
//!
//! ```text
//! measure   scores over answers, by weights of rows         paired    the sign-flip test, McNemar's where it is one
//! bootstrap rows drawn again, the same ones for both nights  seeds     what other seeds would give
//! discovery Benjamini-Hochberg over all measurements         power     what would have been found
//! change    a change point in a noisy history                verdict   all of it, with its own error
//! ```

mod bootstrap;
mod change;
mod discovery;
mod measure;
mod paired;
mod power;
mod random;
mod seeds;
mod verdict;

pub use bootstrap::{Resampled, paired_bootstrap};
pub use change::{Change, Finding as CostFinding, Series, Worse, changes};
pub use discovery::adjusted;
pub use measure::{Answers, Measure, Scorer, distance};
pub use paired::{Tails, mcnemar, sign_flips};
pub use power::Noise;
pub use random::Random;
pub use seeds::{Groups, Spread, half_width, spreads};
pub use verdict::{Comparison, Finding, Run, Settings, Verdict, judge};
