//! Everything that differs between operating systems: private files, signals, the terminal, the control socket.

use std::fs;
use std::io;
use std::path::Path;

/// One end of the control socket.
#[cfg(unix)]
pub(crate) type ControlStream = tokio::net::UnixStream;
/// The listening control socket.
#[cfg(unix)]
pub(crate) type ControlListener = tokio::net::UnixListener;

/// Whether services are systemd's here.
pub(crate) const HAS_SYSTEMD: bool = cfg!(target_os = "linux");

/// Makes a directory, and those above it, for its owner alone.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// How a file that only its owner can read is written.
pub(crate) fn private_file() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Binds the control socket for its owner alone. One that nobody listens on any more is replaced; one that is in use is
/// an error of kind `AddrInUse`.
#[cfg(unix)]
pub(crate) fn bind_control(path: &Path) -> io::Result<ControlListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // Bound under another name first: under its own name it is never open to others, not even for a moment.
    let hidden = path.with_extension("sock.new");
    match fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = ControlListener::bind(&hidden)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
    fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Columns and rows of the terminal that standard output is; `None` if it is none, or if that is not known here.
pub(crate) fn terminal_size() -> Option<(u16, u16)> {
    #[cfg(unix)]
    {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }
    #[cfg(not(unix))]
    None
}

/// Whether the terminal is this program's now, and not that of the shell which put it into the background. True where no
/// shell does such things.
pub(crate) fn is_in_foreground() -> bool {
    #[cfg(unix)]
    return rustix::termios::tcgetpgrp(std::io::stdout())
        .map_or(true, |group| group == rustix::process::getpgrp());
    #[cfg(not(unix))]
    true
}

/// Ctrl-Z, as long as there is one of these; it does nothing by itself then.
pub(crate) struct Suspensions(#[cfg(unix)] Option<tokio::signal::unix::Signal>);

impl Suspensions {
    pub(crate) fn new() -> Self {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let kind = SignalKind::from_raw(rustix::process::Signal::TSTP.as_raw());
            Self(signal(kind).ok())
        }
        #[cfg(not(unix))]
        Self()
    }

    /// The next one. Only if there is a shell that can go on with the program: without one, POSIX has it ignored.
    pub(crate) async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signals) = &mut self.0 {
            use rustix::process::{getppid, getsid};
            while signals.recv().await.is_some() {
                let session_above = getppid().map(|parent| getsid(Some(parent)));
                if let (Some(Ok(above)), Ok(own)) = (session_above, getsid(None))
                    && above == own
                {
                    return;
                }
            }
        }
        std::future::pending().await
    }
}

/// Stops this program until somebody goes on with it.
pub(crate) fn suspend() {
    #[cfg(unix)]
    {
        use rustix::process::{Signal, getpid, kill_process};
        let _ = kill_process(getpid(), Signal::STOP);
    }
}

/// Ctrl-C, Ctrl-\, or SIGTERM from a service manager.
pub(crate) async fn stopped() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut terminate), Ok(mut quit)) = (signal(SignalKind::terminate()), signal(SignalKind::quit()))
        else {
            let _ = tokio::signal::ctrl_c().await;
            return;
        };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
            _ = quit.recv() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

/// The control socket of other systems: there is none yet, and asking for it says so.
#[cfg(not(unix))]
mod without_sockets {
    use std::io;
    use std::path::Path;

    pub(crate) type ControlStream = tokio::io::DuplexStream;

    pub(crate) struct ControlListener;

    impl ControlListener {
        pub(crate) async fn accept(&self) -> io::Result<(ControlStream, ())> {
            std::future::pending().await
        }
    }

    pub(crate) fn bind_control(_: &Path) -> io::Result<ControlListener> {
        Ok(ControlListener)
    }
}

#[cfg(not(unix))]
pub(crate) use without_sockets::{ControlListener, ControlStream, bind_control};

/// Reaches the agent that listens at `path`.
pub(crate) async fn connect_control(path: &Path) -> io::Result<ControlStream> {
    #[cfg(unix)]
    return ControlStream::connect(path).await;
    #[cfg(not(unix))]
    {
        let _ = path;
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a running agent cannot be asked on this system yet",
        ))
    }
}
