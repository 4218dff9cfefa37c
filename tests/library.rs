//! Tests of the library that need no device: graphs, plans, gradients, data sets, checkpoints.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

#[path = "common/accumulation.rs"]
mod accumulated;
#[path = "common/geometry.rs"]
mod cases;
#[path = "common/random.rs"]
mod random;

// Shared by the tests of data sets.
#[path = "library/data_files.rs"]
mod data_files;

#[path = "library/accumulation.rs"]
mod accumulation;
#[path = "library/archives.rs"]
mod archives;
#[path = "library/checkpoint.rs"]
mod checkpoint;
#[path = "library/data.rs"]
mod data;
#[path = "library/dispatches.rs"]
mod dispatches;
#[path = "library/download.rs"]
mod download;
#[path = "library/geometry.rs"]
mod geometry;
#[path = "library/graph.rs"]
mod graph;
