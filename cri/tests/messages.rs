//! The generated messages, as records and on the wire.

use skiff_cri::v1::{AuthConfig, ContainerConfig, LinuxContainerSecurityContext, Mount, MountPropagation};

#[test]
fn a_record_of_an_older_version_is_still_read() {
    let config: ContainerConfig = serde_json::from_str(r#"{"command": ["sh"], "stop_signal": 0}"#).unwrap();
    assert_eq!(config.command, ["sh"]);
    assert!(config.envs.is_empty() && config.linux.is_none());
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<ContainerConfig>(&text).unwrap(), config);
}

#[test]
fn secrets_are_not_printed() {
    let auth =
        AuthConfig { password: "hunter2".into(), registry_token: "t0ken".into(), ..Default::default() };
    let printed = format!("{auth:?}");
    assert!(!printed.contains("hunter2") && !printed.contains("t0ken"), "{printed}");
}

#[test]
fn numbers_on_the_wire_are_those_of_the_interface() {
    use prost::Message;
    let mount = Mount {
        container_path: "/c".to_owned(),
        propagation: MountPropagation::PropagationBidirectional.into(),
        recursive_read_only: true,
        ..Default::default()
    };
    assert_eq!(mount.encode_to_vec(), [0x0a, 2, b'/', b'c', 0x28, 2, 0x40, 1]);
    let security = LinuxContainerSecurityContext { no_new_privs: true, ..Default::default() };
    assert_eq!(security.encode_to_vec(), [0x58, 1]);
}
