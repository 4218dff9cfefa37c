//! Data sets in folders and archives, and paths without a data set.

use std::path::Path;
use std::{fs, iter};

use vae_wgpu::app::data::{DataSpec, ImageOptions, open};
use vae_wgpu::vae::data::cifar10::{ARCHIVE, FOLDER, RECORD};
use vae_wgpu::vae::data::{Dataset, batch, cifar100, idx};

use crate::data_files::{archive_of, chain, files, folder_of, gzip, refusal};

fn pixels(data: &Dataset) -> Vec<u8> {
    let mut pixels = Vec::new();
    batch(&*data.train, &(0..data.train.len() as u32).collect::<Vec<_>>(), &mut pixels).unwrap();
    pixels
}

/// The error of a path that `--data` does not accept.
fn rejection(path: &Path) -> String {
    chain(&open(&DataSpec::Path(path.into()), &ImageOptions::default(), &mut |_| ()).unwrap_err())
}

#[test]
fn folders_and_archives_give_the_same_images() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(FOLDER);
    folder_of(&folder, &files());
    let path = dir.path().join("any-name.tgz");
    fs::write(&path, archive_of(&files())).unwrap();
    let quiet = &mut |_| panic!("nothing to fetch");
    let [from_folder, from_archive, from_parent] = [folder, path, dir.path().into()]
        .map(|path| open(&DataSpec::Path(path), &ImageOptions::default(), quiet).unwrap().dataset);
    assert_eq!((from_folder.train.len(), from_folder.test.len()), (20, 4));
    assert_eq!(from_folder.train.classes()[9], "j");
    assert_eq!(pixels(&from_folder), pixels(&from_archive));
    assert_eq!(pixels(&from_folder), pixels(&from_parent));
    let expected: Vec<u8> =
        files()[..5].iter().flat_map(|(_, b)| b.chunks(RECORD).flat_map(|r| r[1..].to_vec())).collect();
    assert_eq!(pixels(&from_folder), expected);
}

#[test]
fn damaged_folders_are_reported_with_file_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    folder_of(dir.path(), &files());
    let error = || rejection(dir.path());
    let path = dir.path().join("data_batch_4.bin");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let found = error();
    assert!(found.contains("data_batch_4.bin: byte 9219: record 3 has 3072 of 3073 bytes"), "{found}");
    fs::remove_file(&path).unwrap();
    assert!(error().contains("data_batch_4.bin missing"), "{}", error());
    fs::create_dir(&path).unwrap();
    assert!(error().contains("data_batch_4.bin: not a regular file"), "{}", error());
    let nowhere = rejection(Path::new("no/such/place"));
    assert!(nowhere.starts_with("cannot use no/such/place: no file or folder has this name. "), "{nowhere}");
}

#[test]
fn archives_without_a_data_set_are_rejected() {
    let python: Vec<_> = (1..6).map(|i| (format!("data_batch_{i}"), vec![0x80, 2])).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(ARCHIVE);
    fs::write(&path, archive_of(&python)).unwrap();
    let error = rejection(&path);
    assert!(error.contains("the Python version of CIFAR-10, and only the binary version can be read"), "{error}");
    fs::write(&path, archive_of(&[("readme.html".into(), vec![0])])).unwrap();
    let error = rejection(&path);
    assert!(error.contains("neither CIFAR-10 nor CIFAR-100") && error.contains("Pass a folder of PNG"), "{error}");
    assert!(refusal(b"PK\x03\x04").contains("50 4b"));
    assert!(refusal(&gzip(b"hello")).contains("truncated") || refusal(&gzip(b"hello")).contains("damaged"));
    assert!(refusal(&gzip(&[7; 2048])).contains("damaged"));
}

#[test]
fn python_versions_and_folders_without_data_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = rejection(dir.path());
    for part in ["no PNG or JPEG images", "CIFAR-10 or CIFAR-100", "the four IDX files of MNIST"] {
        assert!(error.contains(part), "{error}");
    }
    for (names, classes) in [
        (&["data_batch_1", "test_batch"][..], 10),
        (&["cifar-10-batches-py"], 10),
        (&["cifar-10-python.tar.gz"], 10),
        (&["cifar-100-python.tar.gz"], 100),
        (&["train", "test", "meta"], 100),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), [0x80, 2]).unwrap();
        }
        let expected = format!("the Python version of CIFAR-{classes}, and only");
        for path in [dir.path().to_owned(), dir.path().join(names[0])] {
            if path.is_dir() || names[0].starts_with("cifar") {
                let error = rejection(&path);
                assert!(error.contains(&expected) && error.contains("-binary.tar.gz"), "{names:?}: {error}");
            }
        }
    }
}

#[test]
fn cifar100_is_read_from_folders_and_archives() {
    let record = |i: u8| [&[i % 20, i][..], &[i; cifar100::RECORD - 2]].concat();
    let files = || -> Vec<(String, Vec<u8>)> {
        let bytes = [
            (0..6).flat_map(record).collect(),
            record(99),
            (0..100).map(|i| format!("class{i}\n")).collect::<String>().into(),
        ];
        cifar100::FILES.iter().map(|name| (*name).to_owned()).zip(bytes).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(cifar100::FOLDER);
    folder_of(&folder, &files());
    let other = tempfile::tempdir().unwrap();
    let packed = other.path().join(cifar100::ARCHIVE);
    fs::write(&packed, archive_of(&files())).unwrap();
    for path in [dir.path(), &folder, other.path(), &packed] {
        let opened = open(&DataSpec::Path(path.into()), &ImageOptions::default(), &mut |_| ()).unwrap();
        assert!(opened.images.is_none());
        let data = opened.dataset;
        assert_eq!((data.name.as_str(), data.train.len(), data.test.len()), ("CIFAR-100", 6, 1));
        assert_eq!((data.train.label(5), data.test.classes()[99].as_str()), (5, "class99"));
    }
    fs::write(folder.join("train.bin"), &record(1)[..3000]).unwrap();
    assert!(rejection(&folder).contains("train.bin: byte 0: record 0 has 3000 of 3074 bytes"));
}

#[test]
fn idx_files_are_read_under_all_names() {
    let file = |magic: u32, sizes: &[u32], data: &[u8]| {
        let header: Vec<u8> = iter::once(&magic).chain(sizes).flat_map(|n| n.to_be_bytes()).collect();
        [&header[..], data].concat()
    };
    let files = [
        file(0x803, &[2, 28, 28], &[9; 2 * 784]),
        file(0x801, &[2], &[0, 4]),
        file(0x803, &[1, 28, 28], &[8; 784]),
        file(0x801, &[1], &[1]),
    ];
    for dotted in [false, true] {
        for packed in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in idx::FILES.iter().zip(&files) {
                let name = if dotted { name.replacen("-idx", ".idx", 1) } else { (*name).to_owned() };
                let (name, bytes) = if packed { (name + ".gz", gzip(bytes)) } else { (name, bytes.clone()) };
                fs::write(dir.path().join(name), bytes).unwrap();
            }
            let data = open(&DataSpec::Path(dir.path().into()), &ImageOptions::default(), &mut |_| ()).unwrap().dataset;
            assert_eq!((data.train.len(), data.test.len(), data.train.size()), (2, 1, (1, 32, 32)));
            assert_eq!(data.train.classes(), ["0", "1", "2", "3", "4"]);
            // A damaged file is named as it is called on the disk.
            let damaged = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
            let bytes = fs::read(&damaged).unwrap();
            fs::write(&damaged, &bytes[..bytes.len() - 1]).unwrap();
            let error = rejection(dir.path());
            let why = if packed { "the gzip file is truncated" } else { "byte 4: the header declares 2 items" };
            let name = damaged.file_name().unwrap().to_str().unwrap();
            assert!(error.contains(&format!("{name}: {why}")), "{error}");
            fs::remove_file(&damaged).unwrap();
            assert!(rejection(dir.path()).contains("train-labels-idx1-ubyte missing"));
        }
    }
}
