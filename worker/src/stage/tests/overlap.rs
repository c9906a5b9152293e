//! Gradients travel while they are computed: counted, so that no clock decides. A lane of these hosts goes on only once its
//! part was taken (`LocalHost::cuts`).

use super::{
    together::{Circle, STAYS, in_circle, stage},
    *,
};

#[test]
fn all_but_the_last_part_of_a_gradient_travel_while_lanes_are_computed() {
    let (data, host) = (Data::write(), LocalHost::new(2));
    let of = stage(&data, &host);
    // The one in the middle has no lane, and the last one has most of them.
    let circle = Arc::new(Circle::default());
    in_circle(&circle, &of, (&host, &[STAYS; 3]));
    let state = circle.state();
    let counts = |member: usize| state.updates[&member].iter().map(|update| (update.parts, update.early_parts));
    let lane_by_lane: Vec<_> = counts(0).collect();
    assert_eq!(lane_by_lane.len(), 12);
    for (parts, early_parts) in lane_by_lane {
        assert!(parts > 2 && early_parts == parts - 1, "{early_parts} of {parts} parts were early");
    }
    assert!(counts(1).all(|(parts, early_parts)| parts > 2 && early_parts == 0), "it computes nothing");
    assert!(counts(2).all(|(parts, early_parts)| early_parts == parts - 1), "of several lanes too");
}
