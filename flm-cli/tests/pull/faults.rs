//! One test a class of faults.

use std::time::Instant;

use crate::run::{Ran, pull};
use crate::{MIB, SHARD, complete, files, nothing_wrong};
use flm_tests::hub_server::{Asked, Fault, HubServer, Options};

/// Pulls from a server with a fault in the shard's content.
fn with_fault(
    fault: impl Fn(&Asked) -> Fault + Send + Sync + 'static,
    options: Options,
) -> (Ran, HubServer, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), options);
    server.fault(fault);
    let ran = pull(&server, &dir.path().join("t"), &[]);
    nothing_wrong(&dir.path().join("t"), &files());
    (ran, server, dir)
}

/// The fault strikes the first request for the shard's content, then never again.
fn once(fault: Fault) -> impl Fn(&Asked) -> Fault + Send + Sync + 'static {
    move |asked| if asked.file == SHARD && asked.nth == 0 { fault.clone() } else { Fault::None }
}

fn always(fault: Fault) -> impl Fn(&Asked) -> Fault + Send + Sync + 'static {
    move |asked| if asked.file == SHARD { fault.clone() } else { Fault::None }
}

/// The pull gets over the fault without fetching more than `extra` bytes again.
fn recovers(fault: Fault, extra: u64) -> Ran {
    let (ran, server, dir) = with_fault(once(fault), Options::default());
    ran.succeeded().progress_is_honest();
    complete(&dir.path().join("t"), &files());
    let size: u64 = files().iter().map(|(_, b)| b.len() as u64).sum();
    assert!(server.content() <= size + extra, "{} of {size}", server.content());
    ran
}

/// The fault never ends: the pull gives up with these words, and without the file.
fn gives_up(fault: Fault, words: &[&str]) {
    let (ran, _server, dir) = with_fault(always(fault), Options::default());
    ran.failed(words).progress_is_honest();
    assert!(!dir.path().join("t").join(SHARD).exists());
}

#[test]
fn a_truncated_body_is_continued_at_the_byte() {
    let ran = recovers(Fault::Truncate(3 * MIB as u64 + 7), 0);
    assert_eq!(ran.events("retry").len(), 1);
}

#[test]
fn a_body_that_is_always_truncated_still_arrives() {
    // every request brings something: that is no failure in a row
    let (ran, server, dir) = with_fault(always(Fault::Truncate(MIB as u64)), Options::default());
    ran.succeeded();
    complete(&dir.path().join("t"), &files());
    let size: u64 = files().iter().map(|(_, b)| b.len() as u64).sum();
    assert_eq!(server.content(), size);
}

#[test]
fn a_body_that_never_begins_is_given_up() {
    gives_up(Fault::Truncate(0), &[SHARD]);
}

#[test]
fn a_reset_connection_is_continued() {
    // what lies in the socket's buffers when the reset comes is lost
    recovers(Fault::Reset(2 * MIB as u64 + 11), 2 * MIB as u64);
}

#[test]
fn a_stalled_connection_is_left_after_the_timeout() {
    let start = Instant::now();
    recovers(Fault::Stall(MIB as u64 + 5), 0);
    assert!((1.5..20.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
}

#[test]
fn a_short_body_that_agrees_with_its_length_is_seen() {
    recovers(Fault::ShortBody(1000), 5 * MIB as u64);
    gives_up(Fault::ShortBody(1000), &["Content-Range is bytes 0-", "expected bytes 0-"]);
}

#[test]
fn a_range_of_another_file_is_refused() {
    recovers(Fault::WrongTotal, 5 * MIB as u64);
    gives_up(Fault::WrongTotal, &["Content-Range", "5243003"]);
}

#[test]
fn wrong_bytes_of_the_right_size_are_fetched_again_and_never_named() {
    let ran = recovers(Fault::WrongBytes, 5 * MIB as u64 + 200);
    assert_eq!(ran.events("mismatch").len(), 1);
    let (ran, server, dir) = with_fault(always(Fault::WrongBytes), Options::default());
    ran.failed(&[SHARD, "SHA-256 is", "expected", "2 times", "removed"]).progress_is_honest();
    assert!(!dir.path().join("t").join(SHARD).exists());
    // only the wrong file was fetched twice
    let requests = |name: &str| server.log().iter().filter(|l| l.path.ends_with(name)).count();
    assert_eq!((requests(SHARD), requests("tokenizer.model")), (2, 1));
}

#[test]
fn wrong_bytes_of_a_small_file_are_seen_by_gits_digest() {
    let (ran, ..) = with_fault(
        |asked| if asked.file == "config.json" { Fault::WrongBytes } else { Fault::None },
        Options::default(),
    );
    ran.failed(&["config.json", "git's SHA-1 is"]);
}

#[test]
fn an_etag_of_another_file_stops_before_a_byte() {
    let (ran, _server, dir) = with_fault(always(Fault::WrongEtag), Options::default());
    ran.failed(&[SHARD, "SHA-256", "what was planned"]);
    assert!(!dir.path().join("t").join(SHARD).exists());
}

#[test]
fn server_errors_are_tried_again() {
    for status in [500, 502, 503, 504] {
        let ran = recovers(Fault::Status(status, None), 0);
        assert!(ran.events("retry")[0]["reason"].as_str().unwrap().contains(&status.to_string()));
    }
    gives_up(Fault::Status(503, None), &["HTTP status 503"]);
}

#[test]
fn too_many_requests_wait_as_long_as_asked() {
    let start = Instant::now();
    let ran = recovers(Fault::Status(429, Some(2)), 0);
    assert!(start.elapsed().as_secs_f64() >= 2.0);
    assert_eq!(ran.events("retry")[0]["wait_seconds"], 2.0);
}

#[test]
fn a_listing_is_tried_again_too() {
    let (ran, _server, dir) = with_fault(
        |asked| if asked.file.is_empty() && asked.nth < 2 { Fault::Status(503, None) } else { Fault::None },
        Options::default(),
    );
    ran.succeeded();
    complete(&dir.path().join("t"), &files());
}

#[test]
fn other_statuses_are_not_tried_again() {
    let (ran, server, _dir) = with_fault(always(Fault::Status(410, None)), Options::default());
    ran.failed(&["HTTP status 410"]);
    assert_eq!(server.log().iter().filter(|l| l.path.ends_with(SHARD)).count(), 1);
}

#[test]
fn gated_repositories_tell_what_to_do() {
    for status in [401, 403] {
        let (ran, server, _dir) = with_fault(move |_| Fault::Gated(status), Options::default());
        ran.failed(&[
            "gated",
            "accept its licence at",
            &format!("{}/acme/tiny", server.endpoint),
            "HF_TOKEN",
        ]);
        let (ran, ..) = with_fault(always(Fault::Gated(status)), Options::default());
        ran.failed(&["gated", "accept its licence at"]);
    }
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let no_ranges = |_: &Asked| Fault::NoRanges;
    let (ran, _server, dir) = with_fault(no_ranges, Options::default());
    ran.succeeded().progress_is_honest();
    complete(&dir.path().join("t"), &files());
    // half of it is there already from a server with ranges that then broke: only the rest is written
    let (ran, server, dir) = with_fault(
        |asked| {
            if asked.file == SHARD {
                Fault::Truncate(if asked.nth == 0 { 2 * MIB as u64 } else { 0 })
            } else {
                Fault::None
            }
        },
        Options::default(),
    );
    ran.failed(&[]);
    server.fault(no_ranges);
    let ran = pull(&server, &dir.path().join("t"), &[]);
    ran.succeeded().progress_is_honest();
    complete(&dir.path().join("t"), &files());
}

#[test]
fn a_redirect_to_another_host_never_carries_the_token() {
    let (ran, server, dir) = with_fault(|_| Fault::None, Options { redirect: true, ..Options::default() });
    ran.succeeded();
    complete(&dir.path().join("t"), &files());
    let (cdn, hub): (Vec<_>, Vec<_>) = server.log().into_iter().partition(|l| l.on_cdn);
    assert!(cdn.len() >= 3 && cdn.iter().all(|l| l.authorization.is_none()), "{cdn:#?}");
    assert!(hub.iter().all(|l| l.authorization.as_deref() == Some("Bearer hf_secret")), "{hub:#?}");
}

#[test]
fn an_expired_redirect_is_asked_for_again() {
    let (ran, server, dir) = with_fault(
        |asked| match (asked.on_cdn, asked.file == SHARD, asked.nth) {
            (true, true, 0) => Fault::Truncate(MIB as u64),
            (true, true, 1) => Fault::Status(403, None),
            _ => Fault::None,
        },
        Options { redirect: true, ..Options::default() },
    );
    ran.succeeded();
    complete(&dir.path().join("t"), &files());
    assert_eq!(server.log().iter().filter(|l| !l.on_cdn && l.path.ends_with(SHARD)).count(), 2);
}
