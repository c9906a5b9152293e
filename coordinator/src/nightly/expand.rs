//! From a job to the job of one night: each task and fusion once for every seed.

use anyhow::anyhow;
use graftwork_shared::{
    id::Name,
    job::{AdapterRef, Job},
};

use crate::cli::Failure;

/// What stands between a task's name and its seed.
const SEED: &str = "-seed-";

/// The job that one night trains. It publishes nowhere yet: into a folder of that night alone, which its runner names.
pub(super) fn expand(job: &Job) -> Result<Job, Failure> {
    if let Some(task) = job.tasks.iter().find(|task| task.sweep.is_some()) {
        let words = format!(
            "tasks.{0} is swept, and a night measures what is settled: choose a trial with `graftwork run`, write its values \
             down and remove [tasks.{0}.sweep]",
            task.name
        );
        return Err(Failure::input(anyhow!(words)));
    }
    let mut night = Job { tasks: Vec::new(), fusions: Vec::new(), ..job.clone() };
    night.publish.hub.clear();
    // Seed by seed, so that a night that is cut short has whole seeds.
    for &seed in &job.nightly.seeds {
        for task in &job.tasks {
            let mut task = task.clone();
            task.name = seeded(&task.name, seed)?;
            task.publish_as = seeded(&task.publish_as, seed)?;
            task.training.seed = seed;
            night.tasks.push(task);
        }
        for fusion in &job.fusions {
            let mut fusion = fusion.clone();
            fusion.name = seeded(&fusion.name, seed)?;
            fusion.publish_as = seeded(&fusion.publish_as, seed)?;
            fusion.task = seeded(&fusion.task, seed)?;
            fusion.training.seed = seed;
            for adapter in &mut fusion.adapters {
                if let AdapterRef::Task(task) = adapter {
                    *task = seeded(task, seed)?;
                }
            }
            night.fusions.push(fusion);
        }
    }
    Ok(night)
}

/// The name of a stage of this seed.
pub(super) fn seeded(name: &Name, seed: u64) -> Result<Name, Failure> {
    let text = format!("{name}{SEED}{seed}");
    text.parse()
        .map_err(|_| Failure::input(anyhow!("{text:?} is longer than a name may be: give {name} a shorter one")))
}

/// The task and the seed of a stage.
pub(super) fn measured(stage: &Name) -> Option<(Name, u64)> {
    let (task, seed) = stage.as_str().rsplit_once(SEED)?;
    Some((task.parse().ok()?, seed.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TASK, World};

    #[test]
    fn each_seed_has_tasks_and_fusions_of_its_own() {
        let world = World::new();
        let text = format!(
            "{TASK}[tasks.other]\ntrain = \"train.parquet\"\nvalidation = \"validation.parquet\"\n\
             [fusions.both]\nadapters = [\"mood\", \"other\"]\ntask = \"mood\"\n[nightly]\nseeds = [4, 9]\n"
        );
        let (_, parsed) = world.parse(&text);
        let job = parsed.job.unwrap_or_else(|| panic!("{:?}", parsed.diagnostics));
        let night = expand(&job).unwrap();
        let names: Vec<&str> = night.tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(names, ["mood-seed-4", "other-seed-4", "mood-seed-9", "other-seed-9"]);
        let fusion = &night.fusions[1];
        assert_eq!((fusion.task.as_str(), fusion.training.seed), ("mood-seed-9", 9));
        assert_eq!(fusion.adapters[1], AdapterRef::Task("other-seed-9".parse().unwrap()));
        assert_eq!(night.publish.hub, "", "not into the hub of the job file");
        assert_eq!(measured(&fusion.name), Some(("both".parse().unwrap(), 9)));
        assert_eq!(measured(&"both".parse().unwrap()), None);
    }

    #[test]
    fn a_sweep_is_refused_with_the_way_out() {
        let world = World::new();
        let (_, parsed) = world.parse(&format!("{TASK}[tasks.mood.sweep]\nlearning_rate = [1e-3, 1e-4]\n"));
        let refused = expand(&parsed.job.unwrap()).unwrap_err();
        assert!(refused.error.to_string().contains("remove [tasks.mood.sweep]"), "{}", refused.error);
        assert_eq!(refused.code, crate::cli::INPUT);
    }
}
