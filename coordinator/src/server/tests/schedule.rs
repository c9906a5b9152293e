//! Scheduling as peers meet it: quotas, time limits, work that is taken from a stage of lower priority.

use graftwork_scheduler::Quota;
use tonic::Code;

use super::{
    Place,
    fixture::{plan, stage},
    peer::{connect, submit},
};

#[tokio::test]
async fn a_job_beyond_its_owners_quota_is_refused_with_the_bound() {
    let place = Place::new(plan("one", vec![stage("a", &[], 10)]));
    let quota = Quota { places: None, jobs: Some(1) };
    let running = place.start_with(|options| options.quotas = [("*".to_owned(), quota)].into()).await;
    let channel = connect(&running).await;
    submit(&channel, &place.plan.job).await.unwrap();
    assert!(submit(&channel, &place.plan.job).await.unwrap().1, "it is there already");
    let mut second = place.plan.job.clone();
    second.publish.organisation = "other".to_owned();
    let refused = submit(&channel, &second).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let words = "the job is not taken: me has 1 jobs that have not ended, and its quota is 1";
    assert!(refused.message().starts_with(words), "{}", refused.message());
    second.owner = "another".to_owned();
    submit(&channel, &second).await.unwrap();
}
