//! Several processes that a launcher (`mpirun`, `srun`, `torchrun`) has started together.

use crate::vae::ranks::Ranks;

/// The place of this process among those that train together.
#[derive(Debug)]
#[cfg_attr(not(feature = "mpi"), allow(dead_code, reason = "only MPI connects processes"))]
pub(super) struct Group {
    pub(super) ranks: Ranks,
    /// Number of this process among those of the same machine.
    pub(super) local: usize,
    /// Number of the machine: that of its first process.
    pub(super) node: usize,
}

impl Group {
    /// Whether this process writes files and prints.
    pub(super) fn is_first(&self) -> bool {
        self.ranks.rank() == 0
    }
}

/// What a launcher has written to the environment.
#[derive(Debug, PartialEq, Eq)]
struct Launch {
    /// Variable with the number of processes.
    variable: &'static str,
    size: usize,
    launcher: &'static str,
}

/// For each launcher, the variables with the number of processes and with the number of this process. Both are set in a process that it
/// started, and nowhere else: the script of a Slurm job has `SLURM_NTASKS`, but runs once.
const LAUNCHERS: &[(&str, &str, &str)] = &[
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun of OpenMPI"),
    ("PMI_SIZE", "PMI_RANK", "mpirun of MPICH or Intel MPI"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
    ("SLURM_NTASKS", "SLURM_STEP_ID", "srun"),
    ("WORLD_SIZE", "RANK", "torchrun"),
];

/// Returns what the first launcher has written that has set its variables. `get` returns the value of a variable.
fn launch(get: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    LAUNCHERS.iter().find_map(|&(variable, rank, launcher)| {
        get(rank)?;
        Some(Launch { variable, size: get(variable)?.trim().parse().ok()?, launcher })
    })
}

/// Joins the group of this process; `None` if it was started alone.
///
/// # Errors
/// If a launcher has started several processes that cannot communicate.
pub(super) fn join() -> anyhow::Result<Option<Group>> {
    let launched = launch(|name| std::env::var(name).ok()).filter(|launch| launch.size > 1);
    launched.map(|launch| connect(&launch)).transpose()
}

/// How to start independent runs.
fn alone(launch: &Launch) -> String {
    format!(
        "To train {} separate models, start each with `env -u {}` and an --out of its own",
        launch.size, launch.variable
    )
}

/// Why a build without MPI does not run, and the ways out.
#[cfg_attr(feature = "mpi", allow(dead_code, reason = "MPI connects the processes"))]
fn refusal(launch: &Launch) -> String {
    let Launch { size, launcher, .. } = launch;
    format!(
        "{launcher} has started {size} processes, which this build cannot connect. To train one model on all of them, build vae-wgpu with \
         MPI: `cargo install --path . --locked --features mpi` (docs/distributed.md). {}",
        alone(launch)
    )
}

#[cfg(not(feature = "mpi"))]
fn connect(launch: &Launch) -> anyhow::Result<Group> {
    Err(anyhow::anyhow!(refusal(launch)))
}

#[cfg(feature = "mpi")]
fn connect(launch: &Launch) -> anyhow::Result<Group> {
    let Launch { size, launcher, .. } = launch;
    let (link, local, node) = super::mpi::start()?;
    let ranks = Ranks::new(Box::new(link));
    if ranks.size() != *size {
        anyhow::bail!(
            "{launcher} has started {size} processes, but MPI connects {} of them: start them with the mpirun of the MPI that vae-wgpu was \
             built with, or on Slurm with `srun --mpi=pmix`. {}",
            ranks.size(),
            alone(launch)
        );
    }
    Ok(Group { ranks, local, node })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_mpi_names_the_launcher_and_the_ways_out() {
        let said = refusal(&Launch { variable: "OMPI_COMM_WORLD_SIZE", size: 2, launcher: "mpirun of OpenMPI" });
        assert!(said.starts_with("mpirun of OpenMPI has started 2 processes"), "{said}");
        assert!(said.contains("--features mpi") && said.contains("env -u OMPI_COMM_WORLD_SIZE"), "{said}");
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        let of = |set: &[(&str, &str)]| {
            let found =
                launch(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()));
            found.map(|launch| (launch.variable, launch.size))
        };
        let open = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "2")];
        assert_eq!(of(&open), Some(("OMPI_COMM_WORLD_SIZE", 4)));
        assert_eq!(of(&[("PMI_SIZE", "2"), ("PMI_RANK", "0")]), Some(("PMI_SIZE", 2)));
        let step =
            [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", "3"), ("SLURM_STEP_ID", "0")];
        assert_eq!(of(&step), Some(("SLURM_STEP_NUM_TASKS", 3)));
        // The script of a job, which runs once.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]), None);
        assert_eq!(of(&[("WORLD_SIZE", "2"), ("RANK", "1")]), Some(("WORLD_SIZE", 2)));
        // Somebody's own variable.
        assert_eq!(of(&[("WORLD_SIZE", "2")]), None);
        assert_eq!(of(&[("WORLD_SIZE", "large"), ("RANK", "1")]), None);
        assert_eq!(of(&[]), None);
    }
}
