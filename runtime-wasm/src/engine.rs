//! One engine configuration for the process that compiles and the one that runs: native code fits only
//! the configuration it was made for.

use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Instances in the pool, and as many memories and tables, of all containers of a host together. All of it is address space
/// until it is used. Who finds the pool empty, or does not fit into it, is given memory of its own: [`Engines`].
const POOLED_INSTANCES: u32 = 1000;
/// Stacks: one an instance, and one for each that is being made.
const POOLED_STACKS: u32 = 1500;
/// Hardly any guest has one.
const POOLED_GC_HEAPS: u32 = 250;
/// Enough for most components and the adapters inside them.
const POOLED_PER_COMPONENT: u32 = 20;
const POOLED_TABLE_ELEMENTS: usize = 20_000;

fn config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // A shared memory would escape the container's memory limit.
    config.wasm_threads(false);
    // WASI 0.3.
    config.wasm_component_model_async(true);
    config.memory_init_cow(true);
    // Traps name functions; with file and line they would need the guest's debug sections kept.
    config.generate_address_map(false);
    config
}

/// The engine that compiles: it reserves nothing.
pub(crate) fn compiler() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// The engines that run guests. Their native code is the same.
#[derive(Clone)]
pub(crate) struct Engines {
    /// Instances from a pool, which are made fast.
    pub(crate) pooled: Engine,
    /// For modules that are too large for the pool, and for whoever finds it empty: no container can take from another what
    /// it needs to run.
    pub(crate) on_demand: Engine,
}

/// The engines that run guests; both allocate on demand where the address space of a pool cannot be had.
pub(crate) fn runners() -> wasmtime::Result<Engines> {
    let on_demand = Engine::new(&config())?;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(POOLED_INSTANCES)
        .total_component_instances(POOLED_INSTANCES)
        .total_memories(POOLED_INSTANCES)
        .total_tables(POOLED_INSTANCES)
        .total_stacks(POOLED_STACKS)
        .total_gc_heaps(POOLED_GC_HEAPS)
        .max_core_instances_per_component(POOLED_PER_COMPONENT)
        .max_memories_per_component(POOLED_PER_COMPONENT)
        .max_tables_per_component(POOLED_PER_COMPONENT)
        .table_elements(POOLED_TABLE_ELEMENTS)
        .max_unused_warm_slots(8);
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    let pooled = Engine::new(&config).unwrap_or_else(|err| {
        tracing::warn!(%err, "no pool of instances: allocating on demand");
        on_demand.clone()
    });
    Ok(Engines { pooled, on_demand })
}

/// A name for all engines that run each other's native code.
pub(crate) fn compatibility(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hasher = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex::encode(&hasher.0.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_process_compiles_another_runs() {
        let (compiler, runners) = (compiler().unwrap(), runners().unwrap());
        let module = wat::parse_str("(module (memory 1) (func (export \"_start\")))").unwrap();
        let code = compiler.precompile_module(&module).unwrap();
        for runner in [runners.pooled, runners.on_demand] {
            assert_eq!(compatibility(&compiler), compatibility(&runner));
            // SAFETY: the bytes were made by `precompile_module` just now.
            unsafe { wasmtime::Module::deserialize(&runner, &code) }.unwrap();
        }
    }
}
