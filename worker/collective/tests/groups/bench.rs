//! Ranks as threads over one backend, or one of them in this process.

use std::{net::Ipv4Addr, sync::Arc, thread, time::Duration};

use graftwork_collective::{
    Backend, CollectiveError, FormRequest, Group, MemoryRendezvous, Rendezvous, form, nccl::probe,
};

use crate::authority::Authority;

/// A backend under test.
#[derive(Clone)]
pub(crate) struct Bench {
    /// The backend of a rank.
    backend: Arc<dyn Fn(usize) -> Backend + Send + Sync>,
    /// How many ranks there can be.
    most: usize,
    /// The only rank that this process runs; `None`: all of them.
    place: Option<Place>,
}

/// A rank of a process, among how many, and where they meet.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    pub(crate) table: Arc<dyn Rendezvous>,
}

pub(crate) fn in_process() -> Bench {
    Bench { backend: Arc::new(|_| Backend::InProcess), most: 8, place: None }
}

pub(crate) fn gloo() -> Bench {
    Bench { backend: Arc::new(|_| Backend::Gloo { address: Ipv4Addr::LOCALHOST.into() }), most: 8, place: None }
}

/// Ranks that show each other one certificate.
pub(crate) fn tls() -> Bench {
    let identity = Authority::new().identity();
    let address = Ipv4Addr::LOCALHOST.into();
    Bench { backend: Arc::new(move |_| Backend::Tls { address, identity: identity.clone() }), most: 8, place: None }
}

/// Why no rank of NCCL can be here; `None` where one can.
pub(crate) fn no_nccl() -> Option<String> {
    probe(None).refusal.map(|refusal| format!("NCCL does not work here: {refusal}"))
}

/// NCCL takes one rank of a process on a GPU, so that its ranks are as many as there are GPUs; or why there is none.
pub(crate) fn nccl() -> Result<Bench, String> {
    if let Some(reason) = no_nccl() {
        return Err(reason);
    }
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(1, Iterator::count);
    if gpus < 2 {
        return Err(format!("NCCL needs one GPU for each thread that is a rank, and there is {gpus}"));
    }
    let backend = |rank| Backend::Nccl { device: u32::try_from(rank).unwrap(), library: None };
    Ok(Bench { backend: Arc::new(backend), most: gpus, place: None })
}

/// Enters a group whose members meet at the table.
pub(crate) fn enter(request: FormRequest, table: &MemoryRendezvous) -> Result<Box<dyn Group>, CollectiveError> {
    let table: Arc<dyn Rendezvous> = Arc::new(table.clone());
    form(request, table)
}

impl Bench {
    /// One rank, in this process.
    pub(crate) fn of_process(backend: Backend, place: Place) -> Self {
        Self { backend: Arc::new(move |_| backend.clone()), most: place.size, place: Some(place) }
    }

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

    /// Forms a group and runs every rank in a thread of its own, or the only one of this process; results by rank.
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
        let (ranks, table) = match &self.place {
            None => (0..size, Arc::new(MemoryRendezvous::new()) as Arc<dyn Rendezvous>),
            Some(place) => (place.rank..size.min(place.rank + 1), place.table.clone()),
        };
        thread::scope(|scope| {
            let rank = |rank: usize| {
                let (table, change, act) = (table.clone(), &change, &act);
                scope.spawn(move || {
                    let mut request = self.request(1, rank, size);
                    change(&mut request);
                    act(form(request, table).unwrap())
                })
            };
            let ranks: Vec<_> = ranks.map(rank).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }
}
