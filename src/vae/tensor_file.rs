//! Safetensors files of named `f32` arrays.

use std::collections::BTreeMap;
use std::path::Path;

use byteorder::{ByteOrder, LittleEndian, WriteBytesExt};
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::json;

use crate::error::{Error, Result};

/// A row-major array.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes of the dimensions, outermost first.
    pub dims: Vec<usize>,
    /// Values in row-major order.
    pub data: Vec<f32>,
}

/// The content of a safetensors file: named arrays of finite `f32` and a map of strings. Equal content is encoded to equal bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFile {
    /// Strings by key.
    pub metadata: BTreeMap<String, String>,
    /// Arrays by name.
    pub tensors: BTreeMap<String, Array>,
}

/// Suffix of the `i64` batch counters of PyTorch batch norms, which are ignored.
const COUNTER: &str = ".num_batches_tracked";

impl TensorFile {
    /// Encodes the file: header length, JSON header padded to eight bytes, values in the order of the names. `path` is used in errors.
    ///
    /// The writer of the safetensors crate keeps the metadata in a hash map, so its output differs from run to run.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the dimensions of an array do not match its length, [`Error::Checkpoint`] for NaN or infinity.
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        self.encode(path, |_| Dtype::F32)
    }

    /// The same, with the weights of layers, which have two or more dimensions, as 16-bit floats: half of the size. Vectors, such as
    /// running statistics, keep their precision.
    ///
    /// # Errors
    /// As [`TensorFile::to_bytes`]; also for values above 65504, the largest that a 16-bit float can hold.
    pub fn to_half_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        self.encode(path, |array| if array.dims.len() > 1 { Dtype::F16 } else { Dtype::F32 })
    }

    fn encode(&self, path: &Path, dtype: impl Fn(&Array) -> Dtype) -> Result<Vec<u8>> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!(self.metadata));
        let mut end = 0;
        for (name, array) in &self.tensors {
            let Array { dims, data } = array;
            if dims.iter().product::<usize>() != data.len() || name == "__metadata__" {
                return Err(Error::argument(
                    format!("number of values of `{name}`"),
                    format!("the product of {dims:?}"),
                    data.len(),
                ));
            }
            check_finite(path, name, data)?;
            let (start, dtype) = (end, dtype(array));
            end += data.len() * if dtype == Dtype::F16 { 2 } else { 4 };
            header
                .insert(name.clone(), json!({"dtype": dtype.to_string(), "shape": dims, "data_offsets": [start, end]}));
        }
        let mut header = serde_json::Value::Object(header).to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let mut bytes = Vec::with_capacity(8 + header.len() + end);
        bytes.write_u64::<LittleEndian>(header.len() as u64).map_err(Error::bug)?;
        bytes.extend(header.as_bytes());
        for (name, array) in &self.tensors {
            if dtype(array) == Dtype::F16 {
                bytes.extend(half_bytes(path, name, &array.data)?);
            } else {
                append_f32(&mut bytes, &array.data);
            }
        }
        Ok(bytes)
    }

    /// Decodes a file written by [`TensorFile::to_bytes`] or PyTorch; `path` is used in errors. All lengths are checked before use.
    ///
    /// # Errors
    /// [`Error::File`] for a malformed file, [`Error::Checkpoint`] for a type other than `f32`, `f16` and `bf16`, NaN or infinity.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let malformed = |error| Error::malformed("parse", path, defect(bytes, path, &error));
        let (length, header) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
        let data = bytes.get(8 + length..).unwrap_or_default();
        let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut tensors = BTreeMap::new();
        let mut others = Vec::new();
        let infos: BTreeMap<_, _> = header.tensors().into_iter().filter(|(name, _)| !name.ends_with(COUNTER)).collect();
        for (name, info) in infos {
            let (start, end) = info.data_offsets;
            let bytes = data.get(start..end).ok_or_else(|| Error::bug(format!("`{name}` lies outside of its file")))?;
            let values: Vec<f32> = match info.dtype {
                Dtype::F32 => bytes.chunks_exact(4).map(LittleEndian::read_f32).collect(),
                Dtype::F16 => {
                    bytes.chunks_exact(2).map(|v| f16::from_bits(LittleEndian::read_u16(v)).to_f32()).collect()
                }
                Dtype::BF16 => {
                    bytes.chunks_exact(2).map(|v| bf16::from_bits(LittleEndian::read_u16(v)).to_f32()).collect()
                }
                other => {
                    others.push(format!("`{name}` of {other}"));
                    continue;
                }
            };
            check_finite(path, &name, &values)?;
            tensors.insert(name, Array { dims: info.shape.clone(), data: values });
        }
        if others.is_empty() {
            return Ok(Self { metadata, tensors });
        }
        Err(Error::Checkpoint {
            path: path.to_owned(),
            what: "element type".into(),
            expected: "F32, F16 or BF16 for all tensors".into(),
            found: first_few(&others),
            hint: "convert the tensors to float32 before saving them".into(),
        })
    }

    /// Returns the values of the `wanted` tensors, in that order, if the file contains exactly these.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the missing, unexpected and misshapen tensors.
    pub(crate) fn take(mut self, path: &Path, wanted: &[(String, Vec<usize>)]) -> Result<Vec<Vec<f32>>> {
        let (mut missing, mut misshapen, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for (name, dims) in wanted {
            match self.tensors.remove(name) {
                None => missing.push(format!("`{name}`")),
                Some(array) if array.dims != *dims => {
                    misshapen.push(format!("`{name}` {:?} instead of {dims:?}", array.dims));
                }
                Some(array) => taken.push(array.data),
            }
        }
        let unexpected: Vec<String> = self.tensors.keys().map(|name| format!("`{name}`")).collect();
        let kinds = [("missing", &missing), ("unexpected", &unexpected), ("of another shape", &misshapen)];
        let difference: Vec<String> = kinds
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| format!("{} {kind}: {}", names.len(), first_few(names)))
            .collect();
        if difference.is_empty() {
            return Ok(taken);
        }
        let hint = match missing.len() == wanted.len() {
            true => "the file has no weights of such a model: pass a model.safetensors",
            false => "the file belongs to another model: use the same --channels, --blocks, --latent-dim and --norm",
        };
        Err(Error::Checkpoint {
            path: path.to_owned(),
            what: "tensors".into(),
            expected: format!("the {} of the model", wanted.len()),
            found: difference.join("; "),
            hint: hint.into(),
        })
    }
}

/// Appends the little-endian bytes of `values`.
pub(crate) fn append_f32(bytes: &mut Vec<u8>, values: &[f32]) {
    let start = bytes.len();
    bytes.resize(start + 4 * values.len(), 0);
    LittleEndian::write_f32_into(values, &mut bytes[start..]);
}

/// Returns `values` as little-endian 16-bit floats. `path` and `name` are used in errors.
///
/// # Errors
/// [`Error::Checkpoint`] for values above 65504, the largest that a 16-bit float can hold.
pub(crate) fn half_bytes(path: &Path, name: &str, values: &[f32]) -> Result<Vec<u8>> {
    let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    check_finite(path, name, &halves.iter().map(|v| v.to_f32()).collect::<Vec<_>>())?;
    Ok(halves.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Says what is wrong with the bytes of a file that cannot be parsed.
fn defect(bytes: &[u8], path: &Path, error: &SafeTensorError) -> String {
    // The header is an object in JSON, behind its length.
    match (error, bytes.get(8)) {
        _ if bytes.is_empty() => "the file is empty".into(),
        _ if path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("onnx")) => {
            "ONNX models are written for other programs and not read: pass a run or a safetensors file".into()
        }
        (_, Some(first)) if *first != b'{' => "this is not a safetensors file".into(),
        (_, None) => "this is not a safetensors file".into(),
        (SafeTensorError::InvalidHeaderLength | SafeTensorError::MetadataIncompleteBuffer, _) => {
            "its length is not the one in its header: the file was cut off or damaged".into()
        }
        _ => format!("not a valid safetensors file: {error}"),
    }
}

fn check_finite(path: &Path, name: &str, data: &[f32]) -> Result<()> {
    match data.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::Checkpoint {
            path: path.to_owned(),
            what: format!("`{name}`"),
            expected: "finite values".into(),
            found: format!("{} at index {at}", data[at]),
            hint: "use the weights of an earlier epoch".into(),
        }),
    }
}

fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter;

    fn small() -> TensorFile {
        let array = |dims: &[usize]| Array {
            dims: dims.to_vec(),
            data: (0..dims.iter().product::<usize>()).map(|i| i as f32 - 0.1).collect(),
        };
        TensorFile {
            metadata: [("version", "0.1"), ("config", "{\"a\": \"\u{e9}\"}"), ("b", "")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            tensors: [
                ("b.weight", array(&[3, 2, 1, 1])),
                ("a", array(&[5])),
                ("scalar", array(&[])),
                ("none", array(&[0, 7])),
            ]
            .map(|(k, v)| (k.into(), v))
            .into(),
        }
    }

    fn path() -> &'static Path {
        Path::new("x.safetensors")
    }

    /// Returns a file with the given header.
    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn files_round_trip() {
        let bytes = small().to_bytes(path()).unwrap();
        assert_eq!(TensorFile::from_bytes(&bytes, path()).unwrap(), small());
        assert_eq!(bytes, small().to_bytes(path()).unwrap());
        let empty = TensorFile::default();
        assert_eq!(TensorFile::from_bytes(&empty.to_bytes(path()).unwrap(), path()).unwrap(), empty);
        // The format aligns the data to eight bytes.
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
    }

    #[test]
    fn halves_are_rounded_and_vectors_are_not() {
        let bytes = small().to_half_bytes(path()).unwrap();
        assert!(bytes.len() < small().to_bytes(path()).unwrap().len());
        let back = TensorFile::from_bytes(&bytes, path()).unwrap();
        assert_eq!(back.tensors["a"], small().tensors["a"]);
        let (rounded, exact) = (&back.tensors["b.weight"], &small().tensors["b.weight"]);
        assert_eq!(rounded.dims, exact.dims);
        assert!(rounded.data.iter().zip(&exact.data).all(|(a, b)| (a - b).abs() <= b.abs() / 2048.0));
        assert_ne!(rounded.data, exact.data);
        assert_eq!(bytes, back.to_half_bytes(path()).unwrap());
        let large = Array { dims: vec![1, 1], data: vec![70_000.0] };
        let file = TensorFile { tensors: [("large".to_owned(), large)].into(), ..TensorFile::default() };
        assert!(matches!(file.to_half_bytes(path()), Err(Error::Checkpoint { .. })));
        // 1.5 in bfloat16.
        let brain = raw(r#"{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}"#, &[0xc0, 0x3f]);
        assert_eq!(TensorFile::from_bytes(&brain, path()).unwrap().tensors["x"].data, [1.5]);
    }

    #[test]
    fn truncation_at_any_offset_is_an_error() {
        let bytes = small().to_bytes(path()).unwrap();
        let defect = |bytes: &[u8]| {
            let error = TensorFile::from_bytes(bytes, path()).unwrap_err();
            std::error::Error::source(&error).unwrap().to_string()
        };
        for length in 0..bytes.len() {
            let expected = match length {
                0 => "the file is empty",
                1..=8 => "this is not a safetensors file",
                _ => "the file was cut off or damaged",
            };
            let said = defect(&bytes[..length]);
            assert!(said.contains(expected), "{length}: {said}");
        }
        assert!(defect(&[bytes, vec![0]].concat()).contains("cut off or damaged"));
        let onnx = b"\x08\x07\x12\x08vae-wgpu is the producer";
        assert_eq!(defect(onnx), "this is not a safetensors file");
        let error = TensorFile::from_bytes(onnx, Path::new("decoder.onnx")).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("not read: pass a run"));
    }

    #[test]
    fn damaged_headers_never_give_inconsistent_arrays() {
        let bytes = small().to_bytes(path()).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for at in 0..header {
            for value in [0, b'9', b'"', 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                if let Ok(file) = TensorFile::from_bytes(&bytes, path()) {
                    assert!(file.tensors.values().all(|t| t.dims.iter().product::<usize>() == t.data.len()));
                }
            }
        }
    }

    #[test]
    fn hostile_headers_are_rejected() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let two = |a: &str, b: &str| {
            let entry = |name, offsets| format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
            format!("{{{},{}}}", entry("a", a), entry("b", b))
        };
        let cases = [
            ("", ""),
            ("PK", "wrong magic"),
            ("[]", ""),
            (&one("F32", "[2]", "[0,4]"), "size against shape"),
            (&one("F32", "[4]", "[0,16]"), "beyond the end"),
            (&one("F32", "[2]", "[8,0]"), "backwards"),
            (&one("F32", "[-1]", "[0,8]"), "negative"),
            (&one("F32", "[18446744073709551615,18446744073709551615]", "[0,8]"), "overflow"),
            (&one("F32", "[2]", "[18446744073709551608,18446744073709551615]"), "overflow"),
            (&one("X7", "[2]", "[0,8]"), "unknown type"),
            (&two("[0,8]", "[0,8]"), "overlap"),
            (&two("[0,8]", "[4,12]"), "overlap"),
        ];
        for (header, what) in cases {
            let error = TensorFile::from_bytes(&raw(header, &[0; 8]), path()).unwrap_err();
            assert!(matches!(error, Error::File { .. }), "{what}: {error}");
        }
        for length in [9, 1 << 20, u64::from(u32::MAX), u64::MAX, u64::MAX - 7] {
            assert!(TensorFile::from_bytes(&[&length.to_le_bytes()[..], b"{}"].concat(), path()).is_err());
        }
    }

    #[test]
    fn other_element_types_are_rejected_by_name() {
        let header = r#"{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]},"n.num_batches_tracked":{"dtype":"I64","shape":[],"data_offsets":[4,12]}}"#;
        let error = TensorFile::from_bytes(&raw(header, &[0; 12]), path()).unwrap_err().to_string();
        assert!(error.contains("found `a` of I32. Convert"), "{error}");
        let header = header.replace("I32", "F32");
        let file = TensorFile::from_bytes(&raw(&header, &[0; 12]), path()).unwrap();
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn non_finite_values_are_rejected_on_write_and_read() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut file = small();
            file.tensors.get_mut("b.weight").unwrap().data[4] = bad;
            let error = file.to_bytes(path()).unwrap_err().to_string();
            assert!(error.contains("`b.weight`: expected finite values") && error.contains("index 4"), "{error}");
            let mut bytes = small().to_bytes(path()).unwrap();
            let at = bytes.len() - 8;
            bytes[at..at + 4].copy_from_slice(&bad.to_le_bytes());
            assert!(TensorFile::from_bytes(&bytes, path()).unwrap_err().to_string().contains("finite"));
        }
    }

    #[test]
    fn dimensions_must_match_the_length() {
        let mut file = small();
        file.tensors.get_mut("a").unwrap().dims.push(2);
        assert!(file.to_bytes(path()).is_err());
    }

    #[test]
    fn mismatched_tensors_are_listed() {
        let wanted: Vec<_> =
            iter::once(("a".to_owned(), vec![4])).chain((0..11).map(|i| (format!("m{i}"), vec![1]))).collect();
        let error = small().take(path(), &wanted).unwrap_err().to_string();
        for part in [
            "expected the 12 of the model",
            "11 missing: `m0`, `m1`",
            "`m7` and 3 more; ",
            "3 unexpected: `b.weight`, `none`, `scalar`; ",
            "1 of another shape: `a` [5] instead of [4]",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
