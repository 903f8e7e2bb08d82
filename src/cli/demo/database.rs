//! A PostgreSQL of the demo's own, from the programs that are installed: on loopback, with a password, in a temporary
//! directory, and gone with this value.

use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nix::unistd::{User, getuid};

use super::{Scratch, free_port};

/// Where Debian has each version's.
const INSTALLED: &str = "/usr/lib/postgresql";

pub struct Database {
    programs: PathBuf,
    /// It does not run as root.
    user: Option<User>,
    directory: Scratch,
    address: SocketAddr,
    /// For the nodes.
    pub password_file: PathBuf,
}

impl Database {
    pub fn start(beside: &Path) -> anyhow::Result<Self> {
        let user = match getuid().is_root() {
            true => Some(
                User::from_name("postgres")?
                    .context("there is no user postgres, and PostgreSQL does not run as root")?,
            ),
            false => None,
        };
        let database = Self {
            programs: programs()?,
            user,
            directory: Scratch::new()?,
            address: free_port(0)?,
            password_file: beside.join("password"),
        };
        let (at, own) = (&database.directory.0, database.directory.0.join("password"));
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).context("there is no randomness")?;
        let password: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        for file in [&own, &database.password_file] {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
            file.write_all(password.as_bytes())?;
        }
        if let Some(user) = &database.user {
            for path in [at, &own] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
        }
        let data = at.join("data").display().to_string();
        let pwfile = own.display().to_string();
        database
            .run("initdb", &["-D", &data, "-U", "egressd", "-A", "scram-sha-256", "--pwfile", &pwfile, "--no-sync"])?;
        let options = format!(
            "-c listen_addresses={} -c port={} -c unix_socket_directories={}",
            database.address.ip(),
            database.address.port(),
            at.display()
        );
        let log = at.join("log").display().to_string();
        database.run("pg_ctl", &["start", "-s", "-w", "-t", "60", "-D", &data, "-o", &options, "-l", &log])?;
        Ok(database)
    }

    pub fn url(&self) -> String {
        format!("postgres://egressd@{}/postgres", self.address)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments).current_dir(&self.directory.0).stdin(Stdio::null()).stdout(Stdio::null());
        // What it says goes to a file: a server that it starts has it open for as long as it lives.
        let said = self.directory.0.join(format!("{program}.said"));
        command.stderr(std::fs::File::create(&said)?);
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let status = command.status().with_context(|| format!("{program} cannot be run"))?;
        if !status.success() {
            bail!("{program} ended with {status}: {}", std::fs::read_to_string(&said)?.trim());
        }
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let data = self.directory.0.join("data").display().to_string();
        let _ = self.run("pg_ctl", &["stop", "-s", "-w", "-m", "immediate", "-D", &data]);
    }
}

fn programs() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::fs::read_dir(INSTALLED).into_iter().flatten().flatten().map(|version| version.path());
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = installed.max_by_key(version).map(|version| version.join("bin"));
    std::env::split_paths(&path)
        .chain(newest)
        .find(|directory| directory.join("initdb").exists() && directory.join("pg_ctl").exists())
        .context(
            "no PostgreSQL is installed (initdb, pg_ctl): apt-get install postgresql, or name one with --postgres URL",
        )
}
