//! Opens office files, zip archives of XML parts, and bounds their unpacking.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};

use zip::ZipArchive;
use zip::result::ZipError;

use super::xml::{XmlNode, XmlNodes, attribute};
use super::{Document, ReadError, ReadLimits, plain};

/// Zip archive that unpacks no more than its limit.
pub(super) struct OfficePackage {
    archive: ZipArchive<Cursor<Vec<u8>>>,
    /// Bytes that may still be unpacked.
    left: u64,
    limit: u64,
}

impl OfficePackage {
    pub(super) fn open(bytes: Vec<u8>, limits: &ReadLimits) -> Result<Self, ReadError> {
        let archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
        let limit = limits.unpacked_bytes;
        // If the directory itself declares a bomb, nothing of it need be unpacked.
        if archive.decompressed_size().is_some_and(|size| size > u128::from(limit)) {
            return Err(ReadError::UnpacksTooFar { limit });
        }
        Ok(Self { archive, left: limit, limit })
    }

    /// Returns the text of a part; `None` if there is no such part.
    ///
    /// # Errors
    /// If it is broken, or the limit is exceeded.
    pub(super) fn part(&mut self, name: &str) -> Result<Option<String>, ReadError> {
        let Self { archive, left, limit } = self;
        let mut part = match archive.by_name(name) {
            Ok(part) => part,
            Err(ZipError::FileNotFound) => return Ok(None),
            Err(ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED)) => {
                return Err(ReadError::Encrypted);
            }
            Err(error) => return Err(broken(error)),
        };
        let mut bytes = Vec::new();
        part.by_ref().take(*left + 1).read_to_end(&mut bytes).map_err(|e| broken(e.into()))?;
        *left = left
            .checked_sub(bytes.len() as u64)
            .ok_or(ReadError::UnpacksTooFar { limit: *limit })?;
        plain::decode(&bytes).map(Some)
    }

    /// Returns the parts that a part refers to, by their relationship ids.
    ///
    /// # Errors
    /// If the list is broken.
    pub(super) fn relationships(
        &mut self,
        part: &str,
    ) -> Result<HashMap<String, PartRelationship>, ReadError> {
        let (folder, file) = part.rsplit_once('/').unwrap_or(("", part));
        let name = format!("{folder}/_rels/{file}.rels");
        let text = self.part(name.trim_start_matches('/'))?.unwrap_or_default();
        let mut nodes = XmlNodes::new(&text, "office file");
        let mut found = HashMap::new();
        while let Some(node) = nodes.next()? {
            let XmlNode::Start(start) = node else { continue };
            let get = |name| attribute(&start, name);
            if let (Some(id), Some(kind), Some(target)) = (get("Id"), get("Type"), get("Target")) {
                let kind = kind.rsplit('/').next().unwrap_or_default().to_owned();
                found.insert(id, PartRelationship { kind, part: resolve(folder, &target) });
            }
        }
        Ok(found)
    }

    /// Returns the part that holds the document itself.
    pub(super) fn main_part(&mut self) -> Result<Option<String>, ReadError> {
        let all = self.relationships("")?;
        let main = all.into_values().find(|one| one.kind == "officeDocument");
        Ok(main.map(|main| main.part))
    }

    pub(super) fn is_office(&self) -> bool {
        self.archive.index_for_name("[Content_Types].xml").is_some()
    }

    /// Returns the archive's bytes, after each member was unpacked once to check that all fit: for
    /// a reader that bounds nothing itself.
    ///
    /// # Errors
    /// If they don't fit, or a member is broken.
    pub(super) fn verified(mut self) -> Result<Cursor<Vec<u8>>, ReadError> {
        for n in 0..self.archive.len() {
            let mut part = self.archive.by_index(n).map_err(broken)?.take(self.left + 1);
            let size = io::copy(&mut part, &mut io::sink()).map_err(|e| broken(e.into()))?;
            self.left = self
                .left
                .checked_sub(size)
                .ok_or(ReadError::UnpacksTooFar { limit: self.limit })?;
        }
        let mut bytes = self.archive.into_inner();
        bytes.set_position(0);
        Ok(bytes)
    }

    /// Sets the metadata of `docProps/core.xml`: title, author, subject, date, language.
    ///
    /// # Errors
    /// If it is broken.
    pub(super) fn read_properties(&mut self, document: &mut Document) -> Result<(), ReadError> {
        let text = self.part("docProps/core.xml")?.unwrap_or_default();
        let mut nodes = XmlNodes::new(&text, "office file");
        let mut name = None;
        while let Some(node) = nodes.next()? {
            match node {
                XmlNode::Start(start) => {
                    name = match start.local_name().as_ref() {
                        "title" => Some("title"),
                        "creator" => Some("author"),
                        "subject" => Some("subject"),
                        "modified" => Some("date"),
                        "language" => Some("language"),
                        _ => None,
                    }
                }
                XmlNode::Text(text) => {
                    if let Some(name) = name {
                        document.set_metadata(name, &*text);
                    }
                }
                XmlNode::End(_) => name = None,
            }
        }
        Ok(())
    }
}

/// Reference from one part to another.
pub(super) struct PartRelationship {
    /// The last word of its type, such as `slide`.
    pub kind: String,
    pub part: String,
}

/// Resolves a target to a part: absolute, or relative to the folder of the referring part.
fn resolve(folder: &str, target: &str) -> String {
    let mut path: Vec<&str> = match target.strip_prefix('/') {
        Some(_) => Vec::new(),
        None => folder.split('/').filter(|step| !step.is_empty()).collect(),
    };
    for step in target.split('/') {
        match step {
            "" | "." => {}
            ".." => drop(path.pop()),
            step => path.push(step),
        }
    }
    path.join("/")
}

fn broken(error: ZipError) -> ReadError {
    ReadError::broken("zip archive", error)
}
