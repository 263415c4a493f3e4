//! CIFAR-10 from a Hub on the loopback interface: whole, redirected, damaged, silent, absent.
//!
//! The environment steers the Hub client, and a process cannot change its own safely; so every download happens in a
//! process of its own: this test binary, started again for [`in_a_process_of_its_own`].

use crate::harness::{Project, Ran};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use runner::artifact::{Dataset, Kind, Save, Sink, digest};
use runner::stage::{Context, Stage};
use runner::stages::data::cifar10::{Cifar10, dataset, embedded, hub, pin};
use runner::stages::data::hub::Config;
use runner::stages::data::images::Images;
use runner::stages::data::parquet::{Layout, read};
use runner::store::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the server does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Sends clients to another path of the same host, as the Hub does for renamed repositories.
    Moved,
    /// Sends clients to a storage host, as the Hub does for large files.
    Elsewhere,
    /// Answers 500.
    Broken,
    /// Answers the question for the file's size, then 500 with a page instead of the file.
    ErrorPage,
    /// Announces the whole file, sends half of it.
    Short,
    /// Sends half of the file and announces nothing.
    Cut,
    /// One bit of the file is wrong.
    Flipped,
    /// Says nothing.
    Silent,
}

struct Server {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(files: &BTreeMap<String, Vec<u8>>, fault: Fault) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, files, host) = (requests.clone(), files.clone(), endpoint.clone());
        std::thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming().flatten() {
                match (fault, request(&stream)) {
                    (Fault::Silent, _) => silent.push(stream),
                    (_, Some((method, path))) => {
                        log.lock().expect("no panic").push(format!("{method} {path}"));
                        // The client may hang up; that is its business.
                        let _ = answer(stream, &method, &path, &files, fault, &host);
                    }
                    (_, None) => {}
                }
            }
        });
        Server { endpoint, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("no panic").clone()
    }
}

fn request(stream: &TcpStream) -> Option<(String, String)> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    lines.take_while(|line| !line.is_empty()).for_each(drop);
    let mut words = first.split(' ').map(String::from);
    words.next().zip(words.next())
}

fn answer(
    mut out: TcpStream,
    method: &str,
    path: &str,
    files: &BTreeMap<String, Vec<u8>>,
    fault: Fault,
    host: &str,
) -> std::io::Result<()> {
    let prefix = format!("/datasets/{}/resolve/{}/", hub::REPOSITORY, hub::REVISION);
    let (named, name) = match path.strip_prefix(&prefix) {
        Some(name) => (true, name),
        None => (false, path.trim_start_matches("/moved/").trim_start_matches("/storage/")),
    };
    let Some(whole) = files.get(name) else {
        return write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let (n, etag) = (whole.len(), Digest::of(whole));
    let commit = format!("X-Repo-Commit: {}\r\nConnection: close\r\n", hub::REVISION);
    let page = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops";
    match (fault, method) {
        (Fault::Broken, _) | (Fault::ErrorPage, "GET") => return write!(out, "{page}"),
        (Fault::Moved, _) if named => {
            return write!(out, "HTTP/1.1 307 Moved\r\nLocation: /moved/{name}\r\nContent-Length: 0\r\n{commit}\r\n");
        }
        (Fault::Elsewhere, _) if named => {
            return write!(
                out,
                "HTTP/1.1 302 Found\r\nLocation: {host}/storage/{name}\r\nX-Linked-ETag: \"{etag}\"\r\n\
                 X-Linked-Size: {n}\r\nContent-Length: 0\r\n{commit}\r\n"
            );
        }
        _ => {}
    }
    let length =
        if fault == Fault::Cut && method == "GET" { String::new() } else { format!("Content-Length: {n}\r\n") };
    write!(out, "HTTP/1.1 200 OK\r\nETag: \"{etag}\"\r\n{length}{commit}\r\n")?;
    if method == "GET" {
        let mut body = whole.clone();
        match fault {
            Fault::Short | Fault::Cut => body.truncate(n / 2),
            Fault::Flipped => body[n / 3] ^= 0x10,
            _ => {}
        }
        out.write_all(&body)?;
    }
    out.flush()
}

/// A Parquet file as the Hub has it: PNG images in a structure, labels, several row groups.
fn parquet(images: &Images) -> Vec<u8> {
    parquet_of(images, "img", png)
}

fn parquet_of(images: &Images, column: &str, png: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let schema = format!(
        "message schema {{
            OPTIONAL group {column} {{ OPTIONAL BYTE_ARRAY bytes; OPTIONAL BYTE_ARRAY path (UTF8); }}
            OPTIONAL INT64 label;
        }}"
    );
    let schema = Arc::new(parse_message_type(&schema).expect("a schema"));
    let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, properties).expect("a writer");
    for (pixels, labels) in images.pixels.chunks(100 * images.image_bytes()).zip(images.labels.chunks(100)) {
        let n = labels.len();
        let pngs: Vec<ByteArray> = pixels.chunks(images.image_bytes()).map(|image| png(image).into()).collect();
        let mut group = writer.next_row_group().expect("a group");
        let mut column = group.next_column().expect("a column").expect("bytes");
        column.typed::<ByteArrayType>().write_batch(&pngs, Some(&vec![2; n]), None).expect("written");
        column.close().expect("closed");
        let mut column = group.next_column().expect("a column").expect("path");
        column.typed::<ByteArrayType>().write_batch(&[], Some(&vec![1; n]), None).expect("written");
        column.close().expect("closed");
        let mut column = group.next_column().expect("a column").expect("label");
        column.typed::<Int64Type>().write_batch(labels, Some(&vec![1; n]), None).expect("written");
        column.close().expect("closed");
        group.close().expect("closed");
    }
    writer.close().expect("closed");
    file
}

fn png(image: &[u8]) -> Vec<u8> {
    let image = image::RgbImage::from_raw(32, 32, image.to_vec()).expect("an image");
    let mut file = std::io::Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Png).expect("written");
    file.into_inner()
}

/// What the other process does, and what came of it.
#[derive(Serialize, Deserialize)]
struct Order {
    rows: usize,
    train: Vec<Digest>,
    test: Vec<Digest>,
    patience_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    dataset: Option<String>,
    error: String,
    hint: String,
    exit_code: u8,
}

const FOLDER: &str = "RUNNER_TEST_HUB_FOLDER";

/// Not a test: what [`download`] runs in another process. Alone, there is nothing to do.
#[test]
fn in_a_process_of_its_own() {
    let Ok(folder) = std::env::var(FOLDER).map(PathBuf::from) else { return };
    let order = std::fs::read(folder.join("order.json")).expect("an order");
    let order: Order = serde_json::from_slice(&order).expect("readable");
    let pin = pin::Pin { rows: order.rows, train: order.train, test: order.test };
    let patience = Duration::from_millis(order.patience_ms);
    let config = Config { retries: 1, patience, ..Config::from_environment() };
    let result = hub::load(&Context::for_test(0, Cifar10::NAME), &config, &pin);
    let outcome = match result.and_then(|(train, test)| dataset(train, test)) {
        Ok(dataset) => {
            Outcome { dataset: Some(dataset_digest(&dataset)), error: String::new(), hint: String::new(), exit_code: 0 }
        }
        Err(error) => Outcome {
            dataset: None,
            error: error.to_string(),
            hint: error.hint_text().unwrap_or_default().into(),
            exit_code: error.class().exit_code(),
        },
    };
    let outcome = serde_json::to_vec(&outcome).expect("JSON");
    std::fs::write(folder.join("outcome.json"), outcome).expect("written");
}

fn dataset_digest(dataset: &Dataset) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let mut sink = Sink::new(dir.path());
    dataset.save(&mut sink).expect("written");
    digest(Kind::Dataset, &sink.finish()).to_string()
}

/// Loads CIFAR-10 with `home` as HF_HOME, from `endpoint`.
fn download(home: &Path, endpoint: &str, pin: &pin::Pin, offline: &str, patience_ms: u64) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    let order = Order { rows: pin.rows, train: pin.train.clone(), test: pin.test.clone(), patience_ms };
    std::fs::write(folder.path().join("order.json"), serde_json::to_vec(&order).expect("JSON")).expect("written");
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    for variable in ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env_remove(variable);
    }
    let output = command
        .args(["--exact", "hub::in_a_process_of_its_own"])
        .env(FOLDER, folder.path())
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HUB_OFFLINE", offline)
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .expect("started");
    let outcome = std::fs::read(folder.path().join("outcome.json"));
    let outcome = outcome.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stdout)));
    serde_json::from_slice(&outcome).expect("readable")
}

const PATIENT: u64 = 60_000;

/// A few images, their pin, and the files that a Hub has of them, its training batches in another order.
struct Fixture {
    files: BTreeMap<String, Vec<u8>>,
    pin: pin::Pin,
    dataset: String,
    home: tempfile::TempDir,
}

fn fixture(train: Images, test: Images, rows: usize) -> Fixture {
    let batches = train.len() / rows;
    let order = [3, 2, 1, 4, 0].into_iter().filter(|&batch| batch < batches);
    let shuffled: Vec<usize> = order.flat_map(|batch| batch * rows..(batch + 1) * rows).collect();
    let [train_file, test_file] = hub::FILES.map(String::from);
    let files = BTreeMap::from([(train_file, parquet(&train.select(&shuffled))), (test_file, parquet(&test))]);
    let pin = pin::Pin::of(&train, &test, rows);
    let dataset = dataset_digest(&dataset(train, test).expect("a dataset"));
    Fixture { files, pin, dataset, home: tempfile::tempdir().expect("a folder") }
}

fn few_images() -> Fixture {
    let noise = |n: usize, seed: usize| Images {
        size: (32, 32),
        pixels: (0..n * 3072).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        labels: (0..n as i64).map(|i| i % 10).collect(),
    };
    fixture(noise(20, 0), noise(4, 99), 4)
}

fn check_damage(fault: Fault, expected: &str) {
    let fixture = few_images();
    let outcome =
        download(fixture.home.path(), &Server::new(&fixture.files, fault).endpoint, &fixture.pin, "", PATIENT);
    assert_eq!((outcome.dataset, outcome.exit_code), (None, 3), "{}", outcome.error);
    assert!(outcome.error.contains(expected), "{}", outcome.error);
    for way in ["`subset = \"embedded\"`", "`path = ", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "Hub"]
    {
        assert!(outcome.hint.contains(way), "{}", outcome.hint);
    }
    // What the hint says helps, with a server that is well again; without it, the damaged file may not be used either.
    let server = Server::new(&fixture.files, Fault::None);
    if let Some((_, rest)) = outcome.hint.split_once("delete `") {
        let again = download(fixture.home.path(), &server.endpoint, &fixture.pin, "", PATIENT);
        assert!(again.error.contains("is damaged"), "{}", again.error);
        std::fs::remove_file(rest.split('`').next().expect("a path")).expect("the damaged file");
    }
    let healed = download(fixture.home.path(), &server.endpoint, &fixture.pin, "", PATIENT);
    assert_eq!(healed.dataset, Some(fixture.dataset), "{}", healed.error);
}

/// The real images through the whole path: the dataset is the embedded one, and then needs no network any more.
#[test]
fn the_hub_and_the_binary_give_the_same_dataset() {
    let (train, test) = embedded::load().expect("embedded images");
    let fixture = fixture(train, test, 1000);
    let embedded = serde_json::from_value(serde_json::json!({ "subset": "embedded" })).expect("parameters");
    let embedded = Cifar10::run(&Context::for_test(0, Cifar10::NAME), embedded, ()).expect("a dataset");
    assert_eq!(dataset_digest(&embedded), fixture.dataset);

    let server = Server::new(&fixture.files, Fault::None);
    let first = download(fixture.home.path(), &server.endpoint, &fixture.pin, "0", PATIENT);
    assert_eq!(first.dataset.as_ref(), Some(&fixture.dataset), "{}", first.error);
    let requests = server.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    for offline in ["1", "0"] {
        let again = download(fixture.home.path(), &server.endpoint, &fixture.pin, offline, PATIENT);
        assert_eq!(again.dataset.as_ref(), Some(&fixture.dataset), "{}", again.error);
        assert_eq!(server.requests(), requests, "a cached file needs no request");
    }
}

#[test]
fn redirections_are_followed() {
    for fault in [Fault::Moved, Fault::Elsewhere] {
        let fixture = few_images();
        let server = Server::new(&fixture.files, fault);
        let outcome = download(fixture.home.path(), &server.endpoint, &fixture.pin, "", PATIENT);
        assert_eq!(outcome.dataset, Some(fixture.dataset), "{} {:?}", outcome.error, server.requests());
    }
}

#[test]
fn server_errors_are_told() {
    check_damage(Fault::Broken, "cannot get `plain_text/train-00000-of-00001.parquet` of `uoft-cs/cifar10`");
}

#[test]
fn an_error_page_is_no_data() {
    check_damage(Fault::ErrorPage, "is damaged");
}

#[test]
fn a_broken_transfer_is_told() {
    check_damage(Fault::Short, "cannot get `plain_text/train-00000-of-00001.parquet`");
}

#[test]
fn a_truncated_file_is_damaged() {
    check_damage(Fault::Cut, "is damaged");
}

#[test]
fn a_flipped_bit_is_damage() {
    check_damage(Fault::Flipped, "is damaged");
}

#[test]
fn a_silent_server_is_not_waited_for() {
    let fixture = few_images();
    let server = Server::new(&fixture.files, Fault::Silent);
    let outcome = download(fixture.home.path(), &server.endpoint, &fixture.pin, "", 300);
    assert!(outcome.error.contains("nothing was heard"), "{}", outcome.error);
}

#[test]
fn offline_says_which_ways_there_are() {
    let fixture = few_images();
    let server = Server::new(&fixture.files, Fault::None);
    let outcome = download(fixture.home.path(), &server.endpoint, &fixture.pin, "1", PATIENT);
    assert_eq!((outcome.exit_code, server.requests().len()), (2, 0));
    assert!(outcome.error.contains("HF_HUB_OFFLINE is set, and the file is not in the cache"), "{}", outcome.error);
    assert!(outcome.hint.contains("there are three ways to the images"), "{}", outcome.hint);
}

#[test]
fn without_a_network_the_error_is_the_machines() {
    let fixture = few_images();
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port nobody listens to");
    let outcome = download(fixture.home.path(), &format!("http://{closed}"), &fixture.pin, "", PATIENT);
    assert_eq!(outcome.exit_code, 3);
    assert!(outcome.error.to_lowercase().contains("connection refused"), "{}", outcome.error);
    assert!(outcome.hint.contains("there are three ways to the images"), "{}", outcome.hint);
}

/// A file that pyarrow wrote: the first four test images.
#[test]
fn files_that_pyarrow_wrote_are_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cifar10/pyarrow.parquet");
    let images = hub::read(&path, 4).expect("readable");
    assert_eq!(images.labels, [3, 8, 8, 0]);
    // Among the embedded images, which are the official ones, these four come first.
    let (_, test) = embedded::load().expect("embedded images");
    assert_eq!(images, test.select(&[0, 1, 2, 3]));
    assert!(hub::read(&path, 5).is_err_and(|error| error == "expected 5 images, found 4"));
}

/// Whatever bit of a file is wrong: the images are the pinned ones or there is an error.
#[test]
fn no_flipped_bit_gives_other_images() {
    let fixture = few_images();
    let whole = &fixture.files[hub::FILES[1]];
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("test.parquet");
    let mut found = 0;
    for (turn, byte) in (0..whole.len()).step_by(whole.len() / 150).enumerate() {
        let mut bytes = whole.clone();
        bytes[byte] ^= 1 << (turn % 8);
        std::fs::write(&path, bytes).expect("written");
        let images = hub::read(&path, 4).and_then(|images| pin::arrange(&images, &fixture.pin.test, fixture.pin.rows));
        match images {
            Ok(images) => assert_eq!(images.block_digests(4), fixture.pin.test, "byte {byte}"),
            Err(_) => found += 1,
        }
    }
    assert!(found > 100, "only {found} of 150 flipped bits were found");
}

/// MNIST on the Hub: grey PNG images in the column `image`.
#[test]
fn grey_images_of_another_column_become_rgb() {
    fn grey_png(image: &[u8]) -> Vec<u8> {
        let grey = image.iter().step_by(3).copied().collect();
        let image = image::GrayImage::from_raw(28, 28, grey).expect("an image");
        let mut file = std::io::Cursor::new(Vec::new());
        image.write_to(&mut file, image::ImageFormat::Png).expect("written");
        file.into_inner()
    }
    let pixels = (0..3 * 784usize).flat_map(|i| [(i * 7 % 256) as u8; 3]).collect();
    let images = Images { size: (28, 28), pixels, labels: vec![5, 0, 4] };
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("train.parquet");
    std::fs::write(&path, parquet_of(&images, "image", grey_png)).expect("written");
    let layout = Layout { size: (28, 28), image: "image", label: "label", n: 3 };
    assert_eq!(read(&path, layout), Ok(images));
    let other = read(&path, Layout { image: "img", ..layout }).expect_err("another column");
    assert_eq!(other, "a row has no `img.bytes` or no `label`");
    let other = read(&path, Layout { size: (32, 32), ..layout }).expect_err("another size");
    assert_eq!(other, "image 0: expected 32x32 pixels, found 28x28");
}

/// Runs one data stage without a network, with `home` as HF_HOME.
fn run_offline(stage: &str, home: &Path) -> Ran {
    let project = Project::new();
    project.write("p.toml", &format!("name = \"p\"\n[stages.clean]\nstage = \"{stage}\"\n"));
    let mut command = project.command(&["run", "p.toml"]);
    for variable in ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        command.env_remove(variable);
    }
    Ran::of(command.env("HF_HOME", home).env("HF_HUB_OFFLINE", "1").output().expect("started"))
}

/// A published dataset without images names the ways to them; and a file in the cache that is not what it should be is
/// damaged.
#[test]
fn published_datasets_offline() {
    let check = |stage: &str, repository: &str, revision: &str, file: &str| {
        let home = tempfile::tempdir().expect("a folder");
        let ran = run_offline(stage, home.path());
        assert_eq!(ran.code, 1, "{}", ran.err);
        for part in ["HF_HUB_OFFLINE is set", "there are two ways to the images", "HF_ENDPOINT names a mirror"] {
            assert!(ran.err.contains(part), "{part} in: {}", ran.err);
        }
        let file = home.path().join(format!("hub/datasets--{repository}/snapshots/{revision}/{file}"));
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("created");
        let images = Images { size: (32, 32), pixels: vec![0; 3072], labels: vec![1] };
        std::fs::write(&file, parquet_of(&images, "image", png)).expect("written");
        let ran = run_offline(stage, home.path());
        assert!(ran.err.contains("is damaged: expected ") && ran.err.contains("images, found 1"), "{}", ran.err);
    };
    let train = |folder: &str| format!("{folder}/train-00000-of-00001.parquet");
    check("data/mnist", "ylecun--mnist", "77f3279092a1c1579b2250db8eafed0ad422088c", &train("mnist"));
    check(
        "data/fashion_mnist",
        "zalando-datasets--fashion_mnist",
        "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2",
        &train("fashion_mnist"),
    );
    check("data/svhn", "ufldl-stanford--svhn", "f9e1717d73324ebbc1ece84267ccd80d0aca0690", &train("cropped_digits"));
    check("data/cifar100", "uoft-cs--cifar100", "aadb3af77e9048adbea6b47c21a81e47dd092ae5", &train("cifar100"));
    check(
        "data/tiny_imagenet",
        "zh-plus--tiny-imagenet",
        "b427d143d5e9bf39d5132c552063f3c5ba3facd6",
        "data/train-00000-of-00001-1359597a978bc4fa.parquet",
    );
}
