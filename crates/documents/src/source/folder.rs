//! Documents in a folder of this machine.
//!
//! A link to a file of the same folder is that file once more. A link out of the folder is listed
//! and refused when it is fetched: otherwise anyone who may write into the folder could have any
//! file of this machine read to a model. Links to folders are not followed, so there are no cycles.
//! Pipes, sockets and devices are no documents.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::document::{DocumentVersion, FetchedFile, FileLocation, ListedDocument};
use super::error::DocumentSourceError;
use super::glob_filter::GlobFilter;

/// A folder that exists.
#[derive(Debug, Clone)]
pub struct FolderSource {
    /// Canonical path, so that links out of it are detected.
    root: PathBuf,
}

impl FolderSource {
    pub(super) fn open(path: &Path) -> Result<Self, DocumentSourceError> {
        match path.canonicalize() {
            Ok(root) if root.is_dir() => Ok(Self { root }),
            _ => Err(DocumentSourceError::NoFolder { path: path.to_owned() }),
        }
    }

    pub(super) fn list(&self, filter: &GlobFilter) -> Vec<ListedDocument> {
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let at = self.root.join(&folder);
            let entries = fs::read_dir(at).and_then(Iterator::collect::<io::Result<Vec<DirEntry>>>);
            // `fetch` reports the reason.
            let Ok(entries) = entries else {
                found.push(ListedDocument::new(&folder, "/", None));
                continue;
            };
            for entry in entries {
                let path = folder.join(entry.file_name());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                    continue;
                }
                // Follows links; a broken one is listed, and reported missing by `fetch`.
                let metadata = fs::metadata(entry.path()).ok();
                if metadata.as_ref().is_none_or(Metadata::is_file) {
                    let listed = ListedDocument::new(&path, "", metadata.as_ref());
                    found.extend(Some(listed).filter(|listed| filter.matches(&listed.name)));
                }
            }
        }
        found
    }

    pub(super) fn fetch(
        &self,
        listed: &ListedDocument,
        limit: u64,
    ) -> Result<FetchedFile, DocumentSourceError> {
        let path = self.root.join(listed.path.as_deref().unwrap_or(Path::new(&listed.name)));
        if listed.name.ends_with('/') {
            fs::read_dir(&path)?;
            return Err(DocumentSourceError::Changed);
        }
        let real = path.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => DocumentSourceError::Vanished,
            _ => DocumentSourceError::Io(error),
        })?;
        if !real.starts_with(&self.root) {
            return Err(DocumentSourceError::OutsideSource);
        }
        let bytes = fs::metadata(&real)?.len();
        if bytes > limit {
            return Err(DocumentSourceError::TooLarge { bytes, limit });
        }
        Ok(FetchedFile(FileLocation::Original(path)))
    }
}

impl ListedDocument {
    fn new(path: &Path, end: &str, metadata: Option<&Metadata>) -> Self {
        let name = display_name(path) + end;
        let is_lossless = Path::new(&name) == path;
        Self {
            version: metadata.map_or(DocumentVersion(String::new()), DocumentVersion::of_file),
            bytes: metadata.map_or(0, Metadata::len),
            path: (!is_lossless).then(|| path.to_owned()),
            name,
        }
    }
}

impl DocumentVersion {
    fn of_file(metadata: &Metadata) -> Self {
        let changed = metadata.modified().ok();
        let nanos = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self(format!("{}-{}", metadata.len(), nanos.map_or(0, |nanos| nanos.as_nanos())))
    }
}

/// Returns a name with all bytes of the path: old Japanese folders are not in UTF-8.
fn display_name(path: &Path) -> String {
    let mut name = String::new();
    for part in path.components() {
        if !name.is_empty() {
            name.push('/');
        }
        for chunk in part.as_os_str().as_encoded_bytes().utf8_chunks() {
            name.push_str(chunk.valid());
            name.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> (tempfile::TempDir, FolderSource) {
        let dir = tempfile::tempdir().unwrap();
        let folder = FolderSource::open(dir.path()).unwrap();
        (dir, folder)
    }

    fn list(folder: &FolderSource) -> Vec<ListedDocument> {
        let mut found = folder.list(&GlobFilter::new(&["**/*".into()], &[]).unwrap());
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    fn names(found: &[ListedDocument]) -> Vec<&str> {
        found.iter().map(|listed| listed.name.as_str()).collect()
    }

    #[test]
    fn files_are_found_however_deep_and_whatever_they_are_called() {
        let (dir, folder) = folder();
        fs::create_dir_all(dir.path().join("規程/2026 年度")).unwrap();
        let sjis = OsStr::from_bytes(b"\x8b\x4b\x92\xf6.txt");
        for name in [Path::new("100% #1.md"), Path::new("規程/2026 年度/a.md"), Path::new(sjis)]
        {
            fs::write(dir.path().join(name), "text").unwrap();
        }
        let found = list(&folder);
        let expected = ["100% #1.md", "\\x8bK\\x92\\xf6.txt", "規程/2026 年度/a.md"];
        assert_eq!(names(&found), expected);
        for listed in &found {
            assert_eq!(listed.bytes, 4);
            let fetched = folder.fetch(listed, 4).unwrap();
            assert_eq!(fs::read(&*fetched).unwrap(), b"text");
        }
        let refused = folder.fetch(&found[0], 3);
        assert!(matches!(refused, Err(DocumentSourceError::TooLarge { bytes: 4, limit: 3 })));
    }

    #[test]
    fn no_link_leads_out_of_the_folder_or_round_in_it() {
        let (dir, folder) = folder();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "not theirs").unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::write(dir.path().join("in/a.txt"), "a").unwrap();
        symlink(outside.path(), dir.path().join("out.txt")).unwrap();
        symlink("in/a.txt", dir.path().join("same.txt")).unwrap();
        symlink("..", dir.path().join("in/round")).unwrap();
        symlink("nothing", dir.path().join("broken.txt")).unwrap();
        symlink("/dev/zero", dir.path().join("endless")).unwrap();
        let found = list(&folder);
        assert_eq!(names(&found), ["broken.txt", "in/a.txt", "out.txt", "same.txt"]);
        let fetched = |n: usize| folder.fetch(&found[n], 99);
        assert!(matches!(fetched(0), Err(DocumentSourceError::Vanished)));
        assert!(matches!(fetched(2), Err(DocumentSourceError::OutsideSource)));
        assert_eq!(fs::read(&*fetched(3).unwrap()).unwrap(), b"a");
    }

    #[test]
    fn a_file_that_changes_has_another_version_and_one_that_goes_is_told() {
        let (dir, folder) = folder();
        let path = dir.path().join("a.txt");
        fs::write(&path, "one").unwrap();
        let first = list(&folder);
        assert_eq!(list(&folder)[0].version, first[0].version);
        fs::write(&path, "three").unwrap();
        assert_ne!(list(&folder)[0].version, first[0].version);
        fs::remove_file(&path).unwrap();
        assert!(matches!(folder.fetch(&first[0], 99), Err(DocumentSourceError::Vanished)));
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_told_and_not_missed() {
        let (dir, folder) = folder();
        // Root may read what is forbidden; so the folder goes away under its listing's feet.
        let unread = ListedDocument::new(Path::new("closed"), "/", None);
        assert!(matches!(folder.fetch(&unread, 9), Err(DocumentSourceError::Io(_))));
        drop(dir);
        assert_eq!(names(&list(&folder)), ["/"]);
    }

    #[test]
    fn a_source_that_is_no_folder_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let said = FolderSource::open(file.path()).unwrap_err().to_string();
        assert!(said.contains(&*file.path().to_string_lossy()), "{said}");
    }
}
