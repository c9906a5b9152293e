//! Reads a composition as people write it: `a`, `Stack[a, b]`, `Parallel[a, Average[b:0.3, c:0.7]]`, `Split[a:16, b:8]`.
//!
//! A number behind a colon belongs to the child: a weight in `Average`, tokens in `Split`, rows in `BatchSplit`.

use graftwork_shared::{composition::Composition, id::Name};

/// Depth at which no sensible composition is any more; keeps a hostile text from exhausting the stack.
const DEEPEST: usize = 16;

/// Why a text is not a composition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}, at character {position} of {text:?}; write for example Stack[a, b] or Average[a:0.3, b:0.7]")]
pub(crate) struct ComposeError {
    problem: String,
    position: usize,
    text: String,
}

/// Reads a composition. Nestings and numbers are checked by [`Composition::check`] afterwards.
pub(crate) fn parse(text: &str) -> Result<Composition, ComposeError> {
    let mut parser = Parser { text, rest: text };
    let composition = parser.block(0)?;
    parser.skip_spaces();
    if parser.rest.is_empty() { Ok(composition) } else { Err(parser.error("more text than one composition")) }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

/// A child and the number behind its colon.
type Child = (Composition, Option<f64>);

impl<'a> Parser<'a> {
    fn block(&mut self, depth: usize) -> Result<Composition, ComposeError> {
        if depth > DEEPEST {
            return Err(self.error(&format!("more than {DEEPEST} blocks inside each other")));
        }
        let start = self.rest;
        let word = self.word();
        if !self.take('[') {
            return self.name(word, start).map(Composition::single);
        }
        let children = self.children(depth)?;
        let kind = word.to_ascii_lowercase();
        let takes_numbers = ["average", "split", "batchsplit"].contains(&kind.as_str());
        if !takes_numbers && children.iter().any(|(_, number)| number.is_some()) {
            self.rest = start;
            return Err(self.error(&format!("{word} takes no numbers")));
        }
        let numbers: Vec<Option<f64>> = children.iter().map(|(_, number)| *number).collect();
        let children: Vec<Composition> = children.into_iter().map(|(child, _)| child).collect();
        Ok(match kind.as_str() {
            "stack" => Composition::Stack { children },
            "fuse" => Composition::Fuse { children, name: None },
            "parallel" => Composition::Parallel { children },
            "average" => {
                let weights = numbers.iter().map(|number| number.unwrap_or(1.0)).collect();
                Composition::Average { children, weights, normalize: true }
            }
            "split" => Composition::Split { children, splits: self.counts(&numbers, "tokens", start)? },
            "batchsplit" => Composition::BatchSplit { children, batch_sizes: self.counts(&numbers, "rows", start)? },
            _ => {
                self.rest = start;
                return Err(self.error(&format!(
                    "{word:?} is no block; there are Stack, Fuse, Parallel, Average, Split and BatchSplit"
                )));
            }
        })
    }

    fn children(&mut self, depth: usize) -> Result<Vec<Child>, ComposeError> {
        let mut children = Vec::new();
        loop {
            let child = self.block(depth + 1)?;
            let number = if self.take(':') { Some(self.number()?) } else { None };
            children.push((child, number));
            if self.take(']') {
                return Ok(children);
            }
            if !self.take(',') {
                return Err(self.error("a comma or ] is missing"));
            }
        }
    }

    fn counts(&mut self, numbers: &[Option<f64>], what: &str, start: &'a str) -> Result<Vec<usize>, ComposeError> {
        let count = |number: &Option<f64>| number.filter(|n| n.fract() == 0.0 && (1.0..=1e6).contains(n));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of 1 to 1e6")]
        let counts = numbers.iter().map(|number| count(number).map(|n| n as usize)).collect::<Option<Vec<usize>>>();
        counts.ok_or_else(|| {
            self.rest = start;
            self.error(&format!("each child needs a whole number of {what} from 1 on behind a colon"))
        })
    }

    fn number(&mut self) -> Result<f64, ComposeError> {
        let start = self.rest;
        let word = self.word();
        word.parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(|| {
            self.rest = start;
            self.error("a number is missing")
        })
    }

    fn name(&mut self, word: &str, start: &'a str) -> Result<Name, ComposeError> {
        word.parse().map_err(|_| {
            self.rest = start;
            self.error("the name of an adapter is missing")
        })
    }

    /// Letters, digits and what else stands in names and numbers.
    fn word(&mut self) -> &'a str {
        self.skip_spaces();
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.+".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip_spaces();
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn error(&self, problem: &str) -> ComposeError {
        let before = &self.text[..self.text.len() - self.rest.trim_start().len()];
        ComposeError {
            problem: problem.to_owned(),
            position: before.chars().count() + 1,
            text: self.text.chars().take(200).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(name: &str) -> Composition {
        Composition::single(name.parse().unwrap())
    }

    #[test]
    fn blocks_nest_and_numbers_belong_to_children() {
        assert_eq!(parse(" a ").unwrap(), single("a"));
        let average = Composition::Average {
            children: vec![single("b"), single("c-2")],
            weights: vec![0.25, 1.0],
            normalize: true,
        };
        let expected = Composition::Parallel { children: vec![single("a"), average] };
        assert_eq!(parse("parallel[a,Average[b:0.25, c-2]]").unwrap(), expected);
        let split = Composition::Split { children: vec![single("a"), single("b")], splits: vec![16, 8] };
        assert_eq!(parse("Split[a:16, b:8]").unwrap(), split);
        let rows = Composition::BatchSplit { children: vec![single("a"), single("b")], batch_sizes: vec![1, 3] };
        assert_eq!(parse("BatchSplit[a : 1, b : 3]").unwrap(), rows);
    }

    #[test]
    fn mistakes_name_their_place() {
        for (text, problem, position) in [
            ("", "the name of an adapter is missing", 1),
            ("Stack[a b]", "a comma or ] is missing", 9),
            ("Stack[a,]", "the name of an adapter is missing", 9),
            ("Heap[a]", "\"Heap\" is no block", 1),
            ("Split[a:1.5, b:2]", "each child needs a whole number of tokens", 1),
            ("BatchSplit[a, b:2]", "each child needs a whole number of rows", 1),
            ("Average[a:x]", "a number is missing", 11),
            ("Stack[a:1]", "Stack takes no numbers", 1),
            ("a b", "more text than one composition", 3),
            ("Stack[é]", "the name of an adapter is missing", 7),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.problem.starts_with(problem), "{text}: {error}");
            assert_eq!(error.position, position, "{text}: {error}");
        }
        assert!(parse(&"Stack[".repeat(1000)).unwrap_err().problem.starts_with("more than 16"));
    }
}
