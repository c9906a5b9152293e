//! Ranks as threads over one backend.

use std::{net::Ipv4Addr, sync::Arc, thread, time::Duration};

use graftwork_collective::{
    Backend, CollectiveError, FormRequest, Group, MemoryRendezvous, Rendezvous, form, nccl::probe,
};

/// A backend under test.
#[derive(Clone, Copy)]
pub(crate) struct Bench {
    /// The backend of a rank.
    backend: fn(usize) -> Backend,
    /// How many ranks there can be.
    most: usize,
}

pub(crate) fn in_process() -> Bench {
    Bench { backend: |_| Backend::InProcess, most: 8 }
}

pub(crate) fn gloo() -> Bench {
    Bench { backend: |_| Backend::Gloo { address: Ipv4Addr::LOCALHOST.into() }, most: 8 }
}

/// NCCL takes one rank on a GPU, so that its ranks are as many as there are GPUs; or why there is none.
pub(crate) fn nccl() -> Result<Bench, String> {
    let report = probe(None);
    if let Some(refusal) = report.refusal {
        return Err(format!("NCCL does not work here: {refusal}"));
    }
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(1, Iterator::count);
    if gpus < 2 {
        return Err(format!("NCCL needs one GPU for each rank, and there is {gpus}"));
    }
    let backend = |rank| Backend::Nccl { device: u32::try_from(rank).unwrap(), library: None };
    Ok(Bench { backend, most: gpus })
}

/// Enters a group whose members meet at the table.
pub(crate) fn enter(request: FormRequest, table: &MemoryRendezvous) -> Result<Box<dyn Group>, CollectiveError> {
    let table: Arc<dyn Rendezvous> = Arc::new(table.clone());
    form(request, table)
}

impl Bench {
    /// As many ranks as wanted, or as there can be.
    pub(crate) fn size(&self, wanted: usize) -> usize {
        wanted.min(self.most)
    }

    pub(crate) fn request(&self, epoch: u64, rank: usize, size: usize) -> FormRequest {
        let mut request = FormRequest::new("test", epoch, rank, size);
        request.backend = (self.backend)(rank);
        request.form_deadline = Duration::from_secs(20);
        request.deadline = Duration::from_secs(20);
        request
    }

    /// Forms a group and runs every rank in a thread of its own; results by rank.
    pub(crate) fn run<T: Send>(&self, size: usize, act: impl Fn(Box<dyn Group>) -> T + Sync) -> Vec<T> {
        self.run_with(size, |_| {}, act)
    }

    /// The same with changed requests.
    pub(crate) fn run_with<T: Send>(
        &self,
        size: usize,
        change: impl Fn(&mut FormRequest) + Sync,
        act: impl Fn(Box<dyn Group>) -> T + Sync,
    ) -> Vec<T> {
        let table = MemoryRendezvous::new();
        thread::scope(|scope| {
            let rank = |rank: usize| {
                let (table, change, act) = (&table, &change, &act);
                scope.spawn(move || {
                    let mut request = self.request(1, rank, size);
                    change(&mut request);
                    act(enter(request, table).unwrap())
                })
            };
            let ranks: Vec<_> = (0..size).map(rank).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }
}
