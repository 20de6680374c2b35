//! `ResourceQuota`: what is created or grows is charged to the quotas of its namespace, or refused.
//!
//! # Guarantees
//! - A quota is charged in its own stored status, by compare and swap: two requests cannot both take the last of it.
//! - What is charged and then not written is given back.
//!
//! # Caveats
//! A server that ends between the two leaves the charge; the quota controller counts anew soon after any charge.
//!
//! Source: apiserver's `admission/plugin/resourcequota`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use jiff::Timestamp;
use skiff_api::meta::Meta;
use skiff_api::quota::{self, Evaluator};
use skiff_api::resources::Resources;
use skiff_api::{Kind, Object, Status};
use skiff_webhook::admission::Operation;

use super::timed::Timed;
use crate::call::is_core;
use crate::objects::{Next, Objects};

/// Requests of one namespace are charged one after the other: as many at once would only lose to each other.
struct Turns([tokio::sync::Mutex<()>; 64]);

impl Default for Turns {
    fn default() -> Turns {
        Turns(std::array::from_fn(|_| tokio::sync::Mutex::default()))
    }
}

impl Turns {
    async fn of(&self, namespace: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let at = hasher.finish() % self.0.len() as u64;
        self.0[at as usize].lock().await
    }
}

/// What a request was charged, by the quotas' names.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    namespace: String,
    taken: Vec<(String, Resources)>,
}

/// The quotas of all namespaces, and whose turn it is to charge them.
pub(crate) struct Quotas {
    objects: Arc<Objects>,
    turns: Turns,
}

impl Quotas {
    pub(crate) fn new(objects: Arc<Objects>) -> Quotas {
        Quotas { objects, turns: Turns::default() }
    }

    fn quotas(&self, namespace: &str) -> Result<Vec<Object>, Status> {
        let (_, all) = self.objects.lister.cache("", "v1", "resourcequotas")?.snapshot_of(Some(namespace))?;
        Ok(all.values().filter(|entry| entry.namespace() == namespace).map(|entry| entry.parse()).collect())
    }

    /// Charges a new object.
    ///
    /// # Errors
    /// 403 if a quota does not have that much left, or if it is not known yet what is used.
    pub(crate) async fn charge(&self, kind: &Kind, object: &Object, dry_run: bool) -> Result<Charge, Status> {
        self.charge_growth(kind, object, None, dry_run).await
    }

    /// Charges what an update makes an object grow by. Of most kinds it cannot.
    pub(crate) async fn charge_update(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        dry_run: bool,
        make: impl FnOnce(&Object) -> Result<Object, Status>,
    ) -> Result<Charge, Status> {
        let can_grow = ["Pod", "Service", "PersistentVolumeClaim"].iter().any(|known| is_core(kind, known));
        if !can_grow || self.quotas(namespace)?.is_empty() {
            return Ok(Charge::default());
        }
        self.objects.lister.caches.wait_for_newest().await?;
        let Some(entry) = self.objects.lister.caches.of(kind)?.get(&format!("{namespace}/{name}"))? else {
            return Ok(Charge::default());
        };
        let old = entry.parse();
        let new = make(&old)?;
        // Pods grow only by what their containers are given, but may move from one scope to another.
        let same = |field: &str| new["spec"][field] == old["spec"][field];
        if is_core(kind, "Pod")
            && quota::is_terminating(&new) == quota::is_terminating(&old)
            && ["containers", "initContainers", "resources"].into_iter().all(same)
        {
            return Ok(Charge::default());
        }
        self.charge_growth(kind, &new, Some(&old), dry_run).await
    }

    async fn charge_growth(
        &self,
        kind: &Kind,
        object: &Object,
        old: Option<&Object>,
        dry_run: bool,
    ) -> Result<Charge, Status> {
        let mut charge = Charge { namespace: object.namespace().to_owned(), taken: Vec::new() };
        let Some(evaluator) = Evaluator::of(&kind.group, &kind.plural).filter(|_| kind.is_namespaced())
        else {
            return Ok(charge);
        };
        if self.quotas(&charge.namespace)?.is_empty() {
            return Ok(charge);
        }
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        let timed = Timed { metrics: &self.objects.metrics, operation, type_: "validate" };
        timed
            .of("ResourceQuota", self.charge_all(kind, &evaluator, object, old, dry_run, &mut charge))
            .await?;
        Ok(charge)
    }

    /// Charges each quota of the namespace, or none of them.
    async fn charge_all(
        &self,
        kind: &Kind,
        evaluator: &Evaluator,
        object: &Object,
        old: Option<&Object>,
        dry_run: bool,
        charge: &mut Charge,
    ) -> Result<(), Status> {
        let _turn = self.turns.of(&charge.namespace).await;
        self.objects.lister.caches.wait_for_newest().await?;
        let forbid = |why: String| Status::forbidden(&kind.group, &kind.plural, object.name(), &why);
        for quota in self.quotas(&charge.namespace)? {
            let growth = match growth(evaluator, &quota, object, old) {
                Ok(growth) => growth,
                Err(why) => {
                    self.give_back(charge).await;
                    return Err(forbid(why));
                }
            };
            if growth.is_empty() {
                continue;
            }
            match self.take(&charge.namespace, quota.name(), &growth, dry_run, &forbid).await {
                Ok(true) => charge.taken.push((quota.name().to_owned(), growth)),
                Ok(false) => {}
                Err(status) => {
                    self.give_back(charge).await;
                    return Err(status);
                }
            }
        }
        Ok(())
    }

    /// Adds to what is used of a quota; answers whether it is there to be charged, and was.
    async fn take(
        &self,
        namespace: &str,
        name: &str,
        growth: &Resources,
        dry_run: bool,
        forbid: &(dyn Fn(String) -> Status + Sync),
    ) -> Result<bool, Status> {
        let kind = self.objects.lister.kind("", "v1", "resourcequotas")?;
        let taken = self.objects.modify(&kind, namespace, name, dry_run, |current| {
            let mut quota = current.object.clone();
            let status = &mut quota["status"];
            let hard = Resources::from_json(&status["hard"]);
            let mut used = Resources::from_json(&status["used"]);
            let before = used.clone();
            used.add(growth);
            let exceeded = |name: &str| {
                growth.get(name).is_some()
                    && matches!((used.get(name), hard.get(name)), (Some(used), Some(hard)) if used > hard)
            };
            let too_much = growth.only(exceeded);
            if !too_much.is_empty() {
                return Err(forbid(format!(
                    "exceeded quota: {name}, requested: {too_much}, used: {}, limited: {}",
                    before.only(exceeded),
                    hard.only(exceeded)
                )));
            }
            status["used"] = used.to_json();
            Ok(Next::Put(quota))
        });
        match taken.await {
            Ok(_) => Ok(!dry_run),
            // Deleted meanwhile: it limits nothing any more.
            Err(status) if status.code == 404 => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// Takes back a charge for what was not written after all.
    pub(crate) async fn refund(&self, charge: Charge) {
        if !charge.taken.is_empty() {
            let _turn = self.turns.of(&charge.namespace).await;
            self.give_back(&charge).await;
        }
    }

    async fn give_back(&self, charge: &Charge) {
        let Ok(kind) = self.objects.lister.kind("", "v1", "resourcequotas") else { return };
        for (name, growth) in &charge.taken {
            let given = self.objects.modify(&kind, &charge.namespace, name, false, |current| {
                let mut quota = current.object.clone();
                let used = Resources::from_json(&quota["status"]["used"]);
                quota["status"]["used"] = used.less(growth).to_json();
                Ok(Next::Put(quota))
            });
            if let Err(error) = given.await
                && error.code != 404
            {
                // The controller counts anew, and puts it right.
                tracing::warn!(quota = name, %error, "cannot give back what a quota was charged");
            }
        }
    }
}

/// How much more of a quota an object takes than `old` did; what keeps it from being told, as a sentence.
fn growth(
    evaluator: &Evaluator,
    quota: &Object,
    object: &Object,
    old: Option<&Object>,
) -> Result<Resources, String> {
    let hard = Resources::from_json(&quota["status"]["hard"]);
    let counted: Vec<&str> = hard.names().filter(|name| evaluator.counts(name)).collect();
    if counted.is_empty() || !evaluator.is_in_scope(quota, object) {
        return Ok(Resources::default());
    }
    let name = quota.name();
    if let Some(fault) = evaluator.fault(&counted, object) {
        return Err(format!("failed quota: {name}: {fault}"));
    }
    let used = Resources::from_json(&quota["status"]["used"]);
    if counted.iter().any(|resource| used.get(resource).is_none()) {
        return Err(format!("status unknown for quota: {name}, resources: {}", counted.join(",")));
    }
    let now = Timestamp::now();
    let usage = evaluator.usage(object, now);
    let negative: Vec<&str> = usage.iter().filter(|(_, a)| a.is_negative()).map(|(name, _)| name).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    let growth = match old.filter(|old| evaluator.is_in_scope(quota, old)) {
        Some(old) => usage.beyond(&evaluator.usage(old, now)),
        None => usage,
    };
    Ok(growth.only(|name| hard.get(name).is_some()).without_zeros())
}
