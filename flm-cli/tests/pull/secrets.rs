//! A token goes to the Hub's origin and nowhere else, and nothing that is signed is shown.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use crate::run::{Ran, command, pull, ran};
use crate::{SHARD, complete, files};
use flm_tests::hub_server::{Asked, Fault, HubServer, Options, REPOSITORY};

/// A listener on another port of the Hub's host, which keeps what it is sent and answers 404.
fn neighbour() -> (String, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heard = Arc::new(Mutex::new(String::new()));
    let hears = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap_or(0);
            *hears.lock().unwrap() += &String::from_utf8_lossy(&request[..n]);
            let _ = stream.write_all(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (address, heard)
}

fn inspect(server: &HubServer, dir: &std::path::Path) -> Ran {
    let mut inspect = std::process::Command::new(flm_tests::binary());
    inspect.args(["inspect", REPOSITORY]).current_dir(dir).env("HF_ENDPOINT", &server.endpoint);
    inspect.env("HF_HOME", dir.join("home")).env("HF_TOKEN", "hf_secret");
    ran(inspect.output().unwrap())
}

#[test]
fn no_redirect_to_another_port_of_the_host_carries_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    for (listing, status) in [(true, 307), (true, 302), (false, 307)] {
        let (address, heard) = neighbour();
        server.fault(move |asked| {
            if asked.file.is_empty() == listing {
                Fault::Says(status, vec![("Location", format!("{address}/steal?key=signed"))], "")
            } else {
                Fault::None
            }
        });
        let pulled = pull(&server, &dir.path().join("t"), &[]);
        if listing {
            assert_eq!(inspect(&server, dir.path()).status, Some(1));
        }
        let heard = heard.lock().unwrap().clone();
        assert!(heard.contains("/steal?key=signed"), "{heard}");
        assert!(!heard.to_ascii_lowercase().contains("authorization"), "{heard}");
        assert!(!heard.contains("hf_secret") && !pulled.stderr.contains("signed"), "{heard} {pulled:?}");
        pulled.failed(&["HTTP status 404"]);
    }
}

#[test]
fn a_renamed_repository_is_followed_with_a_relative_location() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    server.fault(|asked| match (asked.file.as_str(), asked.nth) {
        ("", 0) => Fault::Says(307, vec![("Location", "./main?blobs=true".into())], ""),
        ("config.json", 0) => Fault::Says(307, vec![("Location", "config.json?moved".into())], ""),
        _ => Fault::None,
    });
    pull(&server, &dir.path().join("t"), &[]).succeeded();
    complete(&dir.path().join("t"), &files());
    assert!(server.log().iter().all(|l| l.authorization.as_deref() == Some("Bearer hf_secret")));
    assert!(server.log().iter().any(|l| l.target.ends_with("config.json?moved")));
}

#[test]
fn signed_urls_are_in_no_message_and_no_event() {
    let dir = tempfile::tempdir().unwrap();
    // the redirect expires again and again; then it leads in a circle
    let server = HubServer::start(&files(), Options { redirect: true, ..Options::default() });
    server.fault(|asked| match (asked.on_cdn, asked.file == SHARD, asked.nth) {
        (true, true, 0) => Fault::Truncate(1 << 20),
        (true, true, 1) => Fault::Status(403, None),
        _ => Fault::None,
    });
    let ran = pull(&server, &dir.path().join("a"), &[]);
    ran.succeeded();
    let retries = format!("{:?}", ran.events("retry"));
    assert!(retries.contains("expired") && !retries.contains("signature"), "{retries}");

    let circle = |asked: &Asked| match asked.on_cdn {
        true => Fault::Says(302, vec![("Location", "/cdn/x?signature=y".into())], ""),
        false => Fault::None,
    };
    server.fault(circle);
    let other = format!("{}/cdn/{SHARD}?signature=z", server.other_origin());
    server.fault(move |asked| match asked.on_cdn || asked.file == SHARD {
        true => Fault::Says(302, vec![("Location", other.clone())], ""),
        false => Fault::None,
    });
    let ran = pull(&server, &dir.path().join("b"), &[]);
    ran.failed(&["too many redirects"]);
    assert!(!format!("{ran:?}").contains("signature"), "{ran:?}");
}

#[test]
fn endpoints_tokens_and_revisions_that_are_none_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    let target = dir.path().join("t");
    let with =
        |name: &str, value: &str| ran(command(&server, &target, &[]).env(name, value).output().unwrap());
    let host = server.endpoint.strip_prefix("http://").unwrap();
    for (name, value) in [
        ("HF_ENDPOINT", format!("http://user:hf_hidden@{host}")),
        ("HF_ENDPOINT", "http://127.0.0.1:99999".into()),
        ("HF_ENDPOINT", format!("http://{host}/?hf_hidden=1")),
        ("HF_TOKEN", "hf_hiddené".into()),
    ] {
        let ran = with(name, &value);
        ran.failed(&[name]);
        assert!(!ran.stderr.contains("hidden") && ran.events("retry").is_empty(), "{ran:?}");
    }
    for bad in ["a b", "x?y=1", ""] {
        let ran = pull(&server, &target, &["--revision", bad]);
        ran.failed(&["is no commit, branch or tag"]);
        assert!(ran.events("retry").is_empty());
    }
    assert!(server.log().is_empty());
    // allowed by git, and asked for as it is
    pull(&server, &target, &["--revision", "main#"]).failed(&["this revision"]);
    assert!(server.log()[0].path.ends_with("/revision/main%23"), "{:?}", server.log());
}

#[test]
fn an_expired_token_a_gate_and_a_firewall_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    let target = dir.path().join("t");
    let invalid = ("X-Error-Message", "Invalid credentials in Authorization header".to_owned());
    server.fault(move |_| Fault::Says(401, vec![invalid.clone()], "{}"));
    pull(&server, &target, &[]).failed(&["refuses the token of HF_TOKEN", "public repositories need none"]);
    let mut other = command(&server, &target, &[]);
    let other = other.env_remove("HF_TOKEN").env("HUGGING_FACE_HUB_TOKEN", "hf_old").output().unwrap();
    ran(other).failed(&["refuses the token of HUGGING_FACE_HUB_TOKEN"]);
    assert_eq!(server.log().last().unwrap().authorization.as_deref(), Some("Bearer hf_old"));

    let xdg = dir.path().join("xdg");
    std::fs::create_dir_all(xdg.join("huggingface")).unwrap();
    std::fs::write(xdg.join("huggingface/token"), "hf_file").unwrap();
    let mut file = command(&server, &target, &[]);
    let file = file.env_remove("HF_TOKEN").env_remove("HUGGING_FACE_HUB_TOKEN").env_remove("HF_HOME");
    let file = ran(file.env("XDG_CACHE_HOME", &xdg).output().unwrap());
    file.failed(&["refuses the token of", "xdg/huggingface/token"]);

    server.fault(|_| Fault::Gated(403));
    pull(&server, &target, &[]).failed(&["is gated", "the token of HF_TOKEN"]);
    let blocked = "<html>\n<head><title>blocked by policy</title></head></html>";
    server.fault(move |asked| match asked.file.is_empty() {
        false => Fault::Says(403, Vec::new(), blocked),
        true => Fault::None,
    });
    let ran = pull(&server, &target, &[]);
    ran.failed(&["HTTP status 403", "blocked by policy", &server.endpoint]);
    assert!(!ran.stderr.contains("gated"), "{ran:?}");
}

#[test]
fn waits_for_the_listing_are_told_and_a_dripping_body_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let server = HubServer::start(&files(), Options::default());
    server.fault(|asked| match (asked.file.as_str(), asked.nth) {
        ("", 0) => Fault::Status(503, Some(1)),
        ("tokenizer.model", _) => Fault::Drip(300),
        _ => Fault::None,
    });
    let start = std::time::Instant::now();
    let ran = pull(&server, &dir.path().join("t"), &["--timeout", "1"]);
    ran.failed(&["tokenizer.model", "fewer than 100 bytes a second"]);
    let first = ran.events("retry")[0].clone();
    assert_eq!((&first["file"], &first["wait_seconds"]), (&"list of files".into(), &1.0.into()));
    assert!(start.elapsed().as_secs() < 30);
}
