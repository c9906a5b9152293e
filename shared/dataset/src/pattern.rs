//! Globs over `/`-separated paths, as the crate `glob` reads them: `*`, `?` and `[a-z]` (`[!a]` for any other character)
//! stay inside one segment, `**` stands for any number of segments. `[[]` is a bracket.
//!
//! The same patterns select files on disk, objects in a store and members of an archive.

use glob::MatchOptions;

/// A star in front of a dot is a star: hidden files are left out where files are listed.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// A path pattern.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    segments: Vec<String>,
    whole: glob::Pattern,
}

impl Pattern {
    /// Reads a pattern, or says what is wrong with it.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let whole = glob::Pattern::new(text).map_err(|error| {
            let from = text.get(error.pos..).unwrap_or_default();
            if from.starts_with('[') {
                format!("the bracket of {from:?} opens a class of characters such as [0-9] that does not end; write [[] for a bracket")
            } else {
                format!("as a pattern it is wrong at {from:?}: {}", error.msg)
            }
        })?;
        Ok(Self { segments: text.split('/').map(str::to_owned).collect(), whole })
    }

    /// Whether a text has a wildcard at all.
    pub(crate) fn is_one(text: &str) -> bool {
        text.contains(['*', '?', '['])
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
        self.whole.matches_with(path, OPTIONS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stay_inside_a_segment_unless_doubled() {
        let cases = [
            ("a/*.txt", "a/b.txt", true),
            ("a/*.txt", "a/b/c.txt", false),
            ("a/**/*.txt", "a/b/c.txt", true),
            ("a/**/*.txt", "a/c.txt", true),
            ("a/**", "a/b/c.txt", true),
            ("*_GroundTruth.txt", "tweets_GroundTruth.txt", true),
            ("part-???.parquet", "part-001.parquet", true),
            ("part-???.parquet", "part-01.parquet", false),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxxbc", false),
            ("part-[01].parquet", "part-1.parquet", true),
            ("part-[01].parquet", "part-2.parquet", false),
            ("part-[01].parquet", "part-[01].parquet", false),
            ("part-[0-9][a-c].parquet", "part-7b.parquet", true),
            ("part-[!0].parquet", "part-1.parquet", true),
            ("part-[!0].parquet", "part-0.parquet", false),
            ("a[!b]c", "a/c", false),
            ("[[]x]", "[x]", true),
        ];
        for (pattern, path, wanted) in cases {
            assert_eq!(Pattern::new(pattern).unwrap().matches(path), wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_says_why() {
        let problem = Pattern::new("a/part-[01.parquet").unwrap_err();
        assert!(problem.contains("\"[01.parquet\" opens a class of characters such as [0-9]"), "{problem}");
        let problem = Pattern::new("a/b**/c").unwrap_err();
        assert!(problem.starts_with("as a pattern it is wrong at \"**/c\": "), "{problem}");
    }

    #[test]
    fn the_fixed_folder_bounds_the_listing() {
        let pattern = Pattern::new("/data/x/*/part-*.parquet").unwrap();
        assert_eq!((pattern.fixed_folder().as_str(), pattern.depth()), ("/data/x", Some(2)));
        assert_eq!(Pattern::new("/data/**/a.parquet").unwrap().depth(), None);
        assert_eq!(Pattern::new("/data/[ab]/c/x").unwrap().depth(), Some(3));
    }
}
