//! Groups so large that sums travel far, in which every member has lanes of its own.

use graftwork_collective::ExchangePlan;

use super::{
    together::{Circle, STAYS, in_circle, stage},
    *,
};

/// Of an adapter and of a fusion.
#[test]
fn seven_members_that_all_compute_give_the_same_result() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    for mut of in [stage(&data, &host), fusion_of(&data, &host)] {
        let training = &mut of.recipe.training;
        (training.batch_size, training.lanes) = (8, 8);
        let plan = ExchangePlan::new((training.lanes * training.accumulation) as usize, 7);
        assert!((0..7).all(|rank| !plan.lanes(rank).is_empty()), "all compute");
        let alone = bytes_of(&finish(&of, &host));
        for ranks in [5, 7] {
            let circle = Arc::new(Circle::default());
            circle.state().even = true;
            let result = in_circle(&circle, &of, (&host, &vec![STAYS; ranks]));
            assert_eq!(bytes_of(&result), alone, "{ranks} members");
        }
    }
}
