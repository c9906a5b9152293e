//! Which commit is measured next, and what was found: a pure function of what was measured.
//!
//! Positions are 0 for the commit that counts as good and 1 to n for those after it, of which the last counts as bad. Both
//! ends are measured first: without them nothing is found.

/// What measuring a commit came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// As good as the good night; its score in words.
    Good(String),
    /// Worse; its score in words.
    Worse(String),
    /// It could not be measured, and why.
    Not(String),
}

impl Tried {
    /// In words that follow the commit.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Good(score) => format!("good, {score}"),
            Self::Worse(score) => format!("worse, {score}"),
            Self::Not(problem) => format!("left out: it {problem}"),
        }
    }
}

/// What is known so far.
#[derive(Clone, Debug)]
pub(super) struct Search {
    tried: Vec<Option<Tried>>,
}

impl Search {
    /// `commits` is the number of those after the good one, at least 1.
    pub(super) fn new(commits: usize) -> Self {
        Self { tried: vec![None; commits + 1] }
    }

    pub(super) fn set(&mut self, at: usize, tried: Tried) {
        self.tried[at] = Some(tried);
    }

    pub(super) fn at(&self, at: usize) -> Option<&Tried> {
        self.tried.get(at)?.as_ref()
    }

    fn is_good(&self, at: usize) -> bool {
        matches!(self.tried[at], Some(Tried::Good(_)))
    }

    fn is_worse(&self, at: usize) -> bool {
        matches!(self.tried[at], Some(Tried::Worse(_)))
    }

    /// The commit to measure next: the ends, then the one nearest to the middle of those that may be it.
    pub(super) fn next(&self) -> Option<usize> {
        let last = self.tried.len() - 1;
        for end in [last, 0] {
            if self.tried[end].is_none() {
                return Some(end);
            }
            // An end that is not what it should be ends the search.
            let is_sound = if end == last { self.is_worse(end) } else { self.is_good(end) };
            if !is_sound {
                return None;
            }
        }
        let (good, bad) = self.found()?;
        let middle = good.midpoint(bad);
        (good + 1..bad).filter(|at| self.tried[*at].is_none()).min_by_key(|at| at.abs_diff(middle))
    }

    /// The last good commit before the first worse one after it, once both ends are what they should be. Commits between
    /// the two could not be measured.
    pub(super) fn found(&self) -> Option<(usize, usize)> {
        let last = self.tried.len() - 1;
        if !self.is_good(0) || !self.is_worse(last) {
            return None;
        }
        let bad = (0..=last).find(|at| self.is_worse(*at))?;
        let good = (0..bad).rev().find(|at| self.is_good(*at))?;
        Some((good, bad))
    }

    /// Those between the two that could not be measured, and why.
    pub(super) fn not_tried(&self) -> Vec<(usize, &str)> {
        let Some((good, bad)) = self.found() else { return Vec::new() };
        let between = (good + 1..bad).filter_map(|at| match &self.tried[at] {
            Some(Tried::Not(problem)) => Some((at, problem.as_str())),
            _ => None,
        });
        between.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches commits of which the first bad one is known, and those that cannot be measured; gives what was found and
    /// how many were measured.
    fn searched(commits: usize, first_bad: usize, broken: &[usize]) -> (Option<(usize, usize)>, usize) {
        let (mut search, mut measured) = (Search::new(commits), 0);
        while let Some(at) = search.next() {
            assert!(search.at(at).is_none(), "{at} is measured once");
            measured += 1;
            search.set(
                at,
                match at {
                    _ if broken.contains(&at) => Tried::Not("does not build".to_owned()),
                    _ if at >= first_bad => Tried::Worse(String::new()),
                    _ => Tried::Good(String::new()),
                },
            );
        }
        (search.found(), measured)
    }

    #[test]
    fn each_first_bad_commit_is_found_by_halves() {
        for commits in 1..=40_usize {
            for first_bad in 1..=commits {
                let (found, measured) = searched(commits, first_bad, &[]);
                assert_eq!(found, Some((first_bad - 1, first_bad)), "{commits} commits, {first_bad}");
                let halves = usize::try_from(commits.next_power_of_two().ilog2()).unwrap();
                assert!(measured <= 2 + halves, "{commits} commits, {first_bad}: {measured}");
            }
        }
    }

    #[test]
    fn commits_that_cannot_be_measured_widen_what_is_found() {
        for broken in 1..20 {
            for first_bad in 1..=20 {
                let (found, _) = searched(20, first_bad, &[broken, 7]);
                let (good, bad) = found.unwrap();
                assert!(good < first_bad && first_bad <= bad, "{broken} {first_bad}: {good} {bad}");
                let between: Vec<usize> = (good + 1..bad).collect();
                assert!(between.iter().all(|at| [broken, 7].contains(at)), "{broken} {first_bad}: {good} {bad}");
            }
        }
        let (found, _) = searched(5, 3, &[2, 3]);
        assert_eq!(found, Some((1, 4)));
    }

    #[test]
    fn ends_that_are_not_what_they_should_be_end_the_search() {
        assert_eq!(searched(9, 0, &[]), (None, 2), "all are worse: it is no commit's doing");
        assert_eq!(searched(9, 100, &[]), (None, 1), "none is worse any more");
        assert_eq!(searched(9, 4, &[9]), (None, 1));
        assert_eq!(searched(9, 4, &[0]), (None, 2));
    }
}
