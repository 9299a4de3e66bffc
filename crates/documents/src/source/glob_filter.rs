//! Selects names by a recipe's globs.

use glob::{MatchOptions, Pattern};

use super::error::DocumentSourceError;

/// Rules of shells: `*` stays in its folder and skips hidden names; but `.PDF` is a `*.pdf`.
const GLOB_OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: false,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Globs of the selected names.
pub(super) struct GlobFilter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl GlobFilter {
    pub(super) fn new(include: &[String], exclude: &[String]) -> Result<Self, DocumentSourceError> {
        Ok(Self { include: patterns(include)?, exclude: patterns(exclude)? })
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let finds = |globs: &[Pattern]| globs.iter().any(|g| g.matches_with(name, GLOB_OPTIONS));
        finds(&self.include) && !finds(&self.exclude)
    }
}

fn patterns(globs: &[String]) -> Result<Vec<Pattern>, DocumentSourceError> {
    let pattern = |glob: &String| {
        Pattern::new(glob)
            .map_err(|source| DocumentSourceError::Glob { glob: glob.clone(), source })
    };
    globs.iter().map(pattern).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(include: &[&str], exclude: &[&str], name: &str) -> bool {
        let owned = |globs: &[&str]| globs.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
        GlobFilter::new(&owned(include), &owned(exclude)).unwrap().matches(name)
    }

    #[test]
    fn a_glob_finds_what_a_shells_would() {
        for (glob, name, found) in [
            ("**/*", "a.md", true),
            ("**/*", "規程/就業規則.md", true),
            ("**/*.md", "deep/er/a.md", true),
            ("*.md", "deep/a.md", false),
            ("reports/**", "reports/2026/a.md", true),
            ("**/*.pdf", "SCAN.PDF", true),
            ("**/*", ".git/config", false),
            ("**/*", "notes/.draft.md", false),
            (".notes/*", ".notes/a.md", true),
            ("議事録*.txt", "議事録 2026年.txt", true),
        ] {
            assert_eq!(takes(&[glob], &[], name), found, "{glob} {name}");
        }
    }

    #[test]
    fn exclude_goes_before_include() {
        assert!(takes(&["**/*.md", "**/*.txt"], &["drafts/**"], "a.txt"));
        assert!(!takes(&["**/*.md"], &["drafts/**"], "drafts/new/a.md"));
        assert!(!takes(&[], &[], "a.txt"), "no glob finds nothing");
    }

    #[test]
    fn a_glob_that_is_none_is_named() {
        let said = GlobFilter::new(&["a***".into()], &[]).err().unwrap().to_string();
        assert!(said.contains("'a***'"), "{said}");
    }
}
