//! Finds repeated custom_ids among any number of lines in fixed memory.
//!
//! Ids are kept as 128-bit fingerprints. Full chunks are sorted and written to a temporary file; at
//! the end all sorted runs are merged, and equal fingerprints are adjacent.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_128;

/// Entries in memory at a time: 128 Ki of 48 bytes.
const CHUNK: usize = 128 * 1024;

const ENTRY_BYTES: usize = 16 + 8 + 4 + 8;

/// Position of an id in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LinePosition {
    /// The line's number over all sources, from 0.
    pub(super) ordinal: u64,
    pub(super) source: u32,
    /// The line's number in its source, from 1.
    pub(super) line: u64,
}

/// Id that occurs at two positions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DuplicatePair {
    pub(super) first: LinePosition,
    pub(super) again: LinePosition,
}

type HashedId = (u128, LinePosition);

/// External sort of the ids.
#[derive(Default)]
pub(super) struct DuplicateFinder {
    scratch: PathBuf,
    chunk: Vec<HashedId>,
    runs: Vec<File>,
}

impl DuplicateFinder {
    pub(super) fn new(scratch: PathBuf) -> Self {
        Self { scratch, ..Self::default() }
    }

    pub(super) fn add(&mut self, id: &[u8], place: LinePosition) -> io::Result<()> {
        self.chunk.push((xxh3_128(id), place));
        if self.chunk.len() == CHUNK {
            self.spill()?;
        }
        Ok(())
    }

    /// Returns all positions whose id occurred at an earlier one, in no set order.
    pub(super) fn find(mut self) -> io::Result<Vec<DuplicatePair>> {
        self.chunk.sort_unstable();
        let chunk = std::mem::take(&mut self.chunk);
        let in_memory: Box<dyn Iterator<Item = io::Result<HashedId>>> =
            Box::new(chunk.into_iter().map(Ok));
        let mut runs = vec![in_memory];
        for mut run in self.runs {
            run.seek(SeekFrom::Start(0))?;
            runs.push(Box::new(SortedRun(BufReader::new(run))));
        }
        let mut heads = BinaryHeap::new();
        for (index, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next().transpose()?.map(|entry| Reverse((entry, index))));
        }
        let mut pairs = Vec::new();
        let mut first: Option<HashedId> = None;
        while let Some(Reverse(((id, place), index))) = heads.pop() {
            match first {
                Some((known, first)) if known == id => {
                    pairs.push(DuplicatePair { first, again: place })
                }
                _ => first = Some((id, place)),
            }
            heads.extend(runs[index].next().transpose()?.map(|entry| Reverse((entry, index))));
        }
        Ok(pairs)
    }

    fn spill(&mut self) -> io::Result<()> {
        self.chunk.sort_unstable();
        let mut run = BufWriter::new(tempfile::tempfile_in(&self.scratch)?);
        for (id, place) in self.chunk.drain(..) {
            run.write_all(&id.to_le_bytes())?;
            run.write_all(&place.ordinal.to_le_bytes())?;
            run.write_all(&place.source.to_le_bytes())?;
            run.write_all(&place.line.to_le_bytes())?;
        }
        self.runs.push(run.into_inner().map_err(io::IntoInnerError::into_error)?);
        Ok(())
    }
}

/// One sorted run, read back.
struct SortedRun(BufReader<File>);

impl Iterator for SortedRun {
    type Item = io::Result<HashedId>;

    fn next(&mut self) -> Option<io::Result<HashedId>> {
        let mut bytes = [0; ENTRY_BYTES];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
            Err(error) => return Some(Err(error)),
        }
        let number = |from: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[from + i]));
        let id = u128::from(number(0)) | u128::from(number(8)) << 64;
        let source = u32::from_le_bytes(std::array::from_fn(|i| bytes[24 + i]));
        Some(Ok((id, LinePosition { ordinal: number(16), source, line: number(28) })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(ids: impl Iterator<Item = String>) -> Vec<(u64, u64)> {
        let mut duplicates = DuplicateFinder::new(std::env::temp_dir());
        for (ordinal, id) in ids.enumerate() {
            let ordinal = ordinal as u64;
            let place = LinePosition { ordinal, source: 0, line: ordinal + 1 };
            duplicates.add(id.as_bytes(), place).unwrap();
        }
        let mut pairs: Vec<_> = duplicates
            .find()
            .unwrap()
            .into_iter()
            .map(|pair| (pair.first.ordinal, pair.again.ordinal))
            .collect();
        pairs.sort_unstable();
        pairs
    }

    #[test]
    fn repeats_point_at_the_first_place() {
        let ids = ["a", "b", "a", "c", "a"].map(String::from);
        assert_eq!(find(ids.into_iter()), [(0, 2), (0, 4)]);
    }

    #[test]
    fn repeats_are_found_across_spilled_runs() {
        let n = 2 * CHUNK as u64 + 10;
        let ids = (0..n).map(|i| if i == n - 1 { "5".into() } else { i.to_string() });
        assert_eq!(find(ids), [(5, n - 1)]);
    }
}
