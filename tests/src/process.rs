//! One child process: started, signalled, waited for, killed when it is dropped or when the tests die.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};

use anyhow::{Context, Result, bail, ensure};

use crate::wait;

/// Lines of a log that are shown when a test fails.
const LOG_TAIL_LINES: usize = 60;

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Children are told to die with the thread that started them, so that a killed test run leaves nothing behind. Threads
/// of tests end early; this one lives as long as the process.
static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    std::thread::spawn(move || {
        for (mut command, answer) in inbox {
            // A caller that went away drops the child, which nobody can signal any more: see `Process::start`.
            drop(answer.send(command.spawn()));
        }
    });
    orders
});

/// Sends a signal, such as `TERM`, to a process.
///
/// # Errors
/// When there is no such process, or it is another user's.
pub fn signal(pid: u32, signal: &str) -> Result<()> {
    let sent = Command::new("sh")
        .args(["-c", "kill -s \"$0\" \"$1\"", signal, &pid.to_string()])
        .status()?;
    ensure!(sent.success(), "cannot send SIG{signal} to {pid}");
    Ok(())
}

/// A network namespace in which a process can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub namespace: String,
    /// Its address, which this process can reach.
    pub address: Ipv4Addr,
}

impl Place {
    /// Where a server in it listens. Each place has one server of a kind, so that nobody needs to look for a free port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }
}

/// A child process with its output in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program. Its output goes to `NAME.log` in the directory, after that of an earlier start.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: &[&str],
        env: &[(String, String)],
        log_in: &Path,
    ) -> Result<Self> {
        let log = log_in.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        // What the caller's shell sets for another stack must not reach this one.
        for (variable, _value) in
            std::env::vars().filter(|(name, _)| name.starts_with("SLUICE_") || name.starts_with("OTEL_"))
        {
            command.env_remove(variable);
        }
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let (answer, child) = mpsc::channel();
        SPAWNER.send((command, answer)).context("the spawning thread is gone")?;
        let child = child
            .recv()
            .context("the spawning thread is gone")?
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Starts a program without arguments in a network of its own, where one is given.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_in(
        place: Option<&Place>,
        name: &str,
        program: &Path,
        env: &[(String, String)],
        log_in: &Path,
    ) -> Result<Self> {
        let Some(place) = place else {
            return Self::start(name, program, &[], env, log_in);
        };
        // It becomes the program, so that the process that is signalled is the server.
        let program = program.to_str().context("the program's path is no text")?;
        let arguments = ["netns", "exec", &place.namespace, program];
        Self::start(name, Path::new("ip"), &arguments, env, log_in)
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Whether a signal has stopped it, so that it neither runs nor has ended.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn is_stopped(&self) -> Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name, in parentheses, may contain anything; the state comes after it.
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
        Ok(state == Some("T"))
    }

    /// Fails, saying how it ended, when it does not run any more.
    ///
    /// # Errors
    /// When it ended.
    pub fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself: {status}", self.name),
        }
    }

    /// Kills it at once, as a crash would, and reaps it.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn kill_9(&mut self) -> Result<()> {
        self.must_run()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn signal(&mut self, signal: &str) -> Result<()> {
        self.must_run()?;
        self::signal(self.pid(), signal).with_context(|| self.name.clone())
    }

    /// Waits until it ended.
    ///
    /// # Errors
    /// When it goes on running.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        wait::until(&what, async || Ok(self.child.try_wait()?)).await
    }

    /// Asks it to end and waits; it must exit with 0.
    ///
    /// # Errors
    /// When it does not end or ends badly.
    pub async fn terminate(&mut self) -> Result<()> {
        self.signal("TERM")?;
        let status = self.ended().await?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    /// The end of its output.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("---- {} ({})\n{}\n", self.name, self.log.display(), tail.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process is already gone, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
