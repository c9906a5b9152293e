//! Which versions work side by side, so that a cluster can be upgraded one process after the other.
//!
//! What goes over the wire grows and does not change within a major version: new fields have defaults, and a message that
//! a peer does not know is left out. One minor version later nothing of an older one need be understood any more.

/// Major and minor number of a version such as `1.4.2`.
fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Whether programs of these versions may talk to each other.
fn works_with(ours: &str, theirs: &str) -> bool {
    match (numbers(ours), numbers(theirs)) {
        (Some((major, minor)), Some((their_major, their_minor))) => {
            major == their_major && minor.abs_diff(their_minor) <= 1
        }
        _ => false,
    }
}

/// Why a coordinator of the version `ours` does not serve this peer (a worker, a command) of the version `theirs`, and what
/// to do; `None` if it does.
pub fn objection(peer: &str, theirs: &str, ours: &str) -> Option<String> {
    (!works_with(ours, theirs)).then(|| {
        format!(
            "the {peer} is version {theirs:?} and the coordinator is version {ours:?}; versions of one major number \
             work side by side when their minor numbers differ by one at most: upgrade the older one"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_work_side_by_side_and_others_do_not() {
        for theirs in ["1.3.0", "1.4.9", "1.5.0-rc.1"] {
            assert!(works_with("1.4.2", theirs), "{theirs}");
        }
        for theirs in ["1.2.9", "1.6.0", "2.4.2", "0.4.2", "", "1", "one.4.2", "1.x"] {
            assert!(!works_with("1.4.2", theirs), "{theirs}");
        }
    }

    #[test]
    fn an_objection_names_both_versions_and_says_what_to_do() {
        assert_eq!(objection("worker", "1.3.0", "1.4.2"), None);
        let said = objection("command", "1.2.9", "1.4.2").unwrap();
        let versions = "the command is version \"1.2.9\" and the coordinator is version \"1.4.2\"; ";
        assert!(said.starts_with(versions), "{said}");
        assert!(said.ends_with("upgrade the older one"), "{said}");
    }
}
