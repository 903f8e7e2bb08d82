//! A network of one's own: a namespace with nothing in it but loopback, gone with its thread. Needs root.

use std::{future::Future, process::Command, thread};

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a namespace of its own, set up by these commands (`ip …`) after loopback is up.
pub fn in_own_network<F: Future<Output = ()>>(
    set_up: &'static [&'static str],
    test: impl FnOnce() -> F + Send + 'static,
) {
    let outcome = thread::spawn(move || {
        // Of this thread alone, and of what it starts.
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; this test needs root");
        for line in ["ip link set lo up"].iter().chain(set_up) {
            let mut words = line.split_whitespace();
            let status = Command::new(words.next().expect("a command")).args(words).status().expect(line);
            assert!(status.success(), "{line}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// How many ports connections may leave from, in this thread's namespace.
pub fn set_port_range(low: u16, high: u16) {
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{low} {high}")).expect("a writable setting");
}
