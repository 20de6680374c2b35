//! The image `nonewprivs`: installed set-user-ID, says whether the kernel honoured that.

unsafe extern "C" {
    fn geteuid() -> u32;
}

fn main() {
    // SAFETY: `geteuid` takes nothing and cannot fail.
    println!("Effective uid: {}", unsafe { geteuid() });
}
