// SPDX-License-Identifier: Apache-2.0
//! Stories of the drop-in, each in a folder of its own.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// Well below LOOK_EVERY: what is mended within it was told by inotify.
const AT_ONCE: Duration = Duration::from_secs(4);

fn config(dir: &Path) -> DropInConfig {
    DropInConfig {
        dir: dir.join("net.d"),
        version: "1.0.0".into(),
        chain: None,
        socket: "/run/weft/netd.sock".into(),
    }
}

fn read(dir: &Path) -> Option<Value> {
    read_json(&dir.join("net.d").join(FILE)).ok().flatten()
}

async fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() >= end {
            return false;
        }
        sleep(Duration::from_millis(5)).await;
    }
    true
}

#[test]
fn it_says_what_a_runtime_needs() {
    let dir = tempfile::tempdir().unwrap();
    let chain = dir.path().join("chain.json");
    fs::write(&chain, r#"[{"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}]"#).unwrap();
    let config = DropInConfig { chain: Some(chain), version: "1.1.0".into(), ..config(dir.path()) };
    let drop_in = DropIn::new(&config).unwrap();
    assert!(!config.dir.exists(), "something was written before it was asked for");
    fs::create_dir(&config.dir).unwrap();
    assert_eq!(drop_in.look().unwrap(), Look::Made);
    let list = read(dir.path()).unwrap();
    assert_eq!((&list["cniVersion"], &list["name"]), (&json!("1.1.0"), &json!("weft")));
    assert_eq!(list["plugins"][0]["type"], "weft-cni");
    assert_eq!(list["plugins"][0]["socket"], "/run/weft/netd.sock");
    assert_eq!(list["plugins"][0]["capabilities"]["portMappings"], true);
    assert_eq!(list["plugins"][1]["sysctl"]["net.core.somaxconn"], "500");
    assert_eq!(chained_plugins(&config.dir, "weft"), ["tuning"]);
    assert_eq!(drop_in.look().unwrap(), Look::Fine);
}

#[test]
fn a_capability_that_a_chained_plugin_declares_is_that_plugin_s_alone() {
    let plugins = json!([
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        {"type": "tuning", "capabilities": {"mac": false}},
    ]);
    let text = render(&config(Path::new("/x")), plugins.as_array().unwrap().clone());
    let list: Value = serde_json::from_slice(&text).unwrap();
    let declared = |name: &str| {
        let plugins = list["plugins"].as_array().unwrap().iter();
        let who = plugins.filter(|plugin| plugin["capabilities"][name] == true);
        who.map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        (declared("portMappings"), declared("bandwidth")),
        (vec!["portmap".into()], vec!["bandwidth".into()])
    );
    for name in ["aliases", "cgroupPath", "dns", "ipRanges", "ips", "mac"] {
        assert_eq!(declared(name), ["weft-cni"], "{name}");
    }
}

#[test]
fn a_chain_that_is_not_there_is_told_once_with_its_cause() {
    let config = DropInConfig { chain: Some("/nowhere/chain.json".into()), ..config(Path::new("/x")) };
    let error = anyhow::Error::from(DropIn::new(&config).unwrap_err());
    let told = format!("{error:#}");
    assert_eq!(told.matches("No such file").count(), 1, "{told}");
    assert!(told.contains("/nowhere/chain.json"), "{told}");
}

#[test]
fn a_chain_that_cannot_work_is_refused_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let chain = dir.path().join("chain.json");
    for (text, word) in [
        ("", "EOF"),
        ("{\"plugins\": []}", "sequence"),
        ("[{}]", "without a type"),
        ("[{\"type\": \"weft-cni\"}]", "already"),
        ("[7]", "without a type"),
    ] {
        fs::write(&chain, text).unwrap();
        let error =
            DropIn::new(&DropInConfig { chain: Some(chain.clone()), ..config(dir.path()) }).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(word) && error.contains("chain.json"), "{text}: {error}");
    }
    fs::remove_file(&chain).unwrap();
    assert!(DropIn::new(&DropInConfig { chain: Some(chain), ..config(dir.path()) }).is_err());
}

#[test]
fn whatever_lies_in_its_place_is_replaced_and_left_alone_where_it_points() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fs::create_dir(&config.dir).unwrap();
    let drop_in = DropIn::new(&config).unwrap();
    let path = config.dir.join(FILE);
    let other = dir.path().join("other");
    fs::write(&other, "somebody else's").unwrap();
    let cases: [(&str, &dyn Fn()); 4] = [
        ("edited", &|| fs::write(&path, "{}").unwrap()),
        ("edited to the same length", &|| {
            let mut content = fs::read(&path).unwrap();
            content[0] = b'[';
            fs::write(&path, content).unwrap();
        }),
        ("a link", &|| {
            fs::remove_file(&path).unwrap();
            symlink(&other, &path).unwrap();
        }),
        ("a FIFO", &|| {
            fs::remove_file(&path).unwrap();
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        }),
    ];
    assert_eq!(drop_in.look().unwrap(), Look::Made);
    for (what, change) in cases {
        change();
        assert_eq!(drop_in.look().unwrap(), Look::Mended, "{what}");
        assert_eq!(fs::read(&path).unwrap(), drop_in.content, "{what}");
    }
    assert_eq!(fs::read_to_string(&other).unwrap(), "somebody else's");
    fs::write(config.dir.join(TEMPORARY), "half").unwrap();
    fs::write(config.dir.join("20-other.conf"), "{}").unwrap();
    assert!(DropIn::remove(&config.dir).unwrap());
    assert!(!DropIn::remove(&config.dir).unwrap(), "a second time");
    let left: Vec<_> = fs::read_dir(&config.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["20-other.conf"]);
    assert!(!DropIn::remove(&dir.path().join("absent")).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_appears_when_the_datapath_lives_and_comes_back_whenever_somebody_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let live = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let drop_in = DropIn::new(&config).unwrap();
    let wanted = drop_in.content.clone();
    let kept = tokio::spawn({
        let (live, asked) = (live.clone(), asked.clone());
        drop_in.keep(move || {
            asked.fetch_add(1, Ordering::SeqCst);
            live.load(Ordering::SeqCst)
        })
    });
    assert!(within(AT_ONCE, || asked.load(Ordering::SeqCst) >= 3).await);
    assert!(!config.dir.exists(), "written before the datapath lived");
    live.store(true, Ordering::SeqCst);
    let path = config.dir.join(FILE);
    let right = || fs::read(&path).is_ok_and(|content| content == wanted);
    assert!(within(AT_ONCE, right).await, "not written");

    fs::remove_file(&path).unwrap();
    assert!(within(AT_ONCE, right).await, "not healed after a deletion");
    fs::write(&path, "{\"name\": \"mine\"}").unwrap();
    assert!(within(AT_ONCE, right).await, "not healed after an edit");
    // An editor's way: a new file moved over it.
    fs::write(config.dir.join("x"), "{}").unwrap();
    fs::rename(config.dir.join("x"), &path).unwrap();
    assert!(within(AT_ONCE, right).await, "not healed after a rename");
    fs::remove_dir_all(&config.dir).unwrap();
    assert!(within(AT_ONCE, right).await, "not healed after the folder went");
    fs::remove_file(&path).unwrap();
    assert!(within(AT_ONCE, right).await, "the folder's successor is not watched");

    // A datapath that is not live: nothing is written, and what is there stays.
    live.store(false, Ordering::SeqCst);
    fs::write(&path, "{}").unwrap();
    let seen = asked.load(Ordering::SeqCst);
    assert!(within(AT_ONCE, || asked.load(Ordering::SeqCst) >= seen + 5).await);
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    kept.abort();
    assert!(!config.dir.join(TEMPORARY).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_ever_reads_half_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    fs::create_dir(&config.dir).unwrap();
    let drop_in = Arc::new(DropIn::new(&config).unwrap());
    let path = config.dir.join(FILE);
    let done = Arc::new(AtomicBool::new(false));
    let writer = tokio::task::spawn_blocking({
        let (drop_in, done, path) = (drop_in.clone(), done.clone(), path.clone());
        move || {
            for _ in 0..200 {
                drop_in.look().unwrap();
                fs::remove_file(&path).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        }
    });
    let mut whole = 0;
    while !done.load(Ordering::SeqCst) {
        match fs::read(&path) {
            Ok(content) => {
                assert_eq!(content, drop_in.content);
                whole += 1;
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
    }
    writer.await.unwrap();
    assert!(whole > 0, "the reader never met the file");
}

#[test]
fn what_follows_weft_cni_is_found_by_network() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let list = |name: &str, types: &[&str]| {
        let plugins: Vec<_> = types.iter().map(|t| json!({ "type": t })).collect();
        json!({ "cniVersion": "1.0.0", "name": name, "plugins": plugins }).to_string()
    };
    put("20-b.conflist", &list("weft", &["weft-cni", "bandwidth", "portmap"]));
    put("10-a.conflist", &list("weft", &["tuning", "weft-cni", "portmap", "sbr"]));
    put("30-other.conflist", &list("other", &["weft-cni", "firewall"]));
    put("40-none.conflist", &list("weft", &["bridge", "firewall"]));
    put("50-single.conf", r#"{"name": "weft", "type": "weft-cni"}"#);
    put("60-damaged.conflist", "{\"name\": \"weft\", ");
    put("70-ignored.txt", &list("weft", &["weft-cni", "firewall"]));
    mkfifo(&dir.path().join("80-fifo.conflist"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::create_dir(dir.path().join("90-dir.conflist")).unwrap();
    assert_eq!(chained_plugins(dir.path(), "weft"), ["portmap", "sbr", "bandwidth"]);
    assert_eq!(chained_plugins(dir.path(), "other"), ["firewall"]);
    assert!(chained_plugins(dir.path(), "third").is_empty());
    assert!(chained_plugins(&dir.path().join("absent"), "weft").is_empty());
}
