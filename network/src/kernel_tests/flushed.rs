//! Rules that somebody else takes away, as `systemctl restart nftables` does.

use super::*;

#[test]
fn rules_of_services_that_others_have_flushed_are_noticed_and_nothing_else_is() {
    let mut world = World::new();
    let node = world.namespace("node");
    let here = node.clone();
    on_node(&node, move || async move {
        let config = proxied().config;
        let spec = json!({"clusterIP": "10.43.0.9", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let plan = plan_for(spec, &["10.42.0.2".parse().unwrap(), "10.42.0.3".parse().unwrap()]);
        let mut applied = write_whole(&plan).await;
        assert!(!applied.is_doubtful(), "its own transaction");
        assert!(applied.stands(&config).await, "what was just written");

        run(&here, "nft add table ip somebody_elses");
        assert!(applied.is_doubtful() && applied.stands(&config).await);
        assert!(!applied.is_doubtful(), "it is looked at once");
        for change in [
            "nft flush chain ip skiff_proxy prerouting",
            "nft flush table ip skiff_proxy",
            "nft flush ruleset",
        ] {
            run(&here, change);
            assert!(applied.is_doubtful(), "{change}");
            assert!(!applied.stands(&config).await, "{change}");
            applied = write_whole(&plan).await;
            assert!(applied.stands(&config).await, "{change}");
        }
    });
}

#[test]
fn rules_of_pods_that_others_have_flushed_are_back_after_a_look() {
    let mut world = World::new();
    let node = world.namespace("node");
    let config = world.config();
    let here = node.clone();
    on_node(&node, move || async move {
        let network = PodNetwork::open(config).await.unwrap();
        let rules = async || nft::list("ip skiff_pods").await.ok();
        let before = rules().await.expect("a table");
        run(&here, "nft flush ruleset");
        assert_eq!(rules().await, None);
        network.mend_rules(Duration::ZERO).await.unwrap();
        let handles = |listing: &[u8]| {
            let text = String::from_utf8_lossy(listing).into_owned();
            text.split("\"handle\": ")
                .map(|part| part.trim_start_matches(char::is_numeric).to_owned())
                .collect::<String>()
        };
        assert_eq!(handles(&rules().await.expect("a table")), handles(&before));
        let generation = crate::generation::generation().unwrap();
        network.mend_rules(Duration::ZERO).await.unwrap();
        assert_eq!(crate::generation::generation().unwrap(), generation, "they were written again");
    });
}
