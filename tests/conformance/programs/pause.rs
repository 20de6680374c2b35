//! The image `pause`: waits, leaves on SIGTERM or SIGINT, and has its children reaped by the kernel.

use std::ffi::c_int;

const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
const SIGCHLD: c_int = 17;
const SIG_IGN: usize = 1;

unsafe extern "C" {
    fn signal(signal: c_int, handler: usize) -> usize;
    fn pause() -> c_int;
    fn _exit(code: c_int) -> !;
}

extern "C" fn leave(_signal: c_int) {
    // SAFETY: `_exit` may be called in a signal handler.
    unsafe { _exit(0) }
}

fn main() {
    let leave = leave as extern "C" fn(c_int) as usize;
    // SAFETY: the handler is a function of the type that `signal` takes, and calls only what a handler may.
    unsafe {
        signal(SIGTERM, leave);
        signal(SIGINT, leave);
        signal(SIGCHLD, SIG_IGN);
        loop {
            pause();
        }
    }
}
