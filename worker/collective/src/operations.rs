//! The operations of a group, made of moves between ranks.
//!
//! They check the caller's counts first, so that a wrong call closes nothing. What a transport does better by itself
//! ([`crate::transport::Native`]) it is asked to do, after all ranks agreed on the length.

use crate::{
    Aborter, CollectiveError, FormRequest, Group, bytes,
    form::form_member,
    member::{Member, Operation, Place, Target},
    transport::{Part, Transport},
};

impl Member {
    /// Cuts one buffer rank by rank.
    fn cut<'a, T>(mut buffer: &'a mut [T], counts: &[usize]) -> Vec<&'a mut [T]> {
        let mut parts = Vec::with_capacity(counts.len());
        for &count in counts {
            let (part, rest) = std::mem::take(&mut buffer).split_at_mut(count);
            parts.push(part);
            buffer = rest;
        }
        parts
    }

    fn check_counts(&self, operation: Operation, counts: &[usize], length: usize) -> Result<(), CollectiveError> {
        let operation = operation.name();
        let size = self.place.request.size;
        if counts.len() != size {
            let found = counts.len();
            return Err(CollectiveError::Counts { operation, what: "a number of counts", expected: size, found });
        }
        let expected = counts.iter().sum();
        if length != expected {
            return Err(CollectiveError::Counts { operation, what: "a buffer", expected, found: length });
        }
        Ok(())
    }

    fn check_root(&self, root: usize) -> Result<(), CollectiveError> {
        let size = self.place.request.size;
        if root < size { Ok(()) } else { Err(CollectiveError::Rank { rank: root, size }) }
    }

    /// Passes the root's bytes down a binomial tree.
    fn pass_down(&mut self, root: usize, mut target: Target<'_>) -> Result<(), CollectiveError> {
        let call = self.begin(Operation::Broadcast)?;
        let (rank, size) = (self.place.request.rank, self.place.request.size);
        let (parent, children) = relatives(rank, root, size);
        if let Some(parent) = parent {
            let incoming = match &mut target {
                Target::Exact(bytes) => Target::Exact(bytes),
                Target::Any(bytes) => Target::Any(bytes),
            };
            self.exchange(&call, &[], vec![(parent, incoming)])?;
        }
        let payload: &[u8] = match &target {
            Target::Exact(bytes) => bytes,
            Target::Any(bytes) => bytes,
        };
        let outgoing: Vec<_> = children.into_iter().map(|child| (child, payload)).collect();
        self.exchange(&call, &outgoing, Vec::new())
    }

    /// The members of this rank's new group in their new order, as ranks here.
    fn same_color(&mut self, color: u32, key: u32) -> Result<Vec<usize>, CollectiveError> {
        let own = [color.to_le_bytes(), key.to_le_bytes()].concat();
        let said = self.gather_bytes(Operation::Split, &own)?;
        let mut same: Vec<(u32, usize)> = Vec::new();
        for (rank, said) in said.iter().enumerate() {
            let word = |half: usize| {
                said[4 * half..4 * half + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
            };
            if said.len() == 8 && word(0) == color {
                same.push((word(1), rank));
            }
        }
        same.sort_unstable();
        Ok(same.into_iter().map(|(_, rank)| rank).collect())
    }

    fn gather_bytes(&mut self, operation: Operation, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        let call = self.begin(operation)?;
        let (rank, size) = (self.place.request.rank, self.place.request.size);
        let mut parts = vec![Vec::new(); size];
        own.clone_into(&mut parts[rank]);
        let outgoing: Vec<_> = self.peers().map(|peer| (peer, own)).collect();
        let others = parts.iter_mut().enumerate().filter(|(from, _)| *from != rank);
        let incoming = others.map(|(from, part)| (from, Target::Any(part))).collect();
        self.exchange(&call, &outgoing, incoming)?;
        Ok(parts)
    }

    /// A sub-group that the transport made of this one.
    fn native_split(&mut self, color: u32, key: u32, request: FormRequest) -> Result<Self, CollectiveError> {
        let call = self.begin(Operation::Split)?;
        let part = Part { color, key, rank: request.rank, size: request.size };
        let transport = self.native(&call, |native| native.split(part, call.until))?;
        // Different for every split and color, and the same on all members of one.
        let token = self.place.token.rotate_left(17) ^ (self.splits << 32 | u64::from(color));
        Ok(Self::new(Place { request, rendezvous: self.place.rendezvous.clone(), token }, transport))
    }
}

/// Parent and children in the binomial tree from the root.
fn relatives(rank: usize, root: usize, size: usize) -> (Option<usize>, Vec<usize>) {
    let place = (rank + size - root) % size;
    let absolute = |place: usize| (place + root) % size;
    let parent = (place > 0).then(|| absolute(place & (place - 1)));
    let reach = if place == 0 { size.next_power_of_two() } else { place & place.wrapping_neg() };
    let steps = std::iter::successors(Some(reach / 2), |step| Some(step / 2)).take_while(|&step| step > 0);
    (parent, steps.map(|step| place + step).filter(|&child| child < size).map(absolute).collect())
}

impl Group for Member {
    fn rank(&self) -> usize {
        self.place.request.rank
    }

    fn size(&self) -> usize {
        self.place.request.size
    }

    fn epoch(&self) -> u64 {
        self.place.request.epoch
    }

    fn aborter(&self) -> Aborter {
        self.place.request.aborter.clone()
    }

    fn all_reduce(&mut self, numbers: &mut [f32]) -> Result<(), CollectiveError> {
        let call = self.begin(Operation::AllReduce)?;
        self.agree(&call, size_of_val(numbers))?;
        if numbers.is_empty() || self.size() == 1 {
            return Ok(());
        }
        self.carry(&call, |transport: &mut dyn Transport| transport.all_reduce(numbers, call.until))
    }

    fn all_gather(&mut self, parts: &mut [f32], counts: &[usize]) -> Result<(), CollectiveError> {
        self.check_counts(Operation::AllGather, counts, parts.len())?;
        let (call, rank) = (self.begin(Operation::AllGather)?, self.rank());
        let equal = counts[0] > 0 && counts.iter().all(|&count| count == counts[0]);
        if equal && self.size() > 1 && self.is_native() {
            self.agree(&call, size_of_val(parts))?;
            return self.native(&call, |native| native.all_gather(bytes::of_mut(parts), call.until));
        }
        let mut others = Self::cut(parts, counts);
        let own: &mut [f32] = std::mem::take(&mut others[rank]);
        let own = bytes::of(own);
        let outgoing: Vec<_> = self.peers().map(|peer| (peer, own)).collect();
        let others = others.into_iter().enumerate().filter(|(from, _)| *from != rank);
        let incoming = others.map(|(from, part)| (from, Target::Exact(bytes::of_mut(part)))).collect();
        self.exchange(&call, &outgoing, incoming)
    }

    fn all_to_all(
        &mut self,
        send: &[f32],
        send_counts: &[usize],
        received: &mut [f32],
        receive_counts: &[usize],
    ) -> Result<(), CollectiveError> {
        self.check_counts(Operation::AllToAll, send_counts, send.len())?;
        self.check_counts(Operation::AllToAll, receive_counts, received.len())?;
        let rank = self.rank();
        let (expected, found) = (send_counts[rank], receive_counts[rank]);
        if expected != found {
            let operation = Operation::AllToAll.name();
            return Err(CollectiveError::Counts { operation, what: "a part for itself", expected, found });
        }
        let call = self.begin(Operation::AllToAll)?;
        let starts: Vec<_> =
            send_counts.iter().scan(0, |end, count| Some(std::mem::replace(end, *end + count))).collect();
        let part = |peer: usize| &send[starts[peer]..starts[peer] + send_counts[peer]];
        let mut parts = Self::cut(received, receive_counts);
        parts[rank].copy_from_slice(part(rank));
        let outgoing: Vec<_> = self.peers().map(|peer| (peer, bytes::of(part(peer)))).collect();
        let others = parts.into_iter().enumerate().filter(|(from, _)| *from != rank);
        let incoming = others.map(|(from, part)| (from, Target::Exact(bytes::of_mut(part)))).collect();
        self.exchange(&call, &outgoing, incoming)
    }

    fn broadcast(&mut self, numbers: &mut [f32], root: usize) -> Result<(), CollectiveError> {
        self.check_root(root)?;
        if numbers.is_empty() || self.size() == 1 || !self.is_native() {
            return self.pass_down(root, Target::Exact(bytes::of_mut(numbers)));
        }
        let call = self.begin(Operation::Broadcast)?;
        self.agree(&call, size_of_val(numbers))?;
        self.native(&call, |native| native.broadcast(bytes::of_mut(numbers), root, call.until))
    }

    fn send(&mut self, numbers: &[f32], to: usize, tag: u32) -> Result<(), CollectiveError> {
        self.send_bytes(bytes::of(numbers), to, tag)
    }

    fn receive(&mut self, numbers: &mut [f32], from: usize, tag: u32) -> Result<(), CollectiveError> {
        let call = self.begin_message(from, tag)?;
        self.exchange(&call, &[], vec![(from, Target::Exact(bytes::of_mut(numbers)))])
    }

    fn broadcast_bytes(&mut self, bytes: &mut Vec<u8>, root: usize) -> Result<(), CollectiveError> {
        self.check_root(root)?;
        self.pass_down(root, Target::Any(bytes))
    }

    fn all_gather_bytes(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.gather_bytes(Operation::AllGather, own)
    }

    fn send_bytes(&mut self, bytes: &[u8], to: usize, tag: u32) -> Result<(), CollectiveError> {
        let call = self.begin_message(to, tag)?;
        self.exchange(&call, &[(to, bytes)], Vec::new())
    }

    fn receive_bytes(&mut self, from: usize, tag: u32) -> Result<Vec<u8>, CollectiveError> {
        let call = self.begin_message(from, tag)?;
        let mut bytes = Vec::new();
        self.exchange(&call, &[], vec![(from, Target::Any(&mut bytes))])?;
        Ok(bytes)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        let call = self.begin(Operation::Barrier)?;
        self.agree(&call, 0)
    }

    fn split(&mut self, color: u32, key: u32) -> Result<Box<dyn Group>, CollectiveError> {
        let same = self.same_color(color, key)?;
        self.splits += 1;
        let own = self.rank();
        let mut request = self.place.request.clone();
        request.group = format!("{}/split{}.{color}", request.group, self.splits);
        request.rank = same.iter().position(|&rank| rank == own).unwrap_or_default();
        request.size = same.len();
        let member = if self.is_native() {
            self.native_split(color, key, request)?
        } else {
            form_member(request, self.place.rendezvous.clone())?
        };
        Ok(Box::new(member))
    }

    fn leave(mut self: Box<Self>) -> Result<(), CollectiveError> {
        let call = self.begin(Operation::Leave)?;
        match self.agree(&call, 0) {
            // The first to hear of all has closed its connections while the others still listen.
            Err(CollectiveError::PeerLost { .. }) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binomial_tree_reaches_every_rank_once() {
        for (size, root) in (1..=17).flat_map(|size| (0..size).map(move |root| (size, root))) {
            let mut reached: Vec<usize> = vec![root];
            for rank in 0..size {
                let (parent, children) = relatives(rank, root, size);
                assert_eq!(parent.is_none(), rank == root);
                for &child in &children {
                    assert_eq!(relatives(child, root, size).0, Some(rank));
                }
                reached.extend(children);
            }
            reached.sort_unstable();
            assert_eq!(reached, (0..size).collect::<Vec<_>>(), "{size} ranks from {root}");
        }
    }
}
