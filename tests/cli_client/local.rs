//! What works without a daemon.

use crate::{
    api::{Api, World},
    program::Program,
};

/// A safetensors file of one tensor.
fn weights(cut: usize) -> Vec<u8> {
    let header = r#"{"w":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 8]);
    bytes.truncate(bytes.len() - cut);
    bytes
}

fn with_models() -> Program {
    let program = Program::new();
    for (name, cut) in [("good", 0), ("org/cut", 3)] {
        program.write(&format!("models/{name}/config.json"), r#"{"_class_name":"SPAN"}"#);
        program.write(&format!("models/{name}/model.safetensors"), weights(cut));
    }
    program.write("models/half/config.json", r#"{"_class_name":"SPAN"}"#);
    program
}

const NOWHERE: &str = "--set=server.listen=127.0.0.1:1";

#[test]
fn models_are_listed_without_a_daemon_and_asked_of_one() {
    let program = with_models();
    let said = program.run(&["models", "list", NOWHERE]).exits(0);
    assert!(said.stdout.lines().next().unwrap().starts_with("MODEL"), "{said:#?}");
    assert!(said.stdout.contains("model.safetensors is missing"), "{said:#?}");
    let json = program.run(&["models", "list", "--json", NOWHERE]).exits(0).json();
    assert_eq!(json["models"][0]["id"], "good");
    assert_eq!(json["models"][0]["family"], "span");
    let api = Api::start(World::default());
    let said = program.run(&["models", "list", "--server", &api.url()]).exits(0);
    assert!(said.stdout.contains("span-x2") && said.stdout.contains("loaded, 2.00 MB"), "{said:#?}");
    program.run(&["models", "list", "--server", "127.0.0.1:1"]).exits(3);
}

#[test]
fn verify_reads_every_file_to_its_end() {
    let program = with_models();
    let said = program.run(&["models", "verify", NOWHERE]).exits(1);
    assert!(said.stdout.contains("OK   good"), "{said:#?}");
    assert!(
        said.stdout.contains("FAIL org/cut\n     model.safetensors: ") && said.stdout.contains("cut off"),
        "{said:#?}"
    );
    assert!(said.stdout.contains("FAIL half\n     model.safetensors is missing"), "{said:#?}");
    let json = program.run(&["models", "verify", "good", "--json"]).exits(0).json();
    assert_eq!(json["models"][0]["weights"][0]["sha256"].as_str().unwrap().len(), 64);
    let said = program.run(&["models", "verify", "goood"]).exits(4);
    assert!(said.stderr.contains("did you mean \"good\"?"), "{said:#?}");
}

#[test]
fn rm_removes_the_folder_and_spares_what_a_link_leads_to() {
    let program = with_models();
    let elsewhere = program.write("elsewhere/config.json", r#"{"_class_name":"SPAN"}"#);
    std::os::unix::fs::symlink(elsewhere.parent().unwrap(), program.path().join("models/link")).unwrap();
    program.run(&["models", "rm", "good", NOWHERE]).exits(2);
    assert!(program.path().join("models/good").exists(), "nobody has said --yes");
    let said = program.run(&["models", "rm", "--yes", "good", "none", "link", NOWHERE]).exits(4);
    assert_eq!(said.stdout, "removed good\nremoved link\n");
    assert!(!program.path().join("models/good").exists());
    assert!(program.path().join("models/link").symlink_metadata().is_err());
    assert!(elsewhere.exists());
    assert!(program.path().join("models/half").exists());
    assert_eq!(std::fs::read_dir(program.path().join("models")).unwrap().count(), 2);
}

#[test]
fn cleanup_works_by_itself_where_no_daemon_is() {
    let program = Program::new();
    let said = program.run(&["cleanup", NOWHERE]).exits(2);
    assert!(said.stderr.contains("nothing to clean up"), "{said:#?}");
    assert!(!program.path().join("data").exists(), "cleanup makes no data folder");
    std::fs::create_dir(program.path().join("data")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = atelier::store::Store::open(&program.path().join("data/atelier.db")).await.unwrap();
        store.close().await;
    });
    let said = program.run(&["cleanup", NOWHERE]).exits(0);
    assert!(said.stdout.starts_with("0 jobs and 0 files removed"), "{said:#?}");
    let json = program.run(&["cleanup", "--dry-run", "--json", NOWHERE]).exits(0).json();
    assert_eq!(json["dry_run"], true);
    let _lock = atelier::data_lock::acquire(&program.path().join("data")).unwrap();
    let said = program.run(&["cleanup", NOWHERE]).exits(3);
    assert!(said.stderr.contains(&format!("pid {}", std::process::id())), "{said:#?}");
}
