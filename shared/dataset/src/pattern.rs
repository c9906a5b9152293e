//! Globs over `/`-separated paths: `*` and `?` stay inside one segment, `**` stands for any number of segments.
//!
//! The same patterns select files on disk, objects in a store and members of an archive.

/// A path pattern.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    segments: Vec<String>,
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Self {
        Self { segments: text.split('/').map(str::to_owned).collect() }
    }

    /// Whether a text has a wildcard at all.
    pub(crate) fn is_one(text: &str) -> bool {
        text.contains(['*', '?'])
    }

    /// The leading segments without a wildcard, joined by `/`, never the last segment.
    pub(crate) fn fixed_folder(&self) -> String {
        let fixed = self.segments[..self.segments.len() - 1].iter().take_while(|segment| !Self::is_one(segment));
        fixed.map(String::as_str).collect::<Vec<_>>().join("/")
    }

    /// How many segments a match has below the fixed folder; `None` when `**` lets it be any number.
    pub(crate) fn depth(&self) -> Option<usize> {
        let fixed = self.segments[..self.segments.len() - 1].iter().take_while(|segment| !Self::is_one(segment));
        let open = self.segments.iter().any(|segment| segment == "**");
        (!open).then(|| self.segments.len() - fixed.count())
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        matches_segments(&self.segments, &path)
    }
}

fn matches_segments(pattern: &[String], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => (0..=path.len()).any(|skip| matches_segments(rest, &path[skip..])),
        Some((first, rest)) => path.split_first().is_some_and(|(name, tail)| {
            matches_name(first.as_bytes(), name.as_bytes()) && matches_segments(rest, tail)
        }),
    }
}

/// Wildcards within one name, in time `pattern × name` at most.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            // A mismatch after a star: let the star take one byte more.
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_inside_a_segment_unless_doubled() {
        let cases = [
            ("a/*.txt", "a/b.txt", true),
            ("a/*.txt", "a/b/c.txt", false),
            ("a/**/*.txt", "a/b/c.txt", true),
            ("a/**/*.txt", "a/c.txt", true),
            ("*_GroundTruth.txt", "tweets_GroundTruth.txt", true),
            ("part-???.parquet", "part-001.parquet", true),
            ("part-???.parquet", "part-01.parquet", false),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxxbc", false),
        ];
        for (pattern, path, wanted) in cases {
            assert_eq!(Pattern::new(pattern).matches(path), wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn the_fixed_folder_bounds_the_listing() {
        let pattern = Pattern::new("/data/x/*/part-*.parquet");
        assert_eq!((pattern.fixed_folder().as_str(), pattern.depth()), ("/data/x", Some(2)));
        assert_eq!(Pattern::new("/data/**/a.parquet").depth(), None);
    }
}
