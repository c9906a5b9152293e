//! A connection that breaks costs nothing: the worker works on under its leases, comes back and lists them
//! (invariant 2).

use anyhow::{Result, ensure};
use graftwork_shared::event::EventKind;
use graftwork_tests::{Cluster, Run, World, tensor_digests};

#[test]
fn a_worker_whose_link_breaks_goes_on_under_the_same_leases() -> Result<()> {
    let (world, mut cluster) = (World::new()?, Cluster::new()?);
    cluster.job(&world)?;
    let (job, _) = cluster.ask(&world, &["submit", "job.toml"], 0)?;
    let link = cluster.link()?;
    cluster.start_worker_through(&link.address())?;
    let mut watch = Run::watch(&cluster.address(), &job)?;
    let (mut starts, mut cuts) = (0, 0);
    while let Some(event) = watch.next_event()? {
        match event.kind {
            EventKind::StageStarted { .. } => starts += 1,
            EventKind::Checkpointed { .. } if cuts < 6 => {
                link.cut();
                cuts += 1;
            }
            EventKind::AttemptFailed { .. } | EventKind::WorkerLeft { .. } => ensure!(false, "{event:?}"),
            _ => {}
        }
    }
    watch.finish(0)?;
    ensure!(cuts == 6 && starts == 4, "{cuts} cuts, and each of four stages was handed out once: {starts}");

    let undisturbed = world.job("local.toml", "hub", "")?;
    Run::start(&undisturbed, &["--state", "state"])?.finish(0)?;
    assert_eq!(tensor_digests(&cluster.path().join("hub"))?, tensor_digests(&world.path().join("hub"))?);
    Ok(())
}
