//! Errors as the page receives them: a kind and a sentence.

use js_sys::Reflect;
use vae_wgpu::Error;
use wasm_bindgen::JsValue;

/// An error for the page.
#[derive(Debug)]
pub struct Fault {
    kind: &'static str,
    message: String,
}

impl Fault {
    /// A request that cannot be fulfilled, and what to do instead.
    pub(crate) fn invalid(message: impl ToString) -> Self {
        Self { kind: "invalid", message: message.to_string() }
    }

    /// A mistake of this program.
    pub(crate) fn internal(message: impl ToString) -> Self {
        Self { kind: "internal", message: message.to_string() }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NoAdapter { .. } => {
                let message = "this browser has WebGPU, but offers no GPU. Update the graphics driver, or switch on hardware acceleration in \
                               the browser's settings";
                return Self { kind: "no-adapter", message: message.to_owned() };
            }
            Error::DoesNotFit { .. } | Error::OutOfMemory { .. } => "out-of-memory",
            // A browser reports exhausted memory later than the call, without the buffer.
            Error::Device { message, .. } if message.contains("Out of Memory") => {
                let message = "the GPU has no memory left. Use a smaller batch or fewer channels, or close other tabs";
                return Self { kind: "out-of-memory", message: message.to_owned() };
            }
            Error::Device { .. } | Error::Bug(_) | Error::Shader { .. } => "internal",
            _ => "invalid",
        };
        // The cause of an error is not part of its own message.
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Self { kind, message: format!("{error}{cause}") }
    }
}

impl From<Fault> for JsValue {
    fn from(Fault { kind, message }: Fault) -> Self {
        let error = js_sys::Error::new(&message);
        // Setting a property of an object that was just made does not fail.
        let _ = Reflect::set(&error, &"kind".into(), &kind.into());
        error.into()
    }
}
