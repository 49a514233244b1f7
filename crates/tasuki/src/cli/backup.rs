//! `tasuki backup`, `tasuki restore`, `tasuki store`: copies of the whole gateway, and whether they are whole.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use tasuki_core::clock::Clock;
use tasuki_core::health;
use tempfile::NamedTempFile;

use super::{Context, JsonFlag, output};
use crate::admin::BACKUP_SIZE;
use crate::backup::verify::{self, Verified};
use crate::backup::write::{self, Origin};
use crate::backup::{require_room, restore};
use crate::config::Loaded;
use crate::data;
use crate::exit::{self, Fail, Outcome, chain};
use crate::runtime;

#[derive(clap::Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  tasuki backup /var/backups/tasuki.tar         of a gateway that runs, or of one that is stopped
  tasuki backup /var/backups                    the file gets a name with the time
  tasuki backup verify /var/backups/tasuki.tar

The file holds the queue with all bodies, accounts, subscribers, agents, every key and the configuration: keep it as you keep
keys. Mail goes on meanwhile. With PostgreSQL the database is copied by pg_dump, and the command is printed."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// A file that does not exist yet, or a directory
    #[arg(value_name = "FILE|DIR")]
    target: Option<PathBuf>,
    #[command(flatten)]
    json: JsonFlag,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Look into a backup: checksums, database, the body of every mail, secrets
    Verify {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        json: JsonFlag,
    },
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    match (args.command, args.target) {
        (Some(Command::Verify { file, json }), _) => {
            let (_, verified) = verify::archive(&file)?;
            shown(&verified, &file, json, Vec::new())
        }
        (None, Some(target)) => take(&target, args.json, context),
        (None, None) => Err(Fail::new(exit::USAGE, "say where: tasuki backup FILE")),
    }
}

fn shown(verified: &Verified, file: &Path, flag: JsonFlag, next: Vec<String>) -> Outcome {
    if flag.json {
        let mut value = verified.json();
        value["file"] = json!(file);
        value["next"] = json!(next);
        return output::json(&value);
    }
    output::line(format!("{} is whole", file.display()));
    verified.lines().iter().chain(&next).for_each(output::line);
    Ok(())
}

fn take(target: &Path, flag: JsonFlag, context: &Context) -> Outcome {
    let loaded = context.load()?;
    let place = loaded.data_dir();
    let origin = Origin::of(&loaded);
    let target = if target.is_dir() {
        let now = Clock::system().wall().to_string().replace(['-', ':'], "");
        target.join(format!("tasuki-{now}.tar"))
    } else {
        target.to_owned()
    };
    let exists = || {
        Fail::new(
            exit::CANT_CREATE,
            format!(
                "{} exists already, and a backup overwrites nothing",
                target.display()
            ),
        )
    };
    if target.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let dir = match target.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let cannot = |e: &std::io::Error| {
        Fail::new(
            exit::CANT_CREATE,
            format!("{} cannot be written: {e}", target.display()),
        )
    };
    // Mode 0600, and gone again if anything fails.
    let mut file = NamedTempFile::new_in(dir).map_err(|e| cannot(&e))?;
    let gateway = context.gateway()?;
    if gateway.is_running() {
        let room = |head: &http::HeaderMap| {
            let size = head.get(BACKUP_SIZE).and_then(|v| v.to_str().ok());
            has_room(dir, size.and_then(|size| size.parse().ok()).unwrap_or(0), &loaded)
        };
        gateway.download("/v1/backup", room, file.as_file_mut())?;
    } else {
        data::require_furnished(&place)?;
        let segments = sizes(&place.path().join("segments"));
        has_room(dir, segments + database_bytes(&loaded), &loaded)?;
        at_rest(&loaded, &origin, file.as_file_mut())?;
    }
    file.as_file().sync_all().map_err(|e| cannot(&e))?;
    // A backup that nobody looked into is none.
    let (_, verified) = verify::archive(file.path())?;
    file.persist_noclobber(&target)
        .map_err(|e| match e.error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(),
            _ => cannot(&e.error),
        })?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| cannot(&e))?;
    shown(&verified, &target, flag, dump_command(&loaded))
}

/// Refuses a backup for which there is no room beside the file: for the archive itself, and for the copy of its database
/// that is looked into. Where the gateway has its own data, its reserve stays, or mail would be refused meanwhile.
fn has_room(dir: &Path, archive_bytes: u64, loaded: &Loaded) -> Outcome {
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    let is_beside = device(dir).is_some_and(|found| device(loaded.data_dir().path()) == Some(found));
    let reserve = match health::disk_space(dir) {
        Ok(space) if is_beside => health::reserve_bytes(space.size_bytes),
        _ => 0,
    };
    require_room(dir, archive_bytes + database_bytes(loaded) + reserve)
}

/// The embedded database with its log; 0 for another one.
fn database_bytes(loaded: &Loaded) -> u64 {
    let database = tasuki_store::database_file(loaded.config.store_url(), loaded.data_dir().path());
    let Ok(Some(database)) = database else { return 0 };
    let log = PathBuf::from(format!("{}-wal", database.display()));
    [database, log]
        .iter()
        .filter_map(|file| std::fs::metadata(file).ok())
        .map(|found| found.len())
        .sum()
}

/// Bytes in the files of a directory.
fn sizes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|found| found.len())
        .sum()
}

/// Of a gateway that is stopped, and stays so meanwhile.
fn at_rest(loaded: &Loaded, origin: &Origin, file: &mut File) -> Outcome {
    let place = loaded.data_dir();
    let _lock = data::lock(&place)?;
    let database = tasuki_store::database_file(loaded.config.store_url(), place.path())
        .map_err(|e| Fail::new(exit::USAGE, chain(&e)))?;
    let take = async |copy: &Path| match database {
        None => Ok(None),
        Some(database) => tasuki_store::snapshot_at_rest(&database, place.path(), copy)
            .await
            .map(Some)
            .map_err(|e| Fail::new(exit::IO, chain(&e))),
    };
    runtime::block_on(write::archive(origin, take, file))?
}

/// What PostgreSQL has to be told; its address has no password.
fn dump_command(loaded: &Loaded) -> Vec<String> {
    let Ok(mut url) = url::Url::parse(loaded.config.store_url()) else {
        return Vec::new();
    };
    if url.scheme() == "sqlite" {
        return Vec::new();
    }
    let _ = url.set_password(None);
    vec![
        "the database is PostgreSQL's to copy, at one moment too; take it after this file:".to_owned(),
        format!("  pg_dump --format=custom --file=tasuki.dump '{url}'"),
    ]
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:
  tasuki restore /var/backups/tasuki.tar --data /var/lib/tasuki/data

Looks into the backup first, as `tasuki backup verify` does, and writes only into a directory that is empty or does not exist.
Stop the old gateway for good before: both have the same keys and the same queue.
What was delivered after the backup is in its queue too, and would be sent again. So the restored gateway takes mail and activities
and sends none until `tasuki mail resume '*'` and `tasuki fedi resume`; only answers to instances that follow or leave go out.")]
pub(super) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// Send what waits at the first start, even what was delivered after the backup
    #[arg(long)]
    release: bool,
    #[command(flatten)]
    json: JsonFlag,
}

pub(super) fn run_restore(args: RestoreArgs, context: &Context) -> Outcome {
    let Some(data) = &context.place.data else {
        return Err(Fail::new(exit::USAGE, "say into which directory: --data DIR"));
    };
    let data = std::path::absolute(data).map_err(|e| Fail::io(data.display(), &e))?;
    let place = crate::place::DataDir::new(data.clone());
    let verified = restore::restore(&args.file, &place, args.release)?;
    let is_dumped = verified
        .manifest
        .as_ref()
        .is_some_and(|manifest| manifest.store != "sqlite");
    let shown_dir = data.display();
    let mut next = Vec::new();
    if is_dumped {
        next.push(
            "the database is not in it: pg_restore --clean --if-exists --dbname=URL tasuki.dump".to_owned(),
        );
    }
    let config = data.join("tasuki.toml");
    next.push(if config.exists() {
        format!(
            "the configuration as it was: {}; start: tasuki serve --config {} --data {shown_dir}",
            config.display(),
            config.display()
        )
    } else {
        format!("there was no configuration; start: tasuki serve --data {shown_dir}")
    });
    next.push(if args.release {
        "what waits is sent at the start, even what was delivered after the backup".to_owned()
    } else {
        "nothing but answers to follows is sent until: tasuki mail resume '*', and tasuki fedi resume"
            .to_owned()
    });
    next.push("the gateway that this was taken of must not run any more".to_owned());
    if args.json.json {
        let mut value = verified.json();
        value["data"] = json!(data);
        value["held"] = json!(!args.release);
        value["next"] = json!(next);
        return output::json(&value);
    }
    output::line(format!("{} is restored to {shown_dir}", args.file.display()));
    verified.lines().iter().chain(&next).for_each(output::line);
    Ok(())
}

#[derive(clap::Subcommand, Debug)]
pub(super) enum StoreCommand {
    /// Look at every page of the database, at the body of every mail, and at the secrets; a gateway may run meanwhile
    Verify(JsonFlag),
}

pub(super) fn run_store(command: StoreCommand, context: &Context) -> Outcome {
    let StoreCommand::Verify(flag) = command;
    let loaded = context.load()?;
    let verified = verify::live(&loaded)?;
    shown(&verified, loaded.data_dir().path(), flag, Vec::new())
}
