//! `tasuki-agent install`: a systemd unit, for this user or for the machine.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::os;
use crate::words::Words;
use crate::{CONFIG, Fail, IO};

/// The machine's unit, as packages bring it.
const SYSTEM: &str = include_str!("../../../packaging/tasuki-agent.service");
const SYSTEM_PROGRAM: &str = "/usr/bin/tasuki-agent run";
const NAME: &str = "tasuki-agent.service";

#[derive(Args, Debug)]
pub(crate) struct Install {
    /// For the whole machine (as root), instead of for this user
    #[arg(long)]
    system: bool,
    /// Only print the unit
    #[arg(long)]
    print: bool,
    /// The file with the agent's settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where key and gateway are remembered
    #[arg(long, value_name = "DIR", conflicts_with = "system")]
    dir: Option<PathBuf>,
}

pub(crate) fn install(arguments: &Install, words: Words) -> Result<(), Fail> {
    let program = std::env::current_exe()
        .map_err(|error| Fail::new(IO, format!("this program's own path is not known: {error}")))?;
    if arguments.system && (program.starts_with("/home") || program.starts_with("/root")) {
        let text = format!(
            "{}: services of the machine do not see programs in home directories; copy it to /usr/local/bin and run it from \
             there",
            program.display()
        );
        return Err(Fail::new(CONFIG, text));
    }
    let unit = unit(arguments, &program)?;
    if arguments.print {
        print!("{unit}");
        return Ok(());
    }
    if !os::HAS_SYSTEMD {
        let text =
            "this system has no systemd; packaging/windows/README.md tells how Windows starts the agent";
        return Err(Fail::new(CONFIG, text));
    }
    let directory = directory(arguments.system)?;
    let path = directory.join(NAME);
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&path, unit))
        .map_err(|error| Fail::new(IO, format!("{}: {error}", path.display())))?;
    let (start, more) = if arguments.system {
        ("sudo systemctl enable --now tasuki-agent", "")
    } else {
        (
            "systemctl --user enable --now tasuki-agent",
            "loginctl enable-linger",
        )
    };
    println!(
        "{}",
        words.pick(
            format!(
                "{} is written. Start it, now and at each boot, with:",
                path.display()
            ),
            format!(
                "{} を書きました。今すぐ、また起動のたびに開始するには:",
                path.display()
            ),
        )
    );
    println!(
        "  systemctl {}daemon-reload",
        if arguments.system { "" } else { "--user " }
    );
    println!("  {start}");
    if !more.is_empty() {
        println!("  {more}");
    }
    Ok(())
}

fn directory(system: bool) -> Result<PathBuf, Fail> {
    if system {
        return Ok("/etc/systemd/system".into());
    }
    let from = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    from("XDG_CONFIG_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".config")))
        .map(|config| config.join("systemd/user"))
        .ok_or_else(|| {
            Fail::new(
                CONFIG,
                "HOME is not set: say --print and write the unit where you want it",
            )
        })
}

fn unit(arguments: &Install, program: &Path) -> Result<String, Fail> {
    let mut command = vec![quoted(program)?, "run".to_owned()];
    for (option, path) in [("--config", &arguments.config), ("--dir", &arguments.dir)] {
        if let Some(path) = path {
            let whole = std::path::absolute(path)
                .map_err(|error| Fail::new(IO, format!("{}: {error}", path.display())))?;
            command.extend([option.to_owned(), quoted(&whole)?]);
        }
    }
    let command = command.join(" ");
    if arguments.system {
        return Ok(SYSTEM.replace(SYSTEM_PROGRAM, &command));
    }
    Ok(format!(
        "[Unit]
Description=Tasuki agent: makes local servers reachable through a Tasuki gateway

[Service]
Type=exec
# Before the first start: enrol once with the command that the gateway prints.
ExecStart={command}
Restart=on-failure
RestartSec=2s
RestartPreventExitStatus=64 77 78
TimeoutStopSec=30s
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"
    ))
}

/// A path as systemd reads it (systemd.service(5), command lines).
fn quoted(path: &Path) -> Result<String, Fail> {
    let text = path
        .to_str()
        .filter(|text| !text.chars().any(char::is_control))
        .ok_or_else(|| Fail::new(CONFIG, format!("{}: not a path for a unit file", path.display())))?;
    let text = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('%', "%%")
        .replace('$', "$$");
    Ok(
        if text.contains(|c: char| c.is_whitespace() || "\"'\\;".contains(c)) {
            format!("\"{text}\"")
        } else {
            text
        },
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_written_as_systemd_reads_them() {
        let read = |path: &str| quoted(Path::new(path)).ok().unwrap();
        assert_eq!(read("/usr/bin/tasuki-agent"), "/usr/bin/tasuki-agent");
        assert_eq!(read("/a b/100%"), "\"/a b/100%%\"");
        assert!(quoted(Path::new("/a\nExecStart=/bin/sh")).is_err());
    }

    #[test]
    fn the_unit_of_the_machine_starts_this_program() {
        let arguments = Install {
            system: true,
            print: true,
            config: Some("/etc/a.toml".into()),
            dir: None,
        };
        let unit = unit(&arguments, Path::new("/usr/local/bin/tasuki-agent"))
            .ok()
            .unwrap();
        assert!(
            unit.contains("\nExecStart=/usr/local/bin/tasuki-agent run --config /etc/a.toml\n"),
            "{unit}"
        );
    }
}
