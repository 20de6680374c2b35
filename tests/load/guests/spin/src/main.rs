//! Takes all the processor time that it is given, and never ends.

fn main() {
    loop {
        std::hint::spin_loop();
    }
}
