//! The priority of threads whose work can wait.

/// Lets the system run other threads before this one, where the priority is one of a thread. It
/// still gets a tenth of a processor that another thread always uses.
pub(crate) fn give_way() {
    #[cfg(all(target_os = "linux", not(sessionlog_not_linux)))]
    {
        use rustix::process::{getpriority_process, setpriority_process};

        const NICENESS: i32 = 10;
        let this_thread = Some(rustix::thread::gettid());
        // Where the system refuses, the work is done all the same.
        let already = getpriority_process(this_thread).unwrap_or(NICENESS);
        let _of_use = setpriority_process(this_thread, already.max(NICENESS));
    }
}
