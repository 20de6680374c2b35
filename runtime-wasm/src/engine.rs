//! One engine configuration for the process that compiles and the one that runs: native code fits only
//! the configuration it was made for.

use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Instances of all containers of a host together, and as many memories, tables and stacks. All of it is
/// address space until it is used.
const MAX_INSTANCES: u32 = 1000;
/// Enough for a component and the adapters inside it.
const MAX_PER_COMPONENT: u32 = 20;

fn config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // A shared memory would escape the container's memory limit.
    config.wasm_threads(false);
    config.memory_init_cow(true);
    // Traps name functions; with file and line they would need the guest's debug sections kept.
    config.generate_address_map(false);
    config
}

/// The engine that compiles: it reserves nothing.
pub(crate) fn compiler() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// The engine that runs guests: pooled, or on demand where the address space cannot be had.
pub(crate) fn runner() -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(MAX_INSTANCES)
        .total_component_instances(MAX_INSTANCES)
        .total_memories(MAX_INSTANCES)
        .total_tables(MAX_INSTANCES)
        .total_stacks(MAX_INSTANCES)
        // Hardly any guest has one, and each reserves as much as a memory.
        .total_gc_heaps(16)
        .max_core_instances_per_component(MAX_PER_COMPONENT)
        .max_memories_per_component(MAX_PER_COMPONENT)
        .max_tables_per_component(MAX_PER_COMPONENT)
        .table_elements(20_000)
        .max_unused_warm_slots(8);
    let mut pooled = config();
    pooled.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&pooled).or_else(|err| {
        tracing::warn!(%err, "no pool of instances: allocating on demand");
        Engine::new(&config())
    })
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
        let (compiler, runner) = (compiler().unwrap(), runner().unwrap());
        assert_eq!(compatibility(&compiler), compatibility(&runner));
        let module = wat::parse_str("(module (memory 1) (func (export \"_start\")))").unwrap();
        let code = compiler.precompile_module(&module).unwrap();
        // SAFETY: the bytes were made by `precompile_module` just now.
        unsafe { wasmtime::Module::deserialize(&runner, code) }.unwrap();
    }
}
