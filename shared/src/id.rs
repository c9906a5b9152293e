//! Newtype names and numbers, so that no two kinds of id can be exchanged by mistake.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// A text that cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name: use 1 to 64 of a-z, A-Z, 0-9, '_' and '-', the first a letter or a digit")]
pub struct NotAName(pub String);

/// Name of a task, a fusion or an adapter: 1 to 64 of `a-z A-Z 0-9 _ -`, the first a letter or a digit.
///
/// Commas, dots and slashes are left out because names become parts of tensor names and of file paths.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether AdapterHub's Python library cannot load an adapter or a head of this name: it keeps them in torch's
    /// `ModuleDict`, which takes no key that is one of its attributes, such as `half` or `keys`.
    pub fn is_taken_in_torch(&self) -> bool {
        ATTRIBUTES_OF_MODULE_DICT.binary_search(&self.as_str()).is_ok()
    }
}

/// Names that no module in a dictionary of Python's torch can have, sorted: `sorted(dir(torch.nn.ModuleDict({})))` of torch 2.11.0,
/// without those that begin with an underscore and so are no [`Name`] anyway. `ModuleDict` refuses a key that is an
/// attribute of itself, and AdapterHub keeps adapters and heads in such dictionaries by their names.
const ATTRIBUTES_OF_MODULE_DICT: [&str; 60] = [
    "T_destination",
    "add_module",
    "apply",
    "bfloat16",
    "buffers",
    "call_super_init",
    "children",
    "clear",
    "compile",
    "cpu",
    "cuda",
    "double",
    "dump_patches",
    "eval",
    "extra_repr",
    "float",
    "forward",
    "get_buffer",
    "get_extra_state",
    "get_parameter",
    "get_submodule",
    "half",
    "ipu",
    "items",
    "keys",
    "load_state_dict",
    "modules",
    "mtia",
    "named_buffers",
    "named_children",
    "named_modules",
    "named_parameters",
    "parameters",
    "pop",
    "register_backward_hook",
    "register_buffer",
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_module",
    "register_parameter",
    "register_state_dict_post_hook",
    "register_state_dict_pre_hook",
    "requires_grad_",
    "set_extra_state",
    "set_submodule",
    "share_memory",
    "state_dict",
    "to",
    "to_empty",
    "train",
    "training",
    "type",
    "update",
    "values",
    "xpu",
    "zero_grad",
];

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first && text.len() <= 64 && text.bytes().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAName(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A job: the first 16 hexadecimal digits of its digest, so that the same file is the same job everywhere.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// The id of the job with this digest.
    pub fn of(digest: &Digest) -> Self {
        Self(digest.to_string()[..16].to_owned())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that cannot be a job's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no job id, which has 16 hexadecimal digits; `graftwork status` lists the jobs")]
pub struct NotAJobId(String);

impl FromStr for JobId {
    type Err = NotAJobId;

    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        if text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAJobId(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A worker session, as the coordinator numbers them; never used again within a state folder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u64);

/// How many coordinators have led this state so far. Each start takes the next one; all that workers and coordinators say
/// to each other carries it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(pub u64);

/// One grant of one assignment to one worker. Growing numbers: an older lease can never commit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker-{}", self.0)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}", self.0)
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lease {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_paths_or_tensor_names_are_refused() {
        for wrong in ["", "a,b", "a.b", "../x", "a b", "-a", "é"] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
        assert_eq!("question_type-2".parse::<Name>().unwrap().as_str(), "question_type-2");
    }

    #[test]
    fn attributes_of_torchs_module_dict_are_known() {
        assert!(ATTRIBUTES_OF_MODULE_DICT.is_sorted());
        let taken = |name: &str| name.parse::<Name>().unwrap().is_taken_in_torch();
        assert!(["half", "type", "float", "train", "training", "to", "keys", "T_destination"].into_iter().all(taken));
        assert!(!["half_task", "Half", "topic", "slot0", "trained"].into_iter().any(taken));
    }
}
