//! The priority of threads whose work can wait.

/// Lets the system run other threads before this one and those it spawns, where the priority is one
/// of a thread. It still gets a tenth of a processor that another thread always uses.
pub(crate) fn give_way() {
    #[cfg(all(target_os = "linux", not(sessionlog_not_linux)))]
    {
        const NICENESS: i32 = 10;
        let this_thread = rustix::thread::gettid();
        // Without it the work is done all the same.
        let _of_use = rustix::process::setpriority_process(Some(this_thread), NICENESS);
    }
}
