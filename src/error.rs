//! The error type of the library: the values that were compared, and how to get out of it.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use crate::runtime::tensor::Shape;

/// A `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// All failures of this crate below the command line.
///
/// A message is one line: the failure in lower case, then a sentence with the way out where there is one. An underlying cause is not part
/// of the message but of [`source()`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting, option, size or attribute outside of its range.
    #[error("invalid {name}: expected {expected}, found {found}")]
    InvalidArgument {
        /// Name of the setting, e.g. `learning rate`, or of an operation's attribute, e.g. `stride of conv2d`.
        name: String,
        /// The accepted values.
        expected: String,
        /// The value that was passed.
        found: String,
    },
    /// A tensor of the wrong shape.
    #[error("{node}: `{operand}` has shape {found}, expected {expected}")]
    Shape {
        /// Node and operation, e.g. `encoder.stem: conv2d`.
        node: String,
        /// Operand of the operation, e.g. `x`.
        operand: String,
        /// The shape that the operation accepts.
        expected: Shape,
        /// The shape that was passed.
        found: Shape,
    },
    /// A graph that cannot be built, differentiated or run.
    #[error("invalid graph: {0}")]
    Graph(String),
    /// A buffer, plan or dispatch that exceeds a limit.
    #[error("{what} needs {}. {}", excess(*.needed, *.limit, .unit), batch_hint(*.largest_batch))]
    DoesNotFit {
        /// The largest thing that does not fit, e.g. `the largest tensor of batch 4096`.
        what: String,
        /// Required size in `unit`.
        needed: u64,
        /// Largest accepted size in `unit`.
        limit: u64,
        /// Unit of both, e.g. `bytes`.
        unit: &'static str,
        /// The largest batch size that fits, 0 if none does; `None` where it was not determined.
        largest_batch: Option<usize>,
    },
    /// The device has no memory left.
    #[error("out of memory: cannot allocate {bytes} bytes for {what}. Use a smaller batch or fewer channels")]
    OutOfMemory {
        /// The buffer.
        what: String,
        /// Its size.
        bytes: u64,
    },
    /// No adapter matches the request.
    #[error("no usable GPU adapter: {wanted}; {found}. {}", sentence(hint))]
    NoAdapter {
        /// The request.
        wanted: String,
        /// The adapters that exist.
        found: String,
        /// How to get one.
        hint: String,
    },
    /// A kernel variant that the device cannot run.
    #[error("{what} requires {needs}, which the device does not support")]
    Unsupported {
        /// The variant.
        what: String,
        /// The missing feature or limit.
        needs: String,
    },
    /// An error reported by the device or its driver, or a lost device.
    #[error("device error: {context}: {message}")]
    Device {
        /// The failed action.
        context: String,
        /// The message of wgpu or the driver.
        message: String,
    },
    /// A shader that does not expand or compile.
    #[error("cannot compile shader {file}:{line}: {message}")]
    Shader {
        /// File below `shaders/`.
        file: String,
        /// Line in that file, from 1.
        line: usize,
        /// The message of the preprocessor or the compiler.
        message: String,
    },
    /// NaN or infinity in a training step.
    #[error(
        "non-finite value in {tensor} at step {step}: the update was not applied. Try a lower learning rate or clip gradients to a smaller norm"
    )]
    NonFinite {
        /// The first tensor found to contain NaN or infinity.
        tensor: String,
        /// Step, from 1.
        step: u64,
    },
    /// NaN or infinity in the output of a trained model.
    #[error(
        "{what} contains NaN or infinity: the model has diverged. Train it with a lower learning rate, or use the weights of an earlier epoch"
    )]
    NonFiniteOutput {
        /// The output.
        what: String,
    },
    /// A data set that is missing, damaged or of another kind.
    #[error("cannot use {}: {}. {}", printable(file), printable(what), sentence(hint))]
    Data {
        /// File, folder or member of an archive.
        file: String,
        /// The finding, with its offset where it has one, and the expected content.
        what: String,
        /// How to get a good copy.
        hint: String,
    },
    /// A failed download; its cause is the source.
    ///
    /// The message leaves the hint out, because it belongs behind the cause.
    #[error("cannot download {url}")]
    Download {
        /// Address of the file.
        url: String,
        /// How to go on, with and without a network.
        hint: String,
        /// The last failure.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name that is not in a table of names.
    #[error("unknown {kind} `{name}`: expected {}{known}", one_of(.known))]
    Unknown {
        /// Kind of name, e.g. `tensor`.
        kind: &'static str,
        /// The unknown name.
        name: String,
        /// The known names.
        known: String,
    },
    /// A broken invariant of this crate: please report it.
    #[error("internal error: {0}. This is a bug in vae-wgpu; please report it")]
    Bug(String),
    /// A file or folder that cannot be read, written or parsed.
    #[error("cannot {doing} {}", printable(path.display()))]
    File {
        /// The failed action, e.g. `write`.
        doing: String,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The folder of a run in progress was removed and is now used by another run.
    #[error("another process has taken over run folder {}; cannot save this run there", printable(path.display()))]
    RunFolderLost {
        /// The folder.
        path: PathBuf,
    },
    /// A failure of one of several processes that train together.
    #[error("rank {rank}: {}", printable(message))]
    Rank {
        /// Number of the process, from 0.
        rank: usize,
        /// Its error.
        message: String,
        /// Whether the error was a value that is not finite.
        diverged: bool,
    },
    /// Weights or a checkpoint that do not match the model or the run.
    #[error("cannot use {}: {}: expected {expected}, found {}. {}", printable(path.display()), printable(what), printable(found), sentence(hint))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The mismatched field or tensor.
        what: String,
        /// The required value.
        expected: String,
        /// The value in the file.
        found: String,
        /// How to get a matching file.
        hint: String,
    },
}

impl Error {
    /// Adds a way out behind the cause of an error about a file. Other errors have theirs and stay as they are.
    #[must_use]
    pub(crate) fn with_way_out(self, way_out: impl fmt::Display) -> Self {
        match self {
            Self::File { doing, path, source } => {
                let cause = io::Error::new(source.kind(), format!("{source}. {way_out}"));
                Self::File { doing, path, source: cause }
            }
            error => error,
        }
    }
}

/// What stands before a list of names; nothing before a single one.
fn one_of(names: &str) -> &'static str {
    if names.contains(", ") { "one of " } else { "" }
}

impl Error {
    /// Returns an [`Error::InvalidArgument`] from anything printable.
    pub fn argument(name: impl fmt::Display, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self::InvalidArgument { name: name.to_string(), expected: expected.to_string(), found: found.to_string() }
    }

    /// Returns an [`Error::Shape`] for an operand of a node or operation.
    pub fn shape(node: impl fmt::Display, operand: impl fmt::Display, expected: Shape, found: Shape) -> Self {
        Self::Shape { node: node.to_string(), operand: operand.to_string(), expected, found }
    }

    /// Returns an [`Error::DoesNotFit`] for bytes, with an unknown largest batch.
    pub fn does_not_fit(what: impl fmt::Display, needed: u64, limit: u64) -> Self {
        Self::DoesNotFit { what: what.to_string(), needed, limit, unit: "bytes", largest_batch: None }
    }

    /// Returns an [`Error::Bug`] from anything printable.
    pub fn bug(what: impl fmt::Display) -> Self {
        Self::Bug(what.to_string())
    }

    /// Returns an [`Error::Device`] from anything printable.
    pub fn device(context: impl fmt::Display, message: impl fmt::Display) -> Self {
        Self::Device { context: context.to_string(), message: message.to_string() }
    }

    /// Returns an [`Error::Data`] from anything printable.
    pub fn data(file: impl fmt::Display, what: impl fmt::Display, hint: impl fmt::Display) -> Self {
        Self::Data { file: file.to_string(), what: what.to_string(), hint: hint.to_string() }
    }

    /// Turns an I/O error into an [`Error::File`]: `fs::read(path).map_err(Error::file("read", path))`.
    pub fn file(doing: impl fmt::Display, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing: doing.to_string(), path: path.to_owned(), source }
    }

    /// Returns an [`Error::File`] for malformed content.
    pub fn malformed(
        doing: impl fmt::Display,
        path: &Path,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::file(doing, path)(io::Error::new(io::ErrorKind::InvalidData, printable(why.into())))
    }

    /// Returns the hint of an [`Error::Download`], to be printed after its cause. All other hints are part of the message.
    #[must_use]
    pub fn trailing_hint(&self) -> Option<String> {
        match self {
            Self::Download { hint, .. } => Some(sentence(hint)),
            _ => None,
        }
    }

    /// Adds the name of the node to an error of its operation about a shape or an attribute.
    #[must_use]
    pub fn at_node(self, node: &str) -> Self {
        match self {
            Self::Shape { node: op, operand, expected, found } => {
                Self::Shape { node: format!("{node}: {op}"), operand, expected, found }
            }
            Self::InvalidArgument { name, expected, found } => {
                Self::InvalidArgument { name: format!("{name} at node `{node}`"), expected, found }
            }
            other => other,
        }
    }
}

/// `3 workgroups but the limit is 2`; large numbers of bytes in MiB, if that shows the difference.
fn excess(needed: u64, limit: u64, unit: &str) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    if unit == "bytes" && limit >= 1 << 20 && mib(needed) != mib(limit) {
        return format!("{} but the limit is {}", mib(needed), mib(limit));
    }
    format!("{needed} {unit} but the limit is {limit}")
}

/// The way out of [`Error::DoesNotFit`].
fn batch_hint(largest: Option<usize>) -> String {
    match largest {
        None => "Use a smaller batch or fewer channels".to_owned(),
        Some(0) => "Not even a batch of 1 fits: use fewer channels".to_owned(),
        Some(batch) => format!("The largest batch that fits is {batch}"),
    }
}

/// `hint` as a sentence of its own.
fn sentence(hint: &str) -> String {
    let mut rest = hint.chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).collect()).unwrap_or_default()
}

/// Text from a file or another program, made safe to print: one line of bounded length without control characters.
pub(crate) fn printable(text: impl fmt::Display) -> String {
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
    fn control_characters_are_stripped_from_messages() {
        let hostile = "a\n\u{1b}[2Jb\u{9b}c";
        let path = Path::new(hostile);
        let text = || hostile.to_owned();
        let long = "x".repeat(1 << 20);
        for error in [
            Error::data(hostile, hostile, ""),
            Error::file("read", path)(io::ErrorKind::NotFound.into()),
            Error::malformed("parse", path, hostile),
            Error::malformed("parse", path, long.as_str()),
            Error::RunFolderLost { path: path.to_owned() },
            Error::Checkpoint {
                path: path.to_owned(),
                what: text(),
                expected: String::new(),
                found: long.clone(),
                hint: String::new(),
            },
        ] {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            let message = format!("{error}{source}");
            assert!(!message.chars().any(char::is_control) && message.len() < 2000, "{message:?}");
        }
    }

    #[test]
    fn hints_are_sentences() {
        let fit = |largest_batch| Error::DoesNotFit {
            what: "the plan".into(),
            needed: 2,
            limit: 1,
            unit: "bytes",
            largest_batch,
        };
        assert_eq!(
            fit(None).to_string(),
            "the plan needs 2 bytes but the limit is 1. Use a smaller batch or fewer channels"
        );
        let mib = |needed| Error::does_not_fit("the plan", needed, 3 << 20).to_string();
        assert!(mib(5 << 20).starts_with("the plan needs 5.0 MiB but the limit is 3.0 MiB. "));
        assert!(mib((3 << 20) + 4).starts_with("the plan needs 3145732 bytes but the limit is 3145728. "));
        assert!(fit(Some(7)).to_string().ends_with(". The largest batch that fits is 7"));
        let data = Error::data("a.bin", "3 bytes, expected 4", "download it again");
        assert_eq!(data.to_string(), "cannot use a.bin: 3 bytes, expected 4. Download it again");
    }

    #[test]
    fn known_names_are_listed() {
        let of = |known: &str| {
            Error::Unknown { kind: "file extension of", name: "x.jpg".into(), known: known.into() }.to_string()
        };
        assert_eq!(of(".png"), "unknown file extension of `x.jpg`: expected .png");
        assert_eq!(of(".npy, .csv"), "unknown file extension of `x.jpg`: expected one of .npy, .csv");
    }

    #[test]
    fn errors_of_operations_name_their_node() {
        let shape = Error::shape("add", "b", Shape::vector(3), Shape::vector(4)).at_node("sum");
        assert_eq!(shape.to_string(), "sum: add: `b` has shape [1, 4, 1, 1], expected [1, 3, 1, 1]");
        let argument = Error::argument("stride of conv2d", "at least 1", 0).at_node("stem");
        assert_eq!(argument.to_string(), "invalid stride of conv2d at node `stem`: expected at least 1, found 0");
    }
}
