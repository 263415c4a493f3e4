//! The store as its users see it: stored results come back, damage is a miss, and garbage goes.

use super::blobs::Condition;
use super::gc::Policy;
use super::key::PreImage;
use super::records::{Fate, Record};
use super::verify::{Damage, Repair};
use super::*;
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Open, Table};
use crate::stage::Outputs;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

fn pre_image(n: u64) -> PreImage {
    PreImage {
        stage: "test/echo".into(),
        version: 1,
        params: json!({ "value": n }),
        seed: None,
        inputs: BTreeMap::new(),
        sources: vec![],
    }
}

fn table(value: i64) -> Table {
    let mut table = Table::new(vec![Column::new("value", "")]);
    table.push(vec![Cell::Int(value)]);
    table
}

/// Does what a worker does: writes, publishes, inserts.
fn put(store: &Store, n: u64, value: i64, age: u64) -> (Record, Fate) {
    let scratch = store.scratch().unwrap();
    let written = table(value).save(scratch.path()).unwrap();
    let record = Record {
        key: pre_image(n).key(),
        pre_image: pre_image(n),
        outputs: store.publish(&written).unwrap(),
        seconds: 1.5,
        peak_memory_mib: None,
        headline: None,
        device: "cpu".into(),
        threads: 1,
        instructions: Some("avx2".into()),
        precision: None,
        build: "test".into(),
        created: disk::unix_seconds() - age,
    };
    let fate = store.insert(&record).unwrap().fate;
    (record, fate)
}

/// Runs `body` on an empty cache of each layout.
fn each_layout(body: impl Fn(&Path)) {
    for layout in ["local", "shared"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cache.toml"), format!("layout = \"{layout}\"")).unwrap();
        body(dir.path());
    }
}

fn open(root: &Path) -> Store {
    Store::open(root, Missing::Create).unwrap()
}

/// Changes the bytes of a record's first file.
fn spoil(store: &Store, record: &Record, content: impl Fn(Vec<u8>) -> Vec<u8>) {
    let path = store.blobs.path(&record.outputs[0].files[0].digest);
    let bytes = content(std::fs::read(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn what_is_stored_comes_back() {
    each_layout(|root| {
        let (record, fate) = put(&open(root), 1, 10, 0);
        assert_eq!(fate, Fate::New);
        let store = open(root);
        assert_eq!(store.hit(&record.key).unwrap(), Some(record.hit()));
        assert_eq!(store.lookup(&record.key).unwrap().as_ref(), Some(&record));
        assert_eq!(Table::open(&store.files(&record.outputs[0])).unwrap(), table(10));
        assert_eq!(store.hits(&[pre_image(2).key(), record.key]).unwrap(), [None, Some(record.hit())]);
        assert_eq!(store.records().unwrap(), [record]);
        assert!(store.warnings().is_empty());
        assert!(disk::list(&store.tmp()).unwrap().is_empty());
    });
}

/// What was read ahead is what would be read; a blob that was lost before is missed, and so is one lost after, once
/// the store is told to look again.
#[test]
fn reading_ahead_changes_nothing() {
    each_layout(|root| {
        let records = [1, 2, 3].map(|n| put(&open(root), n, n as i64, 0).0);
        let lose = |record: &Record| {
            std::fs::remove_file(open(root).blobs.path(&record.outputs[0].files[0].digest)).unwrap();
        };
        lose(&records[1]);
        let store = open(root);
        store.warm(&AtomicBool::new(false));
        let hits = |store: &Store| records.each_ref().map(|record| store.hit(&record.key).unwrap());
        let [first, third] = [&records[0], &records[2]].map(|record| Some(record.hit()));
        for _ in 0..2 {
            assert_eq!(hits(&store), [first.clone(), None, third.clone()]);
            assert!(store.warnings()[0].contains("missing or not whole"));
        }
        store.warm(&AtomicBool::new(false));
        lose(&records[2]);
        store.look_again();
        assert_eq!(hits(&store), [first, None, None]);
    });
}

#[test]
fn looking_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    let store = Store::open(&root, Missing::Pretend).unwrap();
    assert_eq!(store.hit(&pre_image(1).key()).unwrap(), None);
    assert!(!store.writable() && store.scratch().is_err());
    assert!(store.garbage(&Policy::default()).unwrap().is_empty());
    assert!(store.verify(Repair::No).unwrap().problems.is_empty());
    store.enter_run(&AtomicBool::new(false)).unwrap();
    assert!(!root.exists());
}

#[test]
fn a_record_without_its_blobs_is_refused() {
    each_layout(|root| {
        let store = open(root);
        let (record, _) = put(&store, 1, 10, 0);
        let other = Record { key: pre_image(2).key(), pre_image: pre_image(2), ..record };
        std::fs::remove_file(store.blobs.path(&other.outputs[0].files[1].digest)).unwrap();
        assert!(open(root).insert(&other).unwrap_err().message().contains("missing or not whole"));
    });
}

#[test]
fn a_cut_blob_is_a_miss_and_is_healed() {
    each_layout(|root| {
        let (record, _) = put(&open(root), 1, 10, 0);
        spoil(&open(root), &record, |bytes| bytes[1..].to_vec());
        let store = open(root);
        assert_eq!(store.hit(&record.key).unwrap(), None);
        assert_eq!(store.lookup(&record.key).unwrap(), None);
        assert_eq!(store.warnings().len(), 1);
        assert!(store.record(&record.key).unwrap().is_some());
        assert_eq!(put(&store, 1, 10, 0).1, Fate::Same);
        assert_eq!(store.lookup(&record.key).unwrap(), Some(record));
        assert!(store.verify(Repair::No).unwrap().problems.is_empty());
    });
}

#[test]
fn nondeterminism_is_recorded_and_the_first_result_stays() {
    each_layout(|root| {
        let store = open(root);
        let (first, _) = put(&store, 1, 10, 0);
        let (second, fate) = put(&store, 1, 11, 0);
        assert_eq!(fate, Fate::Deviates);
        assert_eq!(store.lookup(&first.key).unwrap().as_ref(), Some(&first));
        assert_eq!(store.deviations(&first.key).unwrap(), [second]);
        assert_eq!(store.verify(Repair::No).unwrap().deviations.len(), 1);
    });
}

#[test]
fn nondeterminism_after_a_lost_blob_takes_the_new_result() {
    each_layout(|root| {
        let (first, _) = put(&open(root), 1, 10, 0);
        spoil(&open(root), &first, |_| Vec::new());
        let store = open(root);
        let (second, fate) = put(&store, 1, 11, 0);
        assert_eq!(fate, Fate::Deviates);
        assert_eq!(store.lookup(&first.key).unwrap(), Some(second));
        assert_eq!(store.deviations(&first.key).unwrap(), [first]);
    });
}

#[test]
fn verify_finds_every_kind_of_damage_and_repairs_it() {
    each_layout(|root| {
        let store = open(root);
        let records: Vec<Record> = (0..4).map(|n| put(&store, n, n as i64, 0).0).collect();
        spoil(&store, &records[0], |mut bytes| {
            bytes[0] ^= 1;
            bytes
        });
        spoil(&store, &records[1], |bytes| bytes[..1].to_vec());
        std::fs::remove_file(store.blobs.path(&records[2].outputs[0].files[1].digest)).unwrap();
        let store = open(root);
        let found = store.verify(Repair::No).unwrap();
        let mut conditions: Vec<(Digest, Condition)> = found
            .problems
            .iter()
            .map(|problem| match &problem.damage {
                Damage::Blob { condition, .. } => (problem.key, *condition),
                other => panic!("unexpected {other:?}"),
            })
            .collect();
        conditions.sort_by_key(|(key, _)| records.iter().position(|record| record.key == *key));
        assert_eq!(
            conditions,
            [
                (records[0].key, Condition::Damaged),
                (records[1].key, Condition::WrongSize),
                (records[2].key, Condition::Missing),
            ]
        );
        assert_eq!((found.n_records, found.unreferenced_bytes), (4, 0));
        assert!(store.hit(&records[0].key).unwrap().is_some(), "verify without repair changed something");
        store.verify(Repair::Yes).unwrap();
        for store in [&store, &open(root)] {
            let hits = store.hits(&records.iter().map(|record| record.key).collect::<Vec<_>>()).unwrap();
            assert_eq!(hits.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, false, true]);
        }
        assert_eq!(disk::list(&root.join("quarantine")).unwrap().len(), 2);
        for n in 0..4 {
            put(&store, n, n as i64, 0);
        }
        let after = store.verify(Repair::No).unwrap();
        assert!(after.problems.is_empty() && after.n_records == 4);
    });
}

#[test]
fn a_shared_blob_damaged_takes_all_its_records() {
    each_layout(|root| {
        let store = open(root);
        let (a, b) = (put(&store, 1, 10, 0).0, put(&store, 2, 10, 0).0);
        spoil(&store, &a, |bytes| bytes.iter().rev().copied().collect());
        assert_eq!(store.verify(Repair::Yes).unwrap().problems.len(), 2);
        assert_eq!(store.hits(&[a.key, b.key]).unwrap(), [None, None]);
    });
}

#[test]
fn gc_keeps_what_is_asked_for_or_young() {
    each_layout(|root| {
        let store = open(root);
        store.enter_run(&AtomicBool::new(false)).unwrap();
        // The kept record shares its blobs with an old one.
        let kept = put(&store, 1, 10, 9000).0;
        let shares = put(&store, 2, 10, 9000).0;
        let old = put(&store, 3, 30, 9000).0;
        let young = put(&store, 4, 40, 10).0;
        std::fs::write(store.checkpoint_path(&kept.key), "done with").unwrap();
        std::fs::write(store.checkpoint_path(&pre_image(9).key()), "half done").unwrap();
        std::fs::write(store.log_path(&kept.key), "of use").unwrap();
        let scratch = store.scratch().unwrap();
        store.publish(&table(99).save(scratch.path()).unwrap()).unwrap();
        drop(scratch);
        std::fs::create_dir(store.tmp().join("1-dead")).unwrap();

        let policy = Policy { keep: BTreeSet::from([kept.key]), older_than: Duration::from_secs(3600) };
        let garbage = store.garbage(&policy).unwrap();
        let keys: BTreeSet<Digest> = garbage.records.iter().map(|record| record.key).collect();
        assert_eq!(keys, BTreeSet::from([shares.key, old.key]));
        assert_eq!((garbage.blobs.len(), garbage.orphans.len(), garbage.others.len()), (2, 2, 2));
        assert_eq!(store.records().unwrap().len(), 4, "the dry run removed something");

        let collected = store.collect(&policy).unwrap();
        assert_eq!(collected.bytes(), garbage.bytes());
        for store in [&store, &open(root)] {
            assert_eq!(
                store.hits(&[kept.key, shares.key, old.key, young.key]).unwrap(),
                [Some(kept.hit()), None, None, Some(young.hit())]
            );
        }
        assert!(store.log_path(&kept.key).exists() && store.checkpoint_path(&pre_image(9).key()).exists());
        assert!(!store.checkpoint_path(&kept.key).exists());
        let verification = store.verify(Repair::No).unwrap();
        assert!(verification.problems.is_empty() && verification.unreferenced_bytes == 0);
        assert!(disk::list(&store.tmp()).unwrap().is_empty());
        assert!(store.garbage(&policy).unwrap().is_empty());

        store.collect(&Policy::default()).unwrap();
        assert!(store.records().unwrap().is_empty() && store.blobs.list().unwrap().is_empty());
    });
}

#[test]
fn gc_and_runs_keep_out_of_each_others_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let stop = AtomicBool::new(false);
    let (one, two) = (store.enter_run(&stop).unwrap(), open(dir.path()).enter_run(&stop).unwrap());
    drop(one);
    assert!(store.collect(&Policy::default()).unwrap_err().message().contains("a run is using the cache"));
    drop(two);
    store.collect(&Policy::default()).unwrap();
    let collecting = std::fs::File::open(dir.path().join("gc.lock")).unwrap();
    collecting.lock().unwrap();
    let stopped = AtomicBool::new(true);
    assert_eq!(store.enter_run(&stopped).unwrap_err().class(), crate::error::Class::Interrupted);
}

#[test]
fn folders_that_somebody_deleted_come_back() {
    let dir = tempfile::tempdir().unwrap();
    put(&open(dir.path()), 1, 10, 0);
    for folder in layout::FOLDERS {
        std::fs::remove_dir_all(dir.path().join(folder)).unwrap();
    }
    std::fs::remove_file(dir.path().join("gc.lock")).unwrap();
    let store = open(dir.path());
    assert_eq!(store.hit(&pre_image(1).key()).unwrap(), None);
    assert_eq!(put(&store, 1, 10, 0).1, Fate::Same);
    assert!(store.hit(&pre_image(1).key()).unwrap().is_some());
}
