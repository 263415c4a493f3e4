//! The index on a local disk: one append-only file, `records.log`.
//!
//! Readers map it and walk its entry headers; an entry's content is checked and decoded when it is asked for. Writers
//! append under an exclusive lock on `records.lock` and sync. Nothing is ever overwritten or cut off in place: what a
//! crash or a bad disk leaves unreadable is skipped by readers (they look for the next entry), and the next writer
//! copies what is whole into a new file and renames it, so a reader's mapping stays what it was.
#![allow(unsafe_code)]

use super::entry::{self, HEADER, Header, Kind, MAGIC as ENTRY_MAGIC};
use super::{Fate, Hit, Index, Inserted, Record};
use crate::error::Result;
use crate::store::digest::{Digest, DigestMap};
use crate::store::disk::{self, CacheIo, Durability};
use crate::store::warning::Warnings;
use memmap2::Mmap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

/// What the file begins with.
const MAGIC: &[u8; 16] = b"runner records1\n";

/// The log of a cache.
pub struct Log {
    path: PathBuf,
    lock: PathBuf,
    tmp: PathBuf,
    warnings: Warnings,
    state: RwLock<State>,
}

/// What is known of the file.
#[derive(Default)]
struct State {
    /// Device and inode: another file stands at the path after a compaction.
    file: Option<(u64, u64)>,
    map: Option<Mmap>,
    /// Up to here the file was walked. Behind it lies nothing, or an entry that is not complete.
    walked: usize,
    /// Stretches before `walked` that are no entries.
    damage: Vec<Range<usize>>,
    /// Where each key's entries begin, first one first. There are several only if an earlier one was damaged.
    records: DigestMap<Places>,
    /// Where deviations begin.
    deviations: Vec<(Digest, usize)>,
}

/// One place nearly always; a `Vec` would cost an allocation per record.
#[derive(Clone, Debug)]
struct Places {
    first: usize,
    more: Vec<usize>,
}

impl Log {
    /// The log in the cache at `root`; the file need not exist.
    pub fn new(root: &Path, warnings: Warnings) -> Log {
        Log {
            path: root.join("records.log"),
            lock: root.join("records.lock"),
            tmp: root.join("tmp"),
            warnings,
            state: RwLock::default(),
        }
    }

    /// Waits until no other thread or process writes. Writers hold it for milliseconds.
    fn exclusive(&self) -> Result<File> {
        let file = disk::with_parent(&self.lock, || {
            OpenOptions::new().create(true).truncate(false).write(true).open(&self.lock)
        })
        .in_cache("open", &self.lock)?;
        file.lock().in_cache("lock", &self.lock)?;
        Ok(file)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, brought up to date with the file.
    fn fresh(&self) -> Result<RwLockWriteGuard<'_, State>> {
        let mut state = self.write_state();
        state.refresh(&self.path)?;
        if !state.damage.is_empty() {
            let bytes: usize = state.damage.iter().map(Range::len).sum();
            self.warnings.push(format!(
                "`{}` has {bytes} unreadable bytes; records in them are computed again",
                self.path.display()
            ));
        }
        Ok(state)
    }

    /// Runs `look` on what is known; if it finds nothing, once more on what the file says now.
    fn find<T>(&self, look: impl Fn(&State) -> Option<T>) -> Result<Option<T>> {
        let known = look(&self.state.read().unwrap_or_else(PoisonError::into_inner));
        match known {
            Some(found) => Ok(Some(found)),
            None => Ok(look(&*self.fresh()?)),
        }
    }

    fn damaged(&self, key: &Digest) {
        self.warnings.push(format!("the record of {} is damaged and counts as missing", key.short()));
    }

    /// Copies what is whole and alive into a new file. The caller holds the lock.
    fn rewrite(&self, state: &mut State) -> Result<()> {
        let mut bytes = MAGIC.to_vec();
        let mut alive: Vec<(usize, usize)> = Vec::with_capacity(state.records.len());
        for (key, places) in &state.records {
            match places.all().find(|&at| state.record_at(at).is_some()) {
                Some(at) => {
                    let n_bytes = state.entry(at).map_or(0, |(header, _)| header.len());
                    alive.push((at, n_bytes));
                    for (_, at) in state.deviations.iter().filter(|(of, _)| of == key) {
                        if let (Some(_), Some((header, _))) = (state.record_at(*at), state.entry(*at)) {
                            alive.push((*at, header.len()));
                        }
                    }
                }
                None => self.damaged(key),
            }
        }
        // The order of the file stays.
        alive.sort_unstable();
        for (at, n_bytes) in alive {
            bytes.extend_from_slice(state.bytes().get(at..at + n_bytes).unwrap_or_default());
        }
        disk::replace(&self.tmp, &self.path, &bytes, Durability::Synced)?;
        state.refresh(&self.path)
    }

    /// Appends entries in one write and syncs. The caller holds the lock, and nothing unreadable lies at the end.
    fn append(&self, state: &mut State, entries: &[u8]) -> Result<()> {
        if state.map.is_none() {
            let bytes = [MAGIC.as_slice(), entries].concat();
            disk::replace(&self.tmp, &self.path, &bytes, Durability::Synced)?;
        } else {
            // Should this fail midway, the rest of an entry stays at the end, which the next writer clears away.
            let mut file = OpenOptions::new().append(true).open(&self.path).in_cache("open", &self.path)?;
            file.write_all(entries).in_cache("write", &self.path)?;
            file.sync_data().in_cache("write", &self.path)?;
        }
        state.refresh(&self.path)
    }
}

impl Index for Log {
    fn newest(&self, visit: &mut dyn FnMut(Digest, Hit) -> bool) {
        // What cannot be read now is told when it is asked for.
        if self.fresh().is_err() {
            return;
        }
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut places: Vec<usize> = state.records.values().map(|places| places.first).collect();
        places.sort_unstable();
        for at in places.into_iter().rev() {
            let Some((header, bytes)) = state.entry(at) else { continue };
            if let Some(hit) = header.hit(bytes)
                && !visit(header.key, hit)
            {
                return;
            }
        }
    }

    fn hit(&self, key: &Digest) -> Result<Option<Hit>> {
        let found = self.find(|state| state.find(key, |header, bytes| header.hit(bytes)))?;
        if found.is_none() && self.state.read().unwrap_or_else(PoisonError::into_inner).records.contains_key(key) {
            self.damaged(key);
        }
        Ok(found)
    }

    fn record(&self, key: &Digest) -> Result<Option<Record>> {
        let found = self.find(|state| state.record(key))?;
        if found.is_none() && self.state.read().unwrap_or_else(PoisonError::into_inner).records.contains_key(key) {
            self.damaged(key);
        }
        Ok(found)
    }

    fn insert(&self, record: &Record, usable: &dyn Fn(&Hit) -> bool) -> Result<Inserted> {
        let _lock = self.exclusive()?;
        let mut state = self.fresh()?;
        let existing = state.record(&record.key);
        let is_damaged = existing.is_none() && state.records.contains_key(&record.key);
        if is_damaged || !state.is_whole() {
            self.rewrite(&mut state)?;
        }
        let (entries, outputs, fate) = match existing {
            None => (entry::encode(Kind::Record, record)?, &record.outputs, Fate::New),
            Some(old) if old.has_outputs_of(record) => {
                return Ok(Inserted { outputs: old.outputs, fate: Fate::Same });
            }
            Some(old) if usable(&old.hit()) => {
                let noted = state.deviations().any(|d| d.key == record.key && d.has_outputs_of(record));
                if !noted {
                    let entries = entry::encode(Kind::Deviation, record)?;
                    self.append(&mut state, &entries)?;
                }
                return Ok(Inserted { outputs: old.outputs, fate: Fate::Deviates });
            }
            Some(old) => {
                let mut entries = entry::tombstone(&record.key)?;
                entries.extend(entry::encode(Kind::Record, record)?);
                entries.extend(entry::encode(Kind::Deviation, &old)?);
                (entries, &record.outputs, Fate::Deviates)
            }
        };
        self.append(&mut state, &entries)?;
        Ok(Inserted { outputs: outputs.clone(), fate })
    }

    fn remove(&self, keys: &[Digest]) -> Result<()> {
        let _lock = self.exclusive()?;
        let mut state = self.fresh()?;
        let mut entries = Vec::new();
        for key in keys.iter().filter(|key| state.records.contains_key(*key)) {
            entries.extend(entry::tombstone(key)?);
        }
        if entries.is_empty() {
            return Ok(());
        }
        if !state.is_whole() {
            self.rewrite(&mut state)?;
        }
        self.append(&mut state, &entries)
    }

    fn compact(&self) -> Result<()> {
        let _lock = self.exclusive()?;
        let mut state = self.fresh()?;
        if state.map.is_some() { self.rewrite(&mut state) } else { Ok(()) }
    }

    fn keys(&self) -> Result<Vec<Digest>> {
        let mut keys: Vec<Digest> = self.fresh()?.records.keys().copied().collect();
        keys.sort_unstable();
        Ok(keys)
    }

    fn deviations(&self) -> Result<Vec<Record>> {
        Ok(self.fresh()?.deviations().collect())
    }
}

impl Places {
    fn all(&self) -> impl Iterator<Item = usize> + '_ {
        std::iter::once(self.first).chain(self.more.iter().copied())
    }
}

impl State {
    fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Whether the file holds entries from beginning to end.
    fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.walked == self.bytes().len()
    }

    fn entry(&self, at: usize) -> Option<(Header, &[u8])> {
        let bytes = self.bytes().get(at..)?;
        // The walk has checked it, and a mapping does not change.
        Some((Header::decode_checked(bytes)?, bytes))
    }

    fn find<T>(&self, key: &Digest, decode: impl Fn(Header, &[u8]) -> Option<T>) -> Option<T> {
        self.records.get(key)?.all().find_map(|at| {
            let (header, bytes) = self.entry(at)?;
            decode(header, bytes)
        })
    }

    fn record(&self, key: &Digest) -> Option<Record> {
        self.find(key, |header, bytes| header.record(bytes))
    }

    fn record_at(&self, at: usize) -> Option<Record> {
        let (header, bytes) = self.entry(at)?;
        header.record(bytes)
    }

    fn deviations(&self) -> impl Iterator<Item = Record> + '_ {
        self.deviations.iter().filter_map(|(_, at)| self.record_at(*at))
    }

    /// Maps what the file holds now and walks what is new.
    fn refresh(&mut self, path: &Path) -> Result<()> {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                *self = State::default();
                return Ok(());
            }
            Err(error) => return Err(error).in_cache("read", path),
        };
        let is_known = self.file == Some((metadata.dev(), metadata.ino()));
        if is_known && metadata.len() == self.bytes().len() as u64 {
            return Ok(());
        }
        let file = File::open(path).in_cache("open", path)?;
        let metadata = file.metadata().in_cache("read", path)?;
        let file_id = (metadata.dev(), metadata.ino());
        if self.file != Some(file_id) || metadata.len() < self.walked as u64 {
            *self = State::default();
        }
        self.file = Some(file_id);
        if metadata.len() == 0 {
            return Ok(());
        }
        // SAFETY: the log is only ever appended to, or replaced by rename; it is never cut or written in place, so the
        // mapped bytes stay there and stay what they are.
        self.map = Some(unsafe { Mmap::map(&file) }.in_cache("map", path)?);
        self.walk();
        Ok(())
    }

    fn walk(&mut self) {
        // The walk needs the bytes while it fills the maps.
        let Some(map) = self.map.take() else { return };
        let mut at = self.walked;
        if at == 0 && map.starts_with(MAGIC) {
            at = MAGIC.len();
        }
        while at < map.len() {
            let Some(header) = Header::decode(&map[at..]) else {
                match next_entry(&map, at) {
                    Some(next) => {
                        self.damage.push(at..next);
                        at = next;
                        continue;
                    }
                    // An entry that is being written, or never will be.
                    None => break,
                }
            };
            let end = at.saturating_add(header.len());
            if end > map.len() {
                break;
            }
            self.note(&header, at);
            at = end;
        }
        self.walked = at;
        self.map = Some(map);
    }

    fn note(&mut self, header: &Header, at: usize) {
        match header.kind {
            Kind::Record => match self.records.get_mut(&header.key) {
                Some(places) => places.more.push(at),
                None => {
                    self.records.insert(header.key, Places { first: at, more: Vec::new() });
                }
            },
            Kind::Deviation => self.deviations.push((header.key, at)),
            Kind::Tombstone => {
                self.records.remove(&header.key);
                self.deviations.retain(|(key, _)| *key != header.key);
            }
        }
    }
}

/// Where the next undamaged header behind `at` begins.
fn next_entry(bytes: &[u8], at: usize) -> Option<usize> {
    let last = bytes.len().checked_sub(HEADER)?;
    (at + 1..=last).find(|&i| bytes[i..i + 4] == ENTRY_MAGIC && Header::decode(&bytes[i..]).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::tests::record;
    use std::os::unix::fs::FileExt;

    const USABLE: fn(&Hit) -> bool = |_| true;

    fn log(root: &Path) -> Log {
        Log::new(root, Warnings::default())
    }

    /// The bytes of a log with records 0..n, and where each entry ends.
    fn sample(n: u64) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = MAGIC.to_vec();
        let mut ends = Vec::new();
        for i in 0..n {
            bytes.extend(entry::encode(Kind::Record, &record(i, 0)).unwrap());
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    /// Reads the log in `root`: which of the records 0..n are found. A wrong record fails the test.
    fn found(root: &Path, n: u64) -> Vec<bool> {
        let log = log(root);
        (0..n)
            .map(|i| {
                let (hit, whole) = (log.hit(&record(i, 0).key).unwrap(), log.record(&record(i, 0).key).unwrap());
                assert!(hit.is_none_or(|hit| hit == record(i, 0).hit()));
                assert!(whole.as_ref().is_none_or(|whole| *whole == record(i, 0)));
                whole.is_some()
            })
            .collect()
    }

    #[test]
    fn a_log_cut_anywhere_keeps_what_is_whole() {
        let (bytes, ends) = sample(3);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.log");
        std::fs::write(&path, &bytes).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for length in (0..=bytes.len()).rev() {
            file.set_len(length as u64).unwrap();
            let expected: Vec<bool> = ends.iter().map(|&end| end <= length).collect();
            assert_eq!(found(dir.path(), 3), expected, "cut at {length}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_costs_one_record_at_most() {
        let (bytes, ends) = sample(3);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.log");
        std::fs::write(&path, &bytes).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        for (at, good) in bytes.iter().enumerate() {
            file.write_at(&[good ^ (1 << (at % 8))], at as u64).unwrap();
            let hurt = if at < MAGIC.len() { None } else { ends.iter().position(|&end| at < end) };
            let expected: Vec<bool> = (0..3).map(|i| Some(i) != hurt).collect();
            assert_eq!(found(dir.path(), 3), expected, "flipped at {at}");
            file.write_at(&[*good], at as u64).unwrap();
        }
    }

    #[test]
    fn a_thousand_records_are_found_at_once() {
        let (bytes, _) = sample(1000);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("records.log"), &bytes).unwrap();
        let keys: Vec<Digest> = (0..1000).map(|n| record(n, 0).key).collect();
        let best = (0..10)
            .map(|_| {
                let start = std::time::Instant::now();
                let log = log(dir.path());
                assert!(keys.iter().all(|key| log.hit(key).unwrap().is_some()));
                start.elapsed()
            })
            .min();
        println!("1000 records of {} bytes opened and looked up in {best:?}", bytes.len() / 1000);
        // Some 1 ms on a quiet machine; anything that grows with the square takes longer than this.
        assert!(best < Some(std::time::Duration::from_millis(50)), "{best:?}");
    }

    #[test]
    fn the_next_writer_clears_away_what_is_broken() {
        let (good, ends) = sample(3);
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 4;
            bytes
        };
        let garbage = [&good[..ends[0]], b"\xFFrE\xFEgarbage", &good[ends[0]..]].concat();
        let cases = [
            (good[..ends[1] + 40].to_vec(), 2),
            (good[..ends[1] + HEADER + 20].to_vec(), 2),
            (good[..7].to_vec(), 0),
            (flipped(3), 3),
            (flipped(ends[0] + 10), 2),
            (flipped(ends[1] + 1), 2),
            (garbage, 3),
            (Vec::new(), 0),
            (vec![0; 5000], 0),
        ];
        for (i, (bytes, n_left)) in cases.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("records.log");
            std::fs::write(&path, &bytes).unwrap();
            let (writer, reader) = (log(dir.path()), log(dir.path()));
            reader.keys().unwrap();
            assert_eq!(writer.insert(&record(9, 0), &USABLE).unwrap().fate, Fate::New, "case {i}");
            assert_eq!(reader.keys().unwrap().len(), n_left + 1, "case {i}");
            assert_eq!(reader.record(&record(9, 0).key).unwrap(), Some(record(9, 0)));
            let mut state = State::default();
            state.refresh(&path).unwrap();
            assert!(state.is_whole(), "case {i}");
        }
    }

    #[test]
    fn a_damaged_record_is_replaced() {
        let (mut bytes, ends) = sample(3);
        // In the body, of which the head knows nothing.
        bytes[ends[1] - 5] ^= 1;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("records.log"), &bytes).unwrap();
        let log = log(dir.path());
        assert_eq!(log.record(&record(1, 0).key).unwrap(), None);
        assert_eq!(log.warnings.take().len(), 1);
        assert_eq!(log.insert(&record(1, 1), &USABLE).unwrap().fate, Fate::New);
        assert_eq!(log.record(&record(1, 0).key).unwrap(), Some(record(1, 1)));
        assert_eq!(log.hit(&record(1, 0).key).unwrap(), Some(record(1, 1).hit()));
    }

    #[test]
    fn a_reader_follows_a_compaction() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, reader) = (log(dir.path()), log(dir.path()));
        for n in 0..4 {
            writer.insert(&record(n, 0), &USABLE).unwrap();
        }
        assert_eq!(reader.keys().unwrap().len(), 4);
        let before = std::fs::metadata(dir.path().join("records.log")).unwrap().len();
        writer.remove(&[record(0, 0).key, record(1, 0).key]).unwrap();
        writer.compact().unwrap();
        assert!(std::fs::metadata(dir.path().join("records.log")).unwrap().len() < before);
        writer.insert(&record(5, 0), &USABLE).unwrap();
        assert_eq!(reader.record(&record(5, 0).key).unwrap(), Some(record(5, 0)));
        assert_eq!(reader.record(&record(0, 0).key).unwrap(), None);
    }
}
