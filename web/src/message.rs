//! Results and events as values of JavaScript.

use js_sys::{JSON, Object, Reflect, Uint8ClampedArray};
use serde::Serialize;
use vae_wgpu::vae::data::Images;
use wasm_bindgen::JsValue;

use crate::fault::Fault;

/// Returns a serializable value. NaN and infinity become null.
pub(crate) fn json(value: &impl Serialize) -> Result<JsValue, Fault> {
    let text = serde_json::to_string(value).map_err(Fault::internal)?;
    JSON::parse(&text).map_err(|_| Fault::internal("a message that is not JSON"))
}

/// Returns an object with these fields.
pub(crate) fn object<const N: usize>(fields: [(&str, JsValue); N]) -> JsValue {
    let object = Object::new();
    for (name, value) in fields {
        // Setting a property of an object that was just made does not fail.
        let _ = Reflect::set(&object, &name.into(), &value);
    }
    object.into()
}

/// Returns pictures from bytes, `[n, c, h, w]`.
pub(crate) fn pictures((c, h, w): (usize, usize, usize), bytes: &[u8]) -> JsValue {
    let plane = h * w;
    let count = bytes.len() / (c * plane).max(1);
    let mut rgba = Vec::with_capacity(count * plane * 4);
    for picture in bytes.chunks_exact((c * plane).max(1)) {
        for i in 0..plane {
            // One channel is grey; further ones than three cannot be shown.
            let channel = |k: usize| picture[k.min(c - 1) * plane + i];
            rgba.extend([channel(0), channel(1), channel(2), 255]);
        }
    }
    object([
        ("width", (w as f64).into()),
        ("height", (h as f64).into()),
        ("channels", (c as f64).into()),
        ("count", (count as f64).into()),
        ("rgba", Uint8ClampedArray::from(rgba.as_slice()).into()),
    ])
}

/// Returns decoded pictures, `[n, c, h, w]` with values from -1 to 1.
pub(crate) fn decoded(size: (usize, usize, usize), values: &[f32]) -> JsValue {
    let bytes: Vec<u8> = values.iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect();
    pictures(size, &bytes)
}

/// Returns some images as pictures.
pub(crate) fn images(images: &dyn Images, indices: &[u32]) -> Result<JsValue, Fault> {
    let mut bytes = Vec::new();
    vae_wgpu::vae::data::batch(images, indices, &mut bytes)?;
    Ok(pictures(images.size(), &bytes))
}
