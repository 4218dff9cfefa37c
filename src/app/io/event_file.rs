//! Records of TensorBoard's event files: messages in the format of protocol buffers, each with checksums.
//!
//! The messages have the names and numbers of TensorBoard's `event.proto`, `summary.proto`, `histogram.proto` and
//! `plugins/hparams/plugin_data.proto`, as far as they are needed here. TensorBoard reads the older fields for scalars, images and
//! histograms in every version; the newer ones need TensorFlow's tensors.

use std::collections::BTreeMap;

use prost::{Message, Oneof};

/// Something that happened at a step.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Time in seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// Index of the step.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What happened.
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

/// What an [`Event`] is about.
#[derive(Clone, PartialEq, Oneof)]
pub enum What {
    /// Version of the format: the first record of a file.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Values to show.
    #[prost(message, tag = "5")]
    Summary(Summary),
    /// Start of a process that writes events.
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// A note on the process that writes events.
#[derive(Clone, PartialEq, Message)]
pub struct SessionLog {
    /// [`SessionLog::START`].
    #[prost(int32, tag = "1")]
    pub status: i32,
}

impl SessionLog {
    /// From its second one on, TensorBoard drops what earlier files have of this step and later ones.
    pub const START: i32 = 1;
}

/// Values to show.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    /// Values.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

/// A value of a curve, an image or a histogram.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// Name; the part before the first slash groups values.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// For values of plugins.
    #[prost(message, optional, tag = "9")]
    pub metadata: Option<Metadata>,
    /// The value itself.
    #[prost(oneof = "Content", tags = "2, 4, 5")]
    pub content: Option<Content>,
}

/// The content of a [`Value`].
#[derive(Clone, PartialEq, Oneof)]
pub enum Content {
    /// A point of a curve.
    #[prost(float, tag = "2")]
    Scalar(f32),
    /// An image.
    #[prost(message, tag = "4")]
    Image(Image),
    /// A histogram.
    #[prost(message, tag = "5")]
    Histogram(Histogram),
}

/// An image.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    /// Height in pixels.
    #[prost(int32, tag = "1")]
    pub height: i32,
    /// Width in pixels.
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// Number of channels.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    /// The file.
    #[prost(bytes = "vec", tag = "4")]
    pub png: Vec<u8>,
}

/// A histogram.
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    /// Smallest value: the left end of the first bucket.
    #[prost(double, tag = "1")]
    pub min: f64,
    /// Largest value.
    #[prost(double, tag = "2")]
    pub max: f64,
    /// Number of values.
    #[prost(double, tag = "3")]
    pub count: f64,
    /// Sum of the values.
    #[prost(double, tag = "4")]
    pub sum: f64,
    /// Sum of their squares.
    #[prost(double, tag = "5")]
    pub sum_squares: f64,
    /// Right end of each bucket.
    #[prost(double, repeated, tag = "6")]
    pub limits: Vec<f64>,
    /// Number of values in each bucket.
    #[prost(double, repeated, tag = "7")]
    pub counts: Vec<f64>,
}

/// Number of buckets of [`Histogram::of`], as in TensorFlow.
const BUCKETS: usize = 30;

impl Histogram {
    /// Counts values in buckets of equal width.
    #[must_use]
    pub fn of(values: &[f32]) -> Self {
        let values = || values.iter().map(|&value| f64::from(value));
        let (min, max) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        if min >= max {
            // All in one bucket.
            let count = values().count() as f64;
            let sum = min * count;
            return Self { min, max, count, sum, sum_squares: min * sum, limits: vec![max], counts: vec![count] };
        }
        let width = (max - min) / BUCKETS as f64;
        let mut counts = vec![0.0; BUCKETS];
        for value in values() {
            // The largest value belongs to the last bucket.
            counts[(((value - min) / width) as usize).min(BUCKETS - 1)] += 1.0;
        }
        let limits = (1..=BUCKETS).map(|i| if i == BUCKETS { max } else { min + width * i as f64 }).collect();
        Self {
            min,
            max,
            count: values().count() as f64,
            sum: values().sum(),
            sum_squares: values().map(|value| value * value).sum(),
            limits,
            counts,
        }
    }
}

/// The plugin that a value belongs to.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// The plugin.
    #[prost(message, optional, tag = "1")]
    pub plugin: Option<Plugin>,
}

/// Data of a plugin.
#[derive(Clone, PartialEq, Message)]
pub struct Plugin {
    /// Name of the plugin.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its data, in a format of its own.
    #[prost(bytes = "vec", tag = "2")]
    pub content: Vec<u8>,
}

/// Data of the plugin `hparams`.
#[derive(Clone, PartialEq, Message)]
pub struct HparamsData {
    /// Start of a run.
    #[prost(message, optional, tag = "3")]
    pub start: Option<SessionStart>,
}

/// The hyperparameters of a run.
#[derive(Clone, PartialEq, Message)]
pub struct SessionStart {
    /// Hyperparameters by name.
    #[prost(btree_map = "string, message", tag = "1")]
    pub hparams: BTreeMap<String, Hparam>,
    /// Time of the start in seconds since 1970.
    #[prost(double, tag = "5")]
    pub seconds: f64,
}

/// A hyperparameter.
#[derive(Clone, PartialEq, Message)]
pub struct Hparam {
    /// Its value.
    #[prost(oneof = "HparamValue", tags = "2, 3, 4")]
    pub value: Option<HparamValue>,
}

/// The value of a hyperparameter.
#[derive(Clone, PartialEq, Oneof)]
pub enum HparamValue {
    /// A number.
    #[prost(double, tag = "2")]
    Number(f64),
    /// Text.
    #[prost(string, tag = "3")]
    Text(String),
    /// Yes or no.
    #[prost(bool, tag = "4")]
    Bool(bool),
}

/// Returns an event as a record (TensorFlow's TFRecord): the length of the message in 8 bytes, their checksum, the message, its checksum;
/// all numbers in little-endian order.
#[must_use]
pub fn record(event: &Event) -> Vec<u8> {
    let message = event.encode_to_vec();
    let length = (message.len() as u64).to_le_bytes();
    [&length[..], &checksum(&length).to_le_bytes(), &message, &checksum(&message).to_le_bytes()].concat()
}

/// CRC-32C, rotated and shifted: so that a checksum of data that contain checksums is no simpler than others.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_those_that_tensorboard_writes() {
        // Bytes from TensorBoard 2.21's EventFileWriter.
        let version = Event { wall_time: 1.5, step: 0, what: Some(What::FileVersion("brain.Event:2".to_owned())) };
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(&record(&version)),
            "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c"
        );
        let loss = Value { tag: "a/b".to_owned(), metadata: None, content: Some(Content::Scalar(0.0)) };
        let summary = Event { wall_time: 2.0, step: 300, what: Some(What::Summary(Summary { values: vec![loss] })) };
        assert_eq!(
            hex(&record(&summary)),
            "1a00000000000000129bd82d09000000000000004010ac022a0c0a0a0a03612f621500000000b37a0c85"
        );
        let start = SessionLog { status: SessionLog::START };
        let session = Event { wall_time: 2.0, step: 7, what: Some(What::SessionLog(start)) };
        assert_eq!(hex(&record(&session)), "0f000000000000006d532b0909000000000000004010073a020801d1715dcb");
    }

    #[test]
    fn histograms_count_every_value_once() {
        let values: Vec<f32> = (0..=300).map(|i| i as f32 / 10.0 - 10.0).collect();
        let histogram = Histogram::of(&values);
        assert_eq!((histogram.min, histogram.max, histogram.count), (-10.0, 20.0, 301.0));
        assert_eq!((histogram.limits.len(), histogram.counts.len()), (BUCKETS, BUCKETS));
        assert!(histogram.limits.is_sorted() && histogram.limits[BUCKETS - 1] == 20.0);
        assert_eq!(histogram.counts.iter().sum::<f64>(), 301.0);
        assert!(histogram.counts.iter().all(|count| (9.0..=11.0).contains(count)), "{:?}", histogram.counts);
        assert!((histogram.sum - 1505.0).abs() < 1e-3 && histogram.sum_squares > 0.0);
        let same = Histogram::of(&[0.5; 4]);
        assert_eq!((same.min, same.max, same.sum, same.sum_squares), (0.5, 0.5, 2.0, 1.0));
        assert_eq!((same.limits, same.counts), (vec![0.5], vec![4.0]));
    }
}
