//! Tests of the repository as a whole: promises, licences, `unsafe`, the fuzzing corpus. They are not part of the published package.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

#[path = "repo/corpus.rs"]
mod corpus;
#[path = "repo/policy.rs"]
mod policy;
