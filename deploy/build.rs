//! Which commit a release is of: `EGRESSD_COMMIT` where a packager says it, else git's word. Debug builds do not ask, so
//! that a commit alone compiles nothing anew.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=EGRESSD_COMMIT");
    println!("cargo:rerun-if-changed=deploy/build.rs");
    let said = std::env::var("EGRESSD_COMMIT").ok().filter(|commit| !commit.is_empty());
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = said.or_else(|| if release { head() } else { None }).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=EGRESSD_COMMIT={}", commit.trim());
}

fn head() -> Option<String> {
    // The log of HEAD grows with every commit and checkout.
    for path in ["HEAD", "logs/HEAD"] {
        println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", path])?);
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
