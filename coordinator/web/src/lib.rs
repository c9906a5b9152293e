//! Pages drawn from views: the self-contained HTML report of a job.
//!
//! A page is a pure function of a [`JobView`](graftwork_shared::view::JobView): no state, no clock, no script, nothing
//! fetched from elsewhere. It must never show a number that the view does not hold.

mod chart;
mod number;
mod report;
mod stage;
mod sweep;

pub use report::report_page;
