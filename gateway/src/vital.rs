//! Owns what becomes of a panic on a thread that every client needs: the process ends at once, so that what supervises it
//! starts another. Without that thread it would go on, take events in and never answer.
//!
//! What was acknowledged is stored; what was not is under way at most, and clients resume their sessions elsewhere.

/// Held by such a thread while it works.
pub struct Vital(&'static str);

impl Vital {
    /// Names the part that the thread is.
    pub const fn part(name: &'static str) -> Self {
        Self(name)
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                part = self.0,
                "a part that nothing works without has panicked: the gateway ends"
            );
            // Not an exit, which runs what libraries have registered while their other threads go on.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "VITAL_PANICS";
    const SIGABRT: i32 = 6;

    #[test]
    fn a_panic_ends_the_process_and_the_usual_end_does_not() {
        if std::env::var_os(CHILD).is_some() {
            let panics = std::thread::spawn(|| {
                let _vital = Vital::part("test");
                panic!("as asked");
            });
            drop(panics.join());
            return;
        }
        drop(Vital::part("test"));
        // A panic in the process that runs the tests would end them all.
        let this = std::env::current_exe().expect("a path");
        let child = Command::new(this)
            .args([
                "--exact",
                "vital::tests::a_panic_ends_the_process_and_the_usual_end_does_not",
            ])
            .env(CHILD, "1")
            .output()
            .expect("it starts");
        assert_eq!(child.status.signal(), Some(SIGABRT), "{child:?}");
    }
}
