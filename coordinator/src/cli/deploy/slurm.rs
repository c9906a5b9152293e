//! `graftwork deploy slurm`: a job array of workers.
//!
//! The script is written to a file that can be read and submitted again. The token stands in a file of its own, which each
//! worker's script reads when it starts: it is in no script, no argument, and no environment that Slurm keeps. Before its
//! time is over Slurm signals the script, which lets its worker drain (a checkpoint, and its leases go back) and queues
//! itself again. A worker that its coordinator sends home ends for good.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow, ensure};
use graftwork_proto::TOKEN_VARIABLE;
use graftwork_shared::{address::Address, job::MOST_THREADS};

use super::super::{DONE, Failure, print};

/// Seconds within which a worker can hand over: an update, a checkpoint, and its way to the coordinator.
const LEAST_DRAIN: u32 = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The coordinator, as the nodes reach it; several, separated by commas, where others wait to take over.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', required = true, env = crate::client::ADDRESS_VARIABLE)]
    coordinator: Vec<Address>,
    /// File with a token of the role join, as the nodes see it; it must be its user's alone. Not needed for a socket.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The CA that made the coordinator's certificate, as the nodes see it.
    #[arg(long, value_name = "FILE", env = graftwork_proto::CA_VARIABLE)]
    tls_ca: Option<PathBuf>,
    /// Workers: tasks of the array.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// Processors and device threads of each worker.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_THREADS)))]
    cpus: u32,
    /// Memory of each worker, as Slurm writes it: 16G.
    #[arg(long, value_name = "SIZE", value_parser = word)]
    memory: Option<String>,
    /// Gives each worker a GPU, and trains on it.
    #[arg(long)]
    gpu: bool,
    /// Time of each worker, as Slurm writes it: minutes, HOURS:MINUTES:SECONDS, or DAYS-HOURS. Then it is queued again.
    #[arg(long, value_name = "TIME", default_value = "4:00:00", value_parser = word)]
    time: String,
    /// Seconds before the end of that time at which a worker begins to drain.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(i64::from(LEAST_DRAIN)..=65_535))]
    drain: u32,
    /// Partition.
    #[arg(long, value_parser = word)]
    partition: Option<String>,
    /// Account.
    #[arg(long, value_parser = word)]
    account: Option<String>,
    /// Name of the job.
    #[arg(long, default_value = "graftwork", value_parser = word)]
    name: String,
    /// A further option of sbatch, such as --option=--qos=long; may be given again.
    #[arg(long = "option", value_name = "OPTION", value_parser = word, allow_hyphen_values = true)]
    options: Vec<String>,
    /// A further argument of `graftwork worker`; may be given again.
    #[arg(long = "argument", value_name = "ARGUMENT", allow_hyphen_values = true)]
    more: Vec<String>,
    /// Folder for the script and the logs, as the nodes see it.
    #[arg(long, value_name = "FOLDER", default_value = "graftwork-slurm")]
    folder: PathBuf,
    /// The program on the nodes; this one without it.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Write the script and submit nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What may stand in a line of options.
fn word(text: &str) -> Result<String, String> {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_.:=,+@/%[]".contains(letter);
    if !text.is_empty() && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err("only letters, digits and - _ . : = , + @ / % [ ] may stand here".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    check(arguments).map_err(Failure::input)?;
    let folder = std::path::absolute(&arguments.folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(format!("{}.sbatch", arguments.name.replace('/', "_")));
    let script = script(arguments, &folder).map_err(Failure::input)?;
    fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
    if arguments.dry_run {
        print(&format!("{}\n", path.display()));
        return Ok(DONE);
    }
    // What this shell holds is not for Slurm to keep.
    let submitted = Command::new("sbatch").arg("--parsable").arg(&path).env_remove(TOKEN_VARIABLE).output();
    let submitted = submitted.map_err(|error| {
        Failure::input(anyhow!(
            "sbatch cannot be started: {error}; {} is written, submit it where Slurm is",
            path.display()
        ))
    })?;
    if !submitted.status.success() {
        let reason = String::from_utf8_lossy(&submitted.stderr).trim().to_owned();
        return Err(Failure::input(anyhow!("Slurm does not take {}: {reason}", path.display())));
    }
    let id = String::from_utf8_lossy(&submitted.stdout).trim().to_owned();
    eprintln!("submitted {} worker(s) as job {id}; their logs come to {}", arguments.workers, folder.display());
    print(&format!("{id}\n"));
    Ok(DONE)
}

fn check(arguments: &Arguments) -> anyhow::Result<()> {
    let over_network = arguments.coordinator.iter().any(|address| !matches!(address, Address::Unix(_)));
    let Some(path) = &arguments.token_file else {
        ensure!(
            !over_network,
            "a coordinator on a network wants a token: make one with `graftwork token FILE workers --role join`, and name its file with --token-file"
        );
        return Ok(());
    };
    let found = fs::metadata(path).with_context(|| format!("the token's file {}", path.display()))?;
    let mode = found.permissions().mode() & 0o777;
    let open = mode & 0o077 != 0;
    ensure!(!open, "the token's file {} is open to others (mode {mode:o}): chmod 600 it", path.display());
    let token = fs::read_to_string(path).with_context(|| format!("the token's file {}", path.display()))?;
    let one_line = !token.trim().is_empty() && token.trim().lines().count() == 1;
    ensure!(one_line, "the token's file {} must hold one token on one line", path.display());
    Ok(())
}

/// A word of the shell.
fn quoted(text: &str) -> anyhow::Result<String> {
    ensure!(!text.contains(['\n', '\r', '\0']), "{text:?}: a line break cannot stand in the script");
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

fn path_text(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path)?;
    quoted(path.to_str().with_context(|| format!("{}: not UTF-8, which the script needs", path.display()))?)
}

/// The batch script.
fn script(arguments: &Arguments, folder: &Path) -> anyhow::Result<String> {
    let folder = folder.to_str().context("the folder's name is not UTF-8")?;
    word(folder).map_err(|problem| anyhow!("--folder {folder}: {problem}"))?;
    let program = match &arguments.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("finding this program's own path")?,
    };
    let coordinators: Vec<String> = arguments.coordinator.iter().map(ToString::to_string).collect();
    let mut worker = vec![
        path_text(&program)?,
        "worker --persist".to_owned(),
        format!("--coordinator {}", quoted(&coordinators.join(","))?),
        format!("--threads {}", arguments.cpus),
    ];
    if let Some(ca) = &arguments.tls_ca {
        worker.push(format!("--tls-ca {}", path_text(ca)?));
    }
    if arguments.gpu {
        worker.push("--device cuda".to_owned());
    }
    for argument in &arguments.more {
        worker.push(quoted(argument)?);
    }
    let token = match &arguments.token_file {
        None => String::new(),
        Some(path) => format!("{TOKEN_VARIABLE}=$(<{}) || exit 1\nexport {TOKEN_VARIABLE}\n", path_text(path)?),
    };
    Ok(format!(
        "#!/bin/bash\n{options}\n{BODY_HEAD}{token}{worker} &\n{BODY_TAIL}",
        options = options(arguments, folder),
        worker = worker.join(" ")
    ))
}

fn options(arguments: &Arguments, folder: &str) -> String {
    let optional = |name: &str, value: &Option<String>| value.iter().map(|value| format!("--{name}={value}")).collect();
    let fixed = vec![
        format!("--job-name={}", arguments.name),
        format!("--array=0-{}", arguments.workers - 1),
        "--ntasks=1".to_owned(),
        format!("--cpus-per-task={}", arguments.cpus),
        format!("--time={}", arguments.time),
        format!("--signal=B:USR1@{}", arguments.drain),
        "--requeue".to_owned(),
        "--open-mode=append".to_owned(),
        format!("--output={folder}/%x-%A_%a.log"),
    ];
    let named: [Vec<String>; 3] = [
        optional("mem", &arguments.memory),
        optional("partition", &arguments.partition),
        optional("account", &arguments.account),
    ];
    let gpu = arguments.gpu.then(|| "--gres=gpu:1".to_owned());
    let all = fixed.into_iter().chain(named.concat()).chain(gpu).chain(arguments.options.iter().cloned());
    all.map(|option| format!("#SBATCH {option}")).collect::<Vec<_>>().join("\n")
}

const BODY_HEAD: &str = r#"# Written by `graftwork deploy slurm`. A worker of a Graftwork coordinator.
again=
# The time is nearly over: the worker hands over, and this task is queued again.
trap 'again=yes; kill -TERM "$worker" 2>/dev/null' USR1
# Cancelled, or pre-empted (then Slurm queues it again by itself): the worker hands over.
trap 'kill -TERM "$worker" 2>/dev/null' TERM
"#;

const BODY_TAIL: &str = r#"worker=$!
# The signal may have come before there was a worker.
[ -z "$again" ] || kill -TERM "$worker"
# A signal ends the wait, and not the worker.
while wait "$worker"; code=$?; kill -0 "$worker" 2>/dev/null; do :; done
if [ -n "$again" ]; then
    # One task's own number is that of the whole array, and would queue all of its tasks again.
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"#;

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn of(more: &[&str]) -> Arguments {
        let fixed =
            ["slurm", "--coordinator", "https://10.0.0.7:7700,https://10.0.0.8:7700", "--program", "/opt/graftwork"];
        Line::try_parse_from(fixed.iter().chain(more)).unwrap().arguments
    }

    #[test]
    fn the_script_names_the_tokens_file_and_never_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("join token");
        fs::write(&file, "graftwork-join-secret\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let arguments = of(&["--token-file", file.to_str().unwrap(), "--workers", "3", "--memory", "16G", "--gpu"]);
        check(&arguments).unwrap();
        let script = script(&arguments, Path::new("/shared/slurm")).unwrap();
        for line in ["#SBATCH --array=0-2", "#SBATCH --mem=16G", "#SBATCH --gres=gpu:1", "#SBATCH --signal=B:USR1@120"]
        {
            assert!(script.lines().any(|found| found == line), "{line}: {script}");
        }
        assert!(script.contains(&format!("GRAFTWORK_TOKEN=$(<'{}')", file.display())), "{script}");
        assert!(script.contains("--coordinator 'https://10.0.0.7:7700,https://10.0.0.8:7700'"), "{script}");
        assert!(!script.contains("secret"), "{script}");
        let checked = Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
        assert!(checked.success(), "{script}");
    }

    /// The script itself runs, with bash in the place of the worker and of Slurm.
    #[test]
    fn the_task_whose_time_is_over_is_queued_again_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let worker = "trap 'exit 3' TERM\ntouch runs\nwhile :; do sleep 0.05; done\n";
        fs::write(folder.path().join("worker"), worker).unwrap();
        let mut arguments = of(&["--workers", "2"]);
        arguments.program = Some("/bin/bash".into());
        let mut task = Command::new("bash");
        task.args(["-c", &script(&arguments, Path::new("/shared/slurm")).unwrap()]).current_dir(folder.path());
        task.env("BASH_FUNC_scontrol%%", "() { echo \"$*\" > asked; }");
        task.envs([("SLURM_JOB_ID", "7"), ("SLURM_ARRAY_JOB_ID", "7"), ("SLURM_ARRAY_TASK_ID", "1")]);
        let mut task = task.spawn().unwrap();
        let began = Instant::now();
        while !folder.path().join("runs").exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "the worker does not start");
            thread::sleep(Duration::from_millis(10));
        }
        let told = Command::new("kill").args(["-USR1", &task.id().to_string()]).status().unwrap();
        assert!(told.success());
        assert_eq!(task.wait().unwrap().code(), Some(3), "the worker hands over first");
        assert_eq!(fs::read_to_string(folder.path().join("asked")).unwrap(), "requeue 7_1\n");
    }

    #[test]
    fn a_network_wants_a_token_and_its_file_is_private() {
        assert!(check(&of(&[])).unwrap_err().to_string().contains("wants a token"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "one\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let arguments = of(&["--token-file", file.to_str().unwrap()]);
        assert!(check(&arguments).unwrap_err().to_string().contains("open to others (mode 644)"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "one\ntwo\n").unwrap();
        assert!(check(&arguments).unwrap_err().to_string().contains("one token on one line"));
    }

    #[test]
    fn what_could_leave_its_line_is_refused() {
        assert!(word("a b").is_err() && word("a\nb").is_err() && word("$(x)").is_err() && word("4:00:00").is_ok());
        assert!(quoted("a\nb").is_err());
        assert_eq!(quoted("it's").unwrap(), "'it'\\''s'");
    }
}
