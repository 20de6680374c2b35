//! How the parts of a server are put together: each is given what is below it, and nothing leads back up.
//!
//! ```text
//! store ─ caches ─ lister ─ objects ─┬─ admission ─┐
//!                                    └─ services ──┴─ registry ─┬─ subresources, reviews ─ pipeline
//!                                                               └─ definitions, APIServices, flow objects, bootstrap
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::RwLock;
use skiff_api::{Object, Status};
use skiff_webhook::Client;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::admission::dynamic::Dynamic;
use crate::admission::quota::Quotas;
use crate::aggregation::follow::Aggregator;
use crate::aggregation::forward::Forwarder;
use crate::aggregation::reach::{Endpoints, Outward};
use crate::auth::authenticate::Authenticator;
use crate::auth::authorize::Authorization;
use crate::auth::configuration::Builder;
use crate::auth::node::NodeAuthorizer;
use crate::auth::node_index::NodeIndex;
use crate::auth::rbac::{self, Policy, Rbac, RoleIndex};
use crate::auth::reload::Reload;
use crate::auth::shared_keys;
use crate::auth::token::TokenKeys;
use crate::bootstrap::Bootstrap;
use crate::cache::{Caches, Observer};
use crate::config::{Config, Error};
use crate::discovery;
use crate::health::Health;
use crate::heavy::HeavyWork;
use crate::lapsed::Grace;
use crate::limits::Limits;
use crate::limits::objects::FlowObjects;
use crate::lister::Lister;
use crate::live::Live;
use crate::live::follow::Definitions;
use crate::live::type_checks::TypeChecks;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::openid::OpenId;
use crate::pipeline::Pipeline;
use crate::proxy::Proxies;
use crate::proxy::destination::{Destinations, PodProxy};
use crate::proxy::kubelet::Kubelet;
use crate::registry::Registry;
use crate::registry::list::Lists;
use crate::review::Reviews;
use crate::servers::Servers;
use crate::services::Services;
use crate::services::allocator::ServiceAllocator;
use crate::services::cidr::ServiceCidr;
use crate::services::seen::Seen;
use crate::store::{Revision, Sharing};
use crate::subresource::Subresources;
use crate::tls::{self, Shown};
use crate::usage::ResourceMetrics;

/// A server's parts.
pub(crate) struct Parts {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) policy: Policy,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) type_checks: Arc<TypeChecks>,
    pub(crate) usage: Arc<ResourceMetrics>,
    pub(crate) tokens: Arc<TokenKeys>,
    /// Keeps the chain of authorizers up to date.
    pub(crate) reload: Reload,
    /// Where several servers share the store: since when this one has followed their token keys.
    pub(crate) keys_as_of: Option<Revision>,
    /// What is shown to kubelets.
    pub(crate) kubelet_client: Arc<Shown>,
    /// What is shown to API servers behind this one.
    pub(crate) front_proxy: Option<Arc<Shown>>,
    /// Ends watches and streams.
    pub(crate) shutdown: CancellationToken,
}

/// Fills the caches, which follow the store until `closed`, and puts everything on top of them.
pub(crate) async fn assemble(
    config: Config,
    address: &Arc<RwLock<SocketAddr>>,
    closed: &CancellationToken,
) -> Result<Parts, Error> {
    let front_proxy = config.front_proxy.as_ref();
    let shown = front_proxy.map(tls::front_proxy_shown).transpose()?;
    let (kubelet_tls, kubelet_client) = tls::kubelet_client(&config.kubelet)?;
    let allow_loopback = config.kubelet.allow_loopback;
    let account = &config.service_account;
    let default_issuer = || format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    let issuer = account.issuer.clone().unwrap_or_else(default_issuer);
    let tokens = Arc::new(TokenKeys::new(&issuer, &account.private_key_pem, &account.public_key_pem)?);
    let is_shared = config.store.sharing() == Sharing::Shared;
    let keys_as_of = match is_shared {
        true => Some(shared_keys::share(&*config.store, &tokens).await?),
        false => None,
    };

    let kinds = Arc::new(config.kinds);
    let (nodes, roles, seen) =
        (Arc::new(NodeIndex::default()), Arc::new(RoleIndex::default()), Arc::new(Seen::default()));
    let mut observers: Vec<(&str, Arc<dyn Observer>)> = vec![("pods", nodes.clone())];
    observers.extend(rbac::observers(&roles));
    if is_shared {
        observers.push(("services/specs", seen.clone()));
    }
    let caches = Caches::start(&kinds, config.store.clone(), &observers, closed.clone()).await?;
    let live = Arc::new(Live::new((*kinds).clone(), address.clone()));
    let lister = Lister { live, caches: caches.clone() };
    let metrics = Arc::new(Metrics::default());
    let objects = Arc::new(Objects {
        lister: lister.clone(),
        store: config.store.clone(),
        event_ttl: config.event_ttl,
        metrics: metrics.clone(),
    });

    let policy = Policy::builtin()?;
    let rules = policy.rules_of("system:node").into();
    let node = NodeAuthorizer { caches: caches.clone(), kinds: kinds.clone(), nodes, rules };
    let authenticator = Arc::new(Authenticator {
        tokens: tokens.clone(),
        caches,
        kinds,
        audiences: vec![issuer],
        front_proxies: front_proxy.map(|proxy| proxy.allowed_names.clone()).unwrap_or_default(),
    });
    let kubelet = Arc::new(Kubelet::new(kubelet_tls, allow_loopback));
    let destinations = Arc::new(Destinations {
        lister: lister.clone(),
        kubelet: kubelet.clone(),
        pods: PodProxy::new(tls::pod_client()?, allow_loopback),
    });
    let webhooks = Arc::new(Client::new(destinations.clone(), tls::provider()));
    let builder = Builder { client: webhooks.clone(), metrics: metrics.authorization.clone() };
    let (chain, reload) = Reload::start(&config.authorization, address.read().to_string(), builder)?;
    let authorizer = Arc::new(Authorization::new(node, Rbac::new(roles), chain));
    let admission = Admission {
        lister: lister.clone(),
        metrics: metrics.clone(),
        authorizer: authorizer.clone(),
        disabled: config.disabled_admission,
        dynamic: Dynamic::new(objects.clone(), authorizer.clone(), webhooks.clone(), metrics.clone()),
        quotas: Quotas::new(objects.clone()),
    };
    let seen = is_shared.then_some(&*seen);
    let allocator = allocator(&lister, config.service_cidr, seen).map_err(Error::Bootstrap)?;
    let services = Arc::new(Services::new(objects.clone(), allocator));
    let heavy = Arc::new(HeavyWork::new(config.on_long_thread));
    let usage = Arc::new(ResourceMetrics::new(lister.clone(), kubelet, heavy.clone()));
    let shutdown = CancellationToken::new();
    let registry = Arc::new(Registry {
        objects: objects.clone(),
        admission,
        authorizer: authorizer.clone(),
        services,
        lists: Lists { objects: objects.clone(), heavy: heavy.clone() },
        shutdown: shutdown.clone(),
    });

    let limits = Arc::new(Limits::default());
    metrics.tell_of(limits.collected(), lister.caches.clone(), discovery::build());
    let endpoints = Arc::new(Endpoints { lister: lister.clone(), allow_loopback });
    let outward = Outward::new(shown.clone(), endpoints.clone());
    let proxies = Proxies { destinations, authorizer, shutdown: shutdown.clone() };
    let pipeline = Pipeline {
        grace: Grace::new(config.node_certificate_grace),
        subresources: Subresources {
            registry: registry.clone(),
            proxies,
            authenticator: authenticator.clone(),
        },
        usage: usage.clone(),
        reviews: Reviews { registry: registry.clone(), authenticator: authenticator.clone() },
        authenticator,
        forwarder: Forwarder { endpoints, limits: limits.clone(), shutdown: shutdown.clone() },
        health: Health { lister, store: config.store, metrics: metrics.clone(), shutdown: shutdown.clone() },
        openid: OpenId::new(tokens.clone(), address.clone())?,
        heavy: heavy.clone(),
        metrics,
        limits: limits.clone(),
        registry: registry.clone(),
    };
    let flow = Arc::new(FlowObjects { registry: registry.clone(), limits });
    let servers = Arc::new(Servers { registry: registry.clone() });
    Ok(Parts {
        pipeline: Arc::new(pipeline),
        definitions: Arc::new(Definitions::new(registry.clone(), webhooks)),
        aggregator: Arc::new(Aggregator::new(registry.clone(), outward, heavy.clone())),
        type_checks: Arc::new(TypeChecks { objects, heavy }),
        usage,
        bootstrap: Bootstrap { registry, flow, servers },
        policy,
        tokens,
        reload,
        keys_as_of,
        kubelet_client,
        front_proxy: shown,
        shutdown,
    })
}

/// Who gives out addresses and ports, knowing what the stored Services have; `seen` is what other servers give out.
fn allocator(lister: &Lister, cidr: ServiceCidr, seen: Option<&Seen>) -> Result<ServiceAllocator, Status> {
    let services = lister.cache("", "v1", "services")?;
    // The addresses of those that cannot be read are kept by their IPAddress objects.
    let stored: Vec<Object> = services.readable().values().map(|entry| entry.parse()).collect();
    let mut allocator = ServiceAllocator::new(cidr, stored.into_iter());
    if let Some(seen) = seen {
        allocator = allocator.sharing(seen.held());
    }
    let addresses = lister.cache("networking.k8s.io", "v1", "ipaddresses")?;
    Ok(allocator.heeding(addresses).knowing(services))
}
