//! A pod's resolver configuration and its name, as upstream's `dns.go` forms them.

use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use skiff_cri::v1::DnsConfig;

use crate::config::Config;
use crate::pod::PodExt;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
const MAX_DOMAIN_CHARS: usize = 253;
const MAX_HOSTNAME: usize = 63;

/// The pod's resolver configuration, and warnings to record about it (reason `DNSConfigForming` or
/// `MissingClusterDNS`).
pub(crate) fn pod_dns(
    config: &Config,
    host: &DnsConfig,
    pod: &Pod,
) -> (DnsConfig, Vec<(&'static str, String)>) {
    let mut warnings = Vec::new();
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let cluster = match policy {
        "None" | "Default" => false,
        "ClusterFirst" => !pod.is_host_network(),
        _ => true,
    };
    let mut dns = match (policy, cluster) {
        ("None", _) => DnsConfig::default(),
        (_, true) if !config.cluster_dns.is_empty() => cluster_first(config, host, pod),
        _ => host.clone(),
    };
    if cluster && config.cluster_dns.is_empty() {
        let message = "kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.";
        warnings.push(("MissingClusterDNS", format!("pod: {:?}. {message}", pod.describe())));
    }
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options.retain(|o| o.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    dedup(&mut dns.servers);
    dedup(&mut dns.searches);
    fit_limits(&mut dns, &mut warnings);
    (dns, warnings)
}

fn cluster_first(config: &Config, host: &DnsConfig, pod: &Pod) -> DnsConfig {
    let domain = &config.cluster_domain;
    let own = match domain.is_empty() {
        true => Vec::new(),
        false => vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()],
    };
    DnsConfig {
        servers: config.cluster_dns.iter().map(IpAddr::to_string).collect(),
        searches: own.into_iter().chain(host.searches.iter().cloned()).collect(),
        options: vec!["ndots:5".to_owned()],
    }
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

fn fit_limits(dns: &mut DnsConfig, warnings: &mut Vec<(&'static str, String)>) {
    if dns.servers.len() > MAX_NAMESERVERS {
        dns.servers.truncate(MAX_NAMESERVERS);
        let line = dns.servers.join(" ");
        warnings.push(("DNSConfigForming", format!("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}")));
    }
    let before = dns.searches.len();
    dns.searches.truncate(MAX_SEARCHES);
    dns.searches.retain(|s| s.len() <= MAX_DOMAIN_CHARS);
    while dns.searches.join(" ").len() > MAX_SEARCH_CHARS {
        dns.searches.pop();
    }
    if dns.searches.len() < before {
        let line = dns.searches.join(" ");
        warnings.push(("DNSConfigForming", format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}")));
    }
}

/// The host's resolvers of the moment, none where it has no file of them: a machine that moves to another network gets others.
pub(crate) async fn of_host(path: &Path) -> Result<DnsConfig, String> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => Ok(parse_resolv_conf(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(DnsConfig::default()),
        Err(error) => Err(format!("cannot read the host's resolvers from {}: {error}", path.display())),
    }
}

/// Reads a resolv.conf. Unknown lines are skipped, as resolvers do.
pub(crate) fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("nameserver") => dns.servers.extend(fields.next().map(str::to_owned)),
            // The last line wins.
            Some("search") => {
                dns.searches =
                    fields.filter(|s| *s != ".").map(|s| s.trim_end_matches('.').to_owned()).collect();
            }
            Some("options") => {
                for option in fields {
                    let name = option.split(':').next();
                    dns.options.retain(|o| o.split(':').next() != name);
                    dns.options.push(option.to_owned());
                }
            }
            _ => {}
        }
    }
    dns
}

/// The pod's host name, and its domain if it has a subdomain.
pub(crate) fn hostname_and_domain(cluster_domain: &str, pod: &Pod) -> Result<(String, String), String> {
    let spec = pod.spec.as_ref();
    let text = |field: Option<&String>| field.cloned().filter(|s| !s.is_empty());
    if let Some(name) = text(spec.and_then(|s| s.hostname_override.as_ref())) {
        return Ok((truncate_hostname(&name)?, String::new()));
    }
    let hostname = match text(spec.and_then(|s| s.hostname.as_ref())) {
        Some(name) if !is_dns_label(&name) => {
            return Err(format!("pod Hostname {name:?} is not a valid DNS label"));
        }
        Some(name) => name,
        None => pod.name().to_owned(),
    };
    let domain = match text(spec.and_then(|s| s.subdomain.as_ref())) {
        Some(name) if !is_dns_label(&name) => {
            return Err(format!("pod Subdomain {name:?} is not a valid DNS label"));
        }
        Some(name) => format!("{name}.{}.svc.{cluster_domain}", pod.namespace()),
        None => String::new(),
    };
    Ok((truncate_hostname(&hostname)?, domain))
}

/// The name the kernel is given: the full one where the pod asks for it.
pub(crate) fn kernel_hostname(pod: &Pod, hostname: &str, domain: &str) -> Result<String, String> {
    let as_fqdn = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false);
    let name = match as_fqdn && !domain.is_empty() {
        true => format!("{hostname}.{domain}"),
        false => hostname.to_owned(),
    };
    match name.len() > 64 {
        true => Err(format!(
            "failed to construct FQDN from Pod hostname and cluster domain, FQDN {name} is too long (64 characters is the max, {} characters requested)",
            name.len()
        )),
        false => Ok(name),
    }
}

fn truncate_hostname(hostname: &str) -> Result<String, String> {
    let cut = hostname.get(..MAX_HOSTNAME).unwrap_or(hostname).trim_end_matches(['-', '.']);
    match cut.is_empty() {
        true => Err(format!("hostname {hostname:?} was invalid after truncation")),
        false => Ok(cut.to_owned()),
    }
}

fn is_dns_label(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// The pod's `/etc/hosts`. `node_hosts` is the host's own file, for pods on its network.
pub(crate) fn hosts_file(
    pod: &Pod,
    ips: &[String],
    hostname: &str,
    domain: &str,
    node_hosts: &str,
) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    if pod.is_host_network() {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(node_hosts);
    } else {
        text.push_str("# Kubernetes-managed hosts file.\n");
        for (ip, names) in [
            ("127.0.0.1", "localhost"),
            ("::1", "localhost ip6-localhost ip6-loopback"),
            ("fe00::0", "ip6-localnet"),
            ("fe00::0", "ip6-mcastprefix"),
            ("fe00::1", "ip6-allnodes"),
            ("fe00::2", "ip6-allrouters"),
        ] {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{ip}\t{names}");
        }
        for ip in ips {
            let _ = match domain.is_empty() {
                true => writeln!(text, "{ip}\t{hostname}"),
                false => writeln!(text, "{ip}\t{hostname}.{domain}\t{hostname}"),
            };
        }
    }
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _ = writeln!(text, "{}\t{names}", alias.ip);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{HostAlias, PodDNSConfig, PodDNSConfigOption, PodSpec};

    fn pod(spec: PodSpec) -> Pod {
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.name = Some("web-0".into());
        pod.metadata.namespace = Some("shop".into());
        pod
    }

    fn config() -> Config {
        let mut config = Config::new("n1", "10.0.0.1".parse().unwrap());
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        config
    }

    fn host() -> DnsConfig {
        parse_resolv_conf("# x\nnameserver 9.9.9.9\nsearch a.example.\noptions timeout:1\n")
    }

    #[test]
    fn cluster_first_searches_the_cluster_then_the_hosts_domains() {
        let (dns, warnings) = pod_dns(&config(), &host(), &pod(PodSpec::default()));
        assert_eq!(dns.servers, ["10.96.0.10"]);
        assert_eq!(
            dns.searches,
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "a.example"]
        );
        assert_eq!(dns.options, ["ndots:5"]);
        assert!(warnings.is_empty());
    }

    #[test]
    fn cluster_first_on_the_hosts_network_is_the_hosts_configuration() {
        let spec = PodSpec {
            host_network: Some(true),
            dns_policy: Some("ClusterFirst".into()),
            ..PodSpec::default()
        };
        assert_eq!(pod_dns(&config(), &host(), &pod(spec)).0, host());
    }

    #[test]
    fn a_pods_own_options_replace_the_policys() {
        let option = PodDNSConfigOption { name: Some("ndots".into()), value: Some("2".into()) };
        let own = PodDNSConfig { options: Some(vec![option]), ..PodDNSConfig::default() };
        let (dns, _) =
            pod_dns(&config(), &host(), &pod(PodSpec { dns_config: Some(own), ..PodSpec::default() }));
        assert_eq!(dns.options, ["ndots:2"]);
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let spec = PodSpec {
            subdomain: Some("peers".into()),
            host_aliases: Some(vec![HostAlias {
                ip: "1.2.3.4".into(),
                hostnames: Some(vec!["a".into(), "b".into()]),
            }]),
            ..PodSpec::default()
        };
        let pod = pod(spec);
        let (hostname, domain) = hostname_and_domain("cluster.local", &pod).unwrap();
        let text = hosts_file(&pod, &["10.1.0.2".into()], &hostname, &domain, "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.contains("10.1.0.2\tweb-0.peers.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }

    #[test]
    fn a_long_name_is_cut_where_it_stays_a_name() {
        let long = format!("{}-{}", "a".repeat(62), "b".repeat(20));
        let spec = PodSpec { hostname: None, ..PodSpec::default() };
        let mut pod = pod(spec);
        pod.metadata.name = Some(long);
        assert_eq!(hostname_and_domain("c", &pod).unwrap().0, "a".repeat(62));
    }
}
