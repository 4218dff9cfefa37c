//! Files that grow record by record and survive a kill.
//!
//! Each record is one write, so only the last one can be incomplete. Records that fail to write, for example on a full disk, are kept and
//! written with the next one.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::app::io::atomic::trace;
use crate::error::{Error, Result};

/// A file open for appending.
#[derive(Debug)]
pub struct AppendFile {
    path: PathBuf,
    file: File,
    /// Length in bytes of the complete records in the file.
    length: u64,
    /// Whether an incomplete record may follow them.
    torn: bool,
    /// Records that are not in the file yet.
    pending: Vec<u8>,
}

impl AppendFile {
    /// Opens an existing file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || {
            let file = File::options().append(true).open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(Error::file("append to", path))?;
        Ok(Self { path: path.to_owned(), file, length, torn: false, pending: Vec::new() })
    }

    /// Cuts the file to its first `length` bytes.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be truncated.
    pub fn truncate(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(Error::file("truncate", &self.path))?;
        (self.length, self.torn) = (length, false);
        Ok(())
    }

    /// Appends a record, after all pending ones.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be written; the next call retries.
    pub fn push(&mut self, record: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(record);
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        if self.torn {
            self.truncate(self.length)?;
        }
        if let Err(error) = self.file.write_all(&self.pending) {
            // An incomplete record would corrupt the records after it.
            self.torn = true;
            let _ = self.truncate(self.length);
            return Err(Error::file("append to", &self.path)(error));
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Syncs the records to disk. Must be called before saving a checkpoint that depends on them.
    ///
    /// # Errors
    /// [`Error::File`] if pending records cannot be written or the sync fails.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        trace::record("sync rows", self.file.sync_data()).map_err(Error::file("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// `/dev/full` exists only on Linux.
    #[cfg(target_os = "linux")]
    #[test]
    fn failed_records_are_retried_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records");
        fs::write(&path, "0\n1\n").unwrap();
        let mut records = AppendFile::open(&path).unwrap();
        let full = File::options().append(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut records.file, full);
        let error = records.push(b"2\n").unwrap_err();
        assert!(matches!(error, Error::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
        assert!(records.push(b"3\n").is_err() && records.sync().is_err());
        assert_eq!(fs::read(&path).unwrap(), b"0\n1\n");
        // Part of a record was written before the disk was full.
        records.file = good;
        records.file.write_all(b"2").unwrap();
        records.push(b"4\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"0\n1\n2\n3\n4\n");
    }
}
