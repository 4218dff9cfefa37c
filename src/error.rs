//! The one error type of the library: what was compared, what was found, and the way out.

use std::path::{Path, PathBuf};
use std::{fmt, io};

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong below the command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor or an attribute does not fit the operation that it was given to.
    #[error("{op}: {what}: expected {expected}, found {found}")]
    Shape {
        /// Node or operation, e.g. `encoder.stem: conv2d`.
        op: String,
        /// What was looked at, e.g. `channels of x`.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A graph that cannot be built or differentiated.
    #[error("graph: {0}")]
    Graph(String),
    /// The plan does not fit the device.
    #[error("{what} needs {needed} bytes but the device allows {limit}; {hint}")]
    DoesNotFit {
        /// The largest thing that does not fit.
        what: String,
        /// Bytes asked for.
        needed: u64,
        /// Bytes allowed.
        limit: u64,
        /// The way out, e.g. the largest batch that fits.
        hint: String,
    },
    /// No adapter fits what was asked for.
    #[error("no usable GPU adapter: {wanted}; {found}. {hint}")]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// What is there.
        found: String,
        /// The way out.
        hint: String,
    },
    /// The device lacks something that was asked for by name.
    #[error("{what} needs {needs}, which the device does not have")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What it needs.
        needs: String,
    },
    /// The device reported an error or was lost.
    #[error("device: {context}: {message}")]
    Device {
        /// What was being done.
        context: String,
        /// The driver's or wgpu's own words.
        message: String,
    },
    /// A shader does not expand or compile.
    #[error("shader {file}:{line}: {message}")]
    Shader {
        /// File below `shaders/`.
        file: String,
        /// Line in that file, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A number that must be finite is not.
    #[error("non-finite value in {tensor} at step {step}: the update was refused")]
    NonFinite {
        /// The first tensor found to hold NaN or infinity.
        tensor: String,
        /// Step, from 0.
        step: u64,
    },
    /// A trained model whose numbers are finite gives numbers that are not.
    #[error("{what} is not finite: the model has diverged; go back to an earlier one")]
    NonFiniteOutput {
        /// What was computed with it.
        what: String,
    },
    /// A data set that is missing, damaged or of another kind.
    #[error("{}: {}; {hint}", printable(file), printable(what))]
    Data {
        /// File, folder or member of an archive.
        file: String,
        /// What was found there (with its offset, where it has one) and what was expected.
        what: String,
        /// The way out.
        hint: String,
    },
    /// A download that failed; its cause is the source.
    #[error("cannot download {url}; {hint}")]
    Download {
        /// What was asked for.
        url: String,
        /// The way out, without a network too.
        hint: String,
        /// What went wrong last.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name that does not exist in a table of names.
    #[error("unknown {kind} `{name}`: expected one of {known}")]
    Unknown {
        /// Kind of thing, e.g. `tensor`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A broken invariant of this crate: please report it.
    #[error("internal error: {0} (this is a bug in vae-wgpu, please report it)")]
    Bug(String),
    /// A file or folder that cannot be read, written or understood.
    #[error("cannot {doing} {}", printable(path.display()))]
    File {
        /// What was being done, e.g. `write`.
        doing: String,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The folder of a run in progress was removed and taken by another run.
    #[error("{} belongs to another run by now: nothing of this one can be saved there", printable(path.display()))]
    RunFolderLost {
        /// The folder.
        path: PathBuf,
    },
    /// Weights or a checkpoint that do not fit what they are to be used for.
    #[error("{}: {}: expected {expected}, found {}; {hint}", printable(path.display()), printable(what), printable(found))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What was looked at.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What is in the file.
        found: String,
        /// The way out.
        hint: String,
    },
}

impl Error {
    /// A [`Error::Shape`] from anything printable.
    pub fn shape(
        op: impl fmt::Display,
        what: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Self {
        Self::Shape {
            op: op.to_string(),
            what: what.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// A [`Error::Bug`] from anything printable.
    pub fn bug(what: impl fmt::Display) -> Self {
        Self::Bug(what.to_string())
    }

    /// A [`Error::Device`] from anything printable.
    pub fn device(context: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::Device { context: context.to_string(), message: message.to_string() }
    }

    /// A [`Error::Data`] from anything printable.
    pub fn data(file: impl fmt::Display, what: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self::Data { file: file.to_string(), what: what.to_string(), hint: hint.to_string() }
    }

    /// Turns an I/O error into an [`Error::File`]: `fs::read(path).map_err(Error::file("read", path))`.
    pub fn file(doing: impl fmt::Display, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing: doing.to_string(), path: path.to_owned(), source }
    }

    /// An [`Error::File`] for content that makes no sense.
    pub fn garbled(
        doing: impl fmt::Display,
        path: &Path,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::file(doing, path)(io::Error::new(io::ErrorKind::InvalidData, printable(why.into())))
    }

    /// Names the node in front of a shape error of its operation.
    #[must_use]
    pub fn at_node(self, node: &str) -> Self {
        match self {
            Self::Shape { op, what, expected, found } => {
                Self::Shape { op: format!("{node}: {op}"), what, expected, found }
            }
            other => other,
        }
    }
}

/// Text from outside as a message may show it: on one line, of a length that can be read, without what a terminal would obey.
fn printable(text: impl fmt::Display) -> String {
    const MOST: usize = 1000;
    let text = text.to_string();
    let mut shown: String = text.chars().take(MOST).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push_str(" ...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_cannot_speak_to_the_terminal() {
        let evil = "a\n\u{1b}[2Jb\u{9b}c";
        let path = Path::new(evil);
        let text = || evil.to_owned();
        let long = "x".repeat(1 << 20);
        for error in [
            Error::data(evil, evil, ""),
            Error::file("read", path)(io::ErrorKind::NotFound.into()),
            Error::garbled("understand", path, evil),
            Error::garbled("understand", path, long.as_str()),
            Error::RunFolderLost { path: path.to_owned() },
            Error::Checkpoint {
                path: path.to_owned(),
                what: text(),
                expected: String::new(),
                found: long.clone(),
                hint: String::new(),
            },
        ] {
            let said = format!("{:#}", anyhow::Error::from(error));
            assert!(!said.chars().any(char::is_control) && said.len() < 2000, "{said:?}");
        }
    }
}
