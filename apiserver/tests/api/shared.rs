//! Two servers over one etcd.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skiff_apiserver::store::{EtcdOptions, EtcdStore, Expect, Range, Write};

use crate::fixture::{Client, Cluster, Pki, config_map};

// The tests of the store use all of it.
#[allow(dead_code)]
#[path = "../etcd/process.rs"]
mod process;

use process::{Disk, Etcd};

const IN_TIME: Duration = Duration::from_secs(30);
const RANGE: &str = "/registry/ranges/servicenodeports";

/// Two servers, both of which began at once.
struct Two {
    a: Cluster,
    b: Cluster,
    etcd: Etcd,
}

async fn store(etcd: &Etcd) -> Arc<EtcdStore> {
    let end = Instant::now() + IN_TIME;
    loop {
        match EtcdStore::open(EtcdOptions::new([etcd.url()])).await {
            Ok(store) => return Arc::new(store),
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
    }
}

async fn two() -> Option<Two> {
    let etcd = Etcd::start(Disk::Fast, &[])?;
    let pki = Arc::new(Pki::new());
    let (of_a, of_b) = (store(&etcd).await, store(&etcd).await);
    let a = Box::pin(Cluster::over(pki.clone(), of_a, "192.0.2.1"));
    let (a, b) = tokio::join!(a, Box::pin(Cluster::over(pki.clone(), of_b, "192.0.2.2")));
    Some(Two { a, b, etcd })
}

async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let end = Instant::now() + IN_TIME;
    while !is_so().await {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}})
}

/// The node ports that are taken, by what the servers share.
async fn ports_taken(cluster: &Cluster) -> u32 {
    let range = cluster.store.get(RANGE).await.expect("reads").expect("exists");
    let range: Value = serde_json::from_slice(&range.value).expect("JSON");
    let data = range["data"].as_str().expect("text");
    let bits = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).expect("base64");
    bits.iter().map(|byte| byte.count_ones()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_begin_at_once_make_the_first_objects_once_and_are_both_endpoints() {
    let Some(Two { a, b, etcd: _etcd }) = two().await else { return };
    for url in [
        "/api/v1/namespaces/kube-system",
        "/api/v1/namespaces/default/services/kubernetes",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
        "/apis/networking.k8s.io/v1/ipaddresses/10.96.0.1",
    ] {
        let (of_a, of_b) = (a.admin().get(url).await.ok(), b.admin().get(url).await.ok());
        assert_eq!(of_a["metadata"]["uid"], of_b["metadata"]["uid"], "{url}");
    }
    let endpoints = "/api/v1/namespaces/default/endpoints/kubernetes";
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let both = json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}]);
    let found = a.admin().get(endpoints).await.ok();
    assert_eq!(found["subsets"][0]["addresses"], both);
    assert_eq!(a.admin().get(slice).await.ok()["endpoints"].as_array().map(Vec::len), Some(2));
    b.server.close().await;
    let found = a.admin().get(endpoints).await.ok();
    assert_eq!(found["subsets"][0]["addresses"], json!([{"ip": "192.0.2.1"}]));
    a.server.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_wrote_the_other_reads_at_once_and_tells_in_order() {
    let Some(Two { a, b, etcd: _etcd }) = two().await else { return };
    let (admin_a, admin_b) = (a.namespace("x").await, b.admin());
    let maps = "/api/v1/namespaces/x/configmaps";
    let list = admin_b.get(maps).await.ok();
    let from = list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let mut events = admin_b.watch(&format!("{maps}?watch=true&resourceVersion={from}")).await;
    let mut expected = Vec::new();
    for n in 0..60 {
        let name = format!("m{n}");
        let made = admin_a.post(maps, config_map(&name, "1")).await.created();
        let read = admin_b.get(&format!("{maps}/{name}")).await.ok();
        assert_eq!(read["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        expected.push(("ADDED".to_owned(), name.clone()));
        if n % 3 == 0 {
            // What is under no key that is watched moves the store on as well.
            let other = Write::put("/elsewhere", n.to_string(), Expect::Any);
            a.store.write(other).await.expect("writes");
            let items = admin_b.get(maps).await.ok()["items"].as_array().map(Vec::len);
            assert_eq!(items, Some(expected.iter().filter(|(kind, _)| kind == "ADDED").count()));
        }
        if n % 5 == 0 {
            let patch = json!({"data": {"k": "2"}});
            admin_a.patch(&format!("{maps}/{name}"), "merge", patch).await.ok();
            expected.push(("MODIFIED".to_owned(), name));
        }
    }
    for one in expected {
        assert_eq!(events.named().await, one);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_exact_whichever_server_is_asked() {
    let Some(Two { a, b, etcd: _etcd }) = two().await else { return };
    let admin = a.namespace("x").await;
    let maps = "/api/v1/namespaces/x/configmaps";
    admin.post(maps, config_map("n", "0")).await.created();
    let wins = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..6)
        .map(|task| {
            let client = if task % 2 == 0 { a.admin() } else { b.admin() };
            let wins = wins.clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    let mut map = client.get(&format!("{maps}/n")).await.ok();
                    let n: usize = map["data"]["k"].as_str().expect("text").parse().expect("a number");
                    map["data"]["k"] = (n + 1).to_string().into();
                    let answer = client.put(&format!("{maps}/n"), map).await;
                    match answer.code {
                        200 => _ = wins.fetch_add(1, Ordering::SeqCst),
                        _ => _ = answer.refused(409, "Conflict"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("joins");
    }
    let last = b.admin().get(&format!("{maps}/n")).await.ok();
    assert_eq!(last["data"]["k"], wins.load(Ordering::SeqCst).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_two_servers_make_at_once_share_no_address_and_no_port() {
    let Some(Two { a, b, etcd: _etcd }) = two().await else { return };
    a.namespace("x").await;
    let services = "/api/v1/namespaces/x/services";
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let client: Client = if task % 2 == 0 { a.admin() } else { b.admin() };
            tokio::spawn(async move {
                let mut made = Vec::new();
                for n in 0..25 {
                    made.push(client.post(services, service(&format!("s{task}-{n}"))).await.created());
                }
                made
            })
        })
        .collect();
    let mut made = Vec::new();
    for task in tasks {
        made.extend(task.await.expect("joins"));
    }
    let ips: HashSet<String> = made.iter().map(|one| one["spec"]["clusterIP"].to_string()).collect();
    let ports: HashSet<String> =
        made.iter().map(|one| one["spec"]["ports"][0]["nodePort"].to_string()).collect();
    assert_eq!((made.len(), ips.len(), ports.len()), (200, 200, 200));
    let addresses = b.admin().get("/apis/networking.k8s.io/v1/ipaddresses").await.ok();
    assert_eq!(addresses["items"].as_array().map(Vec::len), Some(201), "and that of the kubernetes Service");
    assert_eq!(ports_taken(&b).await, 200);

    // What one gave out, the other does not; and it gives that out again, once the other has deleted what had it.
    let (one, other) = (&made[0], &made[1]);
    let mut twin = service("twin");
    twin["spec"]["clusterIP"] = one["spec"]["clusterIP"].clone();
    b.admin().post(services, twin.clone()).await.refused(422, "Invalid");
    let mut port = service("port");
    port["spec"]["ports"][0]["nodePort"] = other["spec"]["ports"][0]["nodePort"].clone();
    b.admin().post(services, port.clone()).await.refused(422, "Invalid");
    for gone in [one, other] {
        let name = gone["metadata"]["name"].as_str().expect("a name");
        b.admin().delete(&format!("{services}/{name}")).await.ok();
    }
    a.admin().post(services, twin).await.created();
    a.admin().post(services, port).await.created();
    assert_eq!(ports_taken(&a).await, 200);
    let all = a.admin().get(services).await.ok();
    for one in all["items"].as_array().expect("a list") {
        let name = one["metadata"]["name"].as_str().expect("a name");
        b.admin().delete(&format!("{services}/{name}")).await.ok();
    }
    assert_eq!(ports_taken(&a).await, 0);
    let addresses = a.admin().get("/apis/networking.k8s.io/v1/ipaddresses").await.ok();
    assert_eq!(addresses["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_services_of_one_name_one_is_made_and_the_other_leaves_nothing() {
    let Some(Two { a, b, etcd: _etcd }) = two().await else { return };
    let (admin_a, admin_b) = (a.namespace("x").await, b.admin());
    let services = "/api/v1/namespaces/x/services";
    for n in 0..15 {
        let (of_a, of_b) = tokio::join!(
            admin_a.post(services, service(&format!("s{n}"))),
            admin_b.post(services, service(&format!("s{n}")))
        );
        let mut codes = [of_a.code, of_b.code];
        codes.sort_unstable();
        assert_eq!(codes, [201, 409], "{of_a:?} {of_b:?}");
    }
    assert_eq!(ports_taken(&a).await, 15);
    let addresses = a.admin().get("/apis/networking.k8s.io/v1/ipaddresses").await.ok();
    assert_eq!(addresses["items"].as_array().map(Vec::len), Some(16));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_server_counts_at_the_other() {
    let Some(Two { a, b, etcd }) = two().await else { return };
    a.namespace("x").await;
    // One that came when the others were there already.
    let later = Box::pin(Cluster::over(a.pki.clone(), store(&etcd).await, "192.0.2.3")).await;
    for (signs, checks) in [(&a, &later), (&later, &a), (&later, &b)] {
        let url = "/api/v1/namespaces/x/serviceaccounts/default/token";
        let request = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}});
        let token = signs.admin().post(url, request).await.created()["status"]["token"].clone();
        let review = json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "spec": {"token": token},
        });
        // Those that began before learn of its key.
        until("the other server's token counts", || {
            let (client, review) = (checks.admin(), review.clone());
            async move {
                let answer =
                    client.post("/apis/authentication.k8s.io/v1/tokenreviews", review).await.created();
                answer["status"]["authenticated"] == true
            }
        })
        .await;
    }
    let keys = a.admin().get("/openid/v1/jwks").await.ok();
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_one_server_is_given_is_served_by_both() {
    let Some(Two { a, b, etcd: _etcd }) = two().await else { return };
    a.namespace("x").await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"size": {"type": "integer"}},
            }}}],
        },
    });
    a.admin().post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition).await.created();
    let gadgets = "/apis/example.org/v1/namespaces/x/gadgets";
    for cluster in [&a, &b] {
        until("the resource is served", || async { cluster.admin().get(gadgets).await.code == 200 }).await;
    }
    let gadget = json!({
        "apiVersion": "example.org/v1", "kind": "Gadget", "metadata": {"name": "g"}, "size": 7,
    });
    b.admin().post(gadgets, gadget).await.created();
    assert_eq!(a.admin().get(&format!("{gadgets}/g")).await.ok()["size"], 7);
    // Both lie where a stock server looks for them.
    for key in [
        "/registry/apiextensions.k8s.io/customresourcedefinitions/gadgets.example.org",
        "/registry/example.org/gadgets/x/g",
    ] {
        assert!(raw(&a, key).await, "{key}");
    }
}

/// Whether there is a key, by a range that is not translated.
async fn raw(cluster: &Cluster, key: &str) -> bool {
    let range = Range { limit: Some(1), ..Range::prefix(key) };
    !cluster.store.range(range).await.expect("reads").items.is_empty()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_away_is_said_to_be_and_comes_back() {
    let Some(Two { a, b, mut etcd }) = two().await else { return };
    let admin = a.namespace("x").await;
    let maps = "/api/v1/namespaces/x/configmaps";
    admin.post(maps, config_map("before", "1")).await.created();
    let list = b.admin().get(maps).await.ok();
    let from = list["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let mut events = b.admin().watch(&format!("{maps}?watch=true&resourceVersion={from}")).await;
    etcd.kill();
    let refused = admin.post(maps, config_map("lost", "1")).await;
    refused.refused(503, "ServiceUnavailable");
    admin.get(&format!("{maps}/before")).await.refused(503, "ServiceUnavailable");
    let health = admin.get("/readyz").await;
    assert!(health.code == 500 && String::from_utf8_lossy(&health.bytes).contains("[-]etcd"), "{health:?}");
    etcd.restart();
    until("it is ready again", || async { admin.get("/readyz").await.code == 200 }).await;
    until("it takes writes again", || async {
        matches!(admin.post(maps, config_map("after", "1")).await.code, 201 | 409)
    })
    .await;
    // The watch of the other server went on over it.
    assert_eq!(events.named().await, ("ADDED".to_owned(), "after".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_one_for_all_servers() {
    let Some(Two { a, b, etcd: _etcd }) = two().await else { return };
    let admin = a.namespace("x").await;
    let quotas = "/api/v1/namespaces/x/resourcequotas";
    let hard = json!({"count/configmaps": "10"});
    admin.post(quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await.created();
    let status = json!({"status": {"hard": hard, "used": {"count/configmaps": "0"}}});
    admin.patch(&format!("{quotas}/q/status"), "merge", status).await.ok();
    b.admin().get(&format!("{quotas}/q")).await.ok();
    let tasks: Vec<_> = (0..4)
        .map(|task| {
            let client = if task % 2 == 0 { a.admin() } else { b.admin() };
            tokio::spawn(async move {
                let mut made = 0;
                for n in 0..5 {
                    let map = config_map(&format!("m{task}-{n}"), "1");
                    match client.post("/api/v1/namespaces/x/configmaps", map).await {
                        created if created.code == 201 => made += 1,
                        refused => _ = refused.refused(403, "Forbidden"),
                    }
                }
                made
            })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        made += task.await.expect("joins");
    }
    assert_eq!(made, 10);
    let used = b.admin().get(&format!("{quotas}/q")).await.ok()["status"]["used"].clone();
    assert_eq!(used, json!({"count/configmaps": "10"}));
}
