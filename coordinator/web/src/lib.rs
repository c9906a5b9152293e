//! Pages drawn from views: the self-contained HTML report of a job, and of a night.
//!
//! A page is a pure function of a [`JobView`](graftwork_shared::view::JobView) or a [`NightlyView`]: no state, no clock, no script, nothing
//! fetched from elsewhere. It must never show a number that the view does not hold.

mod chart;
mod nightly;
mod number;
mod page;
mod report;
mod stage;
mod sweep;

pub use nightly::{
    Alone, Cost, Curve, Curves, Flip, Head, MOST_FLIPS, NightOutcome, NightlyView, PairedCost, Past, Problem, Row,
    nightly_page, percent,
};
pub use report::report_page;
