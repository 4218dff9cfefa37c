//! Traces of a profiled training step for [Perfetto](https://ui.perfetto.dev).

use std::path::Path;

use serde_json::{Value, json};

use crate::app::io::atomic::save_atomic;
use crate::error::{Error, Result};
use crate::runtime::gpu::Span;
use crate::vae::train::profile::{HostSpan, Profile};

/// Writes a trace in Chrome's JSON format for Perfetto and `chrome://tracing`, with one track for the device and one for the host.
///
/// The clocks of device and host are not synchronised. The first dispatch is placed at the end of submission.
///
/// # Errors
/// [`Error::File`] if it cannot be written.
pub fn save_trace(profile: &Profile, path: &Path) -> Result<()> {
    let text = serde_json::to_vec(&trace(profile)).map_err(Error::bug)?;
    save_atomic(path, &text)
}

fn trace(profile: &Profile) -> Value {
    // Timestamps in a trace start at zero.
    let zero = profile.host.iter().map(|span| span.begin_ns).fold(0.0, f64::min);
    let name = |what: &str, tid: u32, name: &str| json!({"ph": "M", "name": what, "pid": 1, "tid": tid, "args": {"name": name}});
    let mut events = vec![
        name("process_name", DEVICE, &format!("vae-wgpu, training step {}", profile.step)),
        name("thread_name", DEVICE, &profile.device),
        name("thread_name", HOST, "host"),
    ];
    let event = |name: &str, tid: u32, begin: f64, ns: f64, args: Value| {
        json!({
            "ph": "X", "cat": if tid == HOST { "host" } else { "device" }, "name": name, "pid": 1, "tid": tid,
            "ts": (begin - zero) / 1e3, "dur": ns / 1e3, "args": args,
        })
    };
    for Span { label, kernel, variant, begin_ns, ns } in &profile.spans {
        if let (Some(begin), Some(ns)) = (begin_ns, ns) {
            events.push(event(label, DEVICE, *begin, *ns, json!({"kernel": kernel, "variant": variant})));
        }
    }
    for HostSpan { name, begin_ns, ns } in &profile.host {
        events.push(event(name, HOST, *begin_ns, *ns, json!({})));
    }
    json!({
        "displayTimeUnit": "ms",
        "otherData": {"version": env!("CARGO_PKG_VERSION"), "device": profile.device, "step": profile.step},
        "traceEvents": events,
    })
}

/// Thread IDs of the tracks.
const DEVICE: u32 = 1;
const HOST: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::train::profile::Row;

    fn profile() -> Profile {
        let span =
            |label: &str, kernel, begin_ns, ns| Span { label: label.into(), kernel, variant: "tiled", begin_ns, ns };
        let host = |name, begin_ns, ns| HostSpan { name, begin_ns, ns };
        Profile {
            step: 4,
            device: "llvmpipe".into(),
            spans: vec![
                span("a/relu.forward", "relu.forward", Some(0.0), Some(1e6)),
                span("b/conv2d.forward", "conv2d.forward", Some(1e6), Some(2e6)),
                span("c/conv2d.forward", "conv2d.forward", None, None),
                span("d/conv2d.forward", "conv2d.forward", Some(4e6), Some(1e6)),
            ],
            host: vec![host("prepare", -9e6, 2e6), host("encode and submit", -1e6, 1e6), host("wait", 0.0, 6e6)],
        }
    }

    #[test]
    fn summary_sums_by_kernel_and_omits_invalid_times() {
        let summary = profile().summary();
        let row = |kernel, dispatches, ms, share| Row { kernel, variant: "tiled", dispatches, ms, share };
        assert_eq!(summary.kernels, [row("conv2d.forward", 2, 3.0, 75.0), row("relu.forward", 1, 1.0, 25.0)]);
        assert_eq!((summary.dispatches, summary.ms, summary.elapsed_ms, summary.invalid), (3, 4.0, 5.0, 1));
        let text = summary.to_string();
        for part in [
            "step 4",
            "4.000 of 5.000 ms",
            "75.0 %",
            "not counted: 1 ",
            "host: prepare 2.000 ms, encode and submit 1.000 ms, wait 6.000 ms",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let empty = Profile { spans: vec![], ..profile() }.summary();
        assert!(!empty.to_string().contains("NaN"), "{empty}");
    }

    #[test]
    fn trace_starts_at_zero_on_two_tracks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        save_trace(&profile(), &path).unwrap();
        let trace: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let events: Vec<&Value> = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
        let seen: Vec<_> = events
            .iter()
            .map(|e| {
                (
                    e["name"].as_str().unwrap(),
                    e["tid"].as_u64().unwrap(),
                    e["ts"].as_f64().unwrap(),
                    e["dur"].as_f64().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("a/relu.forward", 1, 9e3, 1e3),
                ("b/conv2d.forward", 1, 10e3, 2e3),
                ("d/conv2d.forward", 1, 13e3, 1e3),
                ("prepare", 2, 0.0, 2e3),
                ("encode and submit", 2, 8e3, 1e3),
                ("wait", 2, 9e3, 6e3),
            ]
        );
        assert_eq!(events[1]["args"], json!({"kernel": "conv2d.forward", "variant": "tiled"}));
    }
}
