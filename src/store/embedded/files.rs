//! The store's files and directories: private by explicit mode whatever the umask, and still what they were opened as.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Opens a file for reading and writing. Where it makes it, nobody else may use it.
pub fn open(path: &Path, make: bool) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if make && error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    // The umask may have taken from it what we need ourselves.
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    Ok(file)
}

/// The same, empty.
pub fn make(path: &Path) -> io::Result<File> {
    let file = open(path, true)?;
    file.set_len(0)?;
    Ok(file)
}

/// Makes a directory, with those above it, where there is none. Answers whether it did.
pub fn make_directory(path: &Path) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))?;
    Ok(true)
}

/// Takes from everybody else what they may do with the store. Answers what was wider, and cannot be narrowed.
pub fn narrow(root: &Path) -> (Vec<PathBuf>, Vec<(PathBuf, io::Error)>) {
    let (mut narrowed, mut failed) = (Vec::new(), Vec::new());
    // Other files may lie beside ours.
    let mut paths: Vec<PathBuf> = vec![root.to_owned()];
    paths.extend(
        ["lock", "format", "state", "span", "probe", "pieces", "tunnels", "batches"].map(|name| root.join(name)),
    );
    while let Some(path) = paths.pop() {
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        if about.is_dir() && path != root {
            paths.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        if about.is_symlink() || about.mode() & 0o077 == 0 {
            continue;
        }
        let mode = about.mode() & 0o700;
        match fs::set_permissions(&path, Permissions::from_mode(mode)) {
            Ok(()) => narrowed.push(path),
            Err(error) => failed.push((path, error)),
        }
    }
    (narrowed, failed)
}

/// A file or directory that was opened, and the path at which it was found.
#[derive(Clone, Debug)]
pub struct Link {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Link {
    pub fn of(path: &Path, file: &File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self { path: path.to_owned(), device: about.dev(), inode: about.ino() })
    }

    /// `Err`: why what is written there does not last.
    pub fn check(&self) -> Result<(), String> {
        let why = match fs::metadata(&self.path) {
            Ok(about) if (about.dev(), about.ino()) == (self.device, self.inode) => return Ok(()),
            Ok(_) => "was replaced by another".to_owned(),
            Err(error) => format!("is gone ({error})"),
        };
        Err(format!(
            "{} {why} while the store was in use: nothing more is accepted, for it would be lost; put it back, or \
             restart egressd",
            self.path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_private_whatever_was_there_and_what_is_wider_is_narrowed() {
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        assert!(make_directory(&root).unwrap() && !make_directory(&root).unwrap());
        let segments = root.join("pieces/00000001");
        make_directory(&segments).unwrap();
        for name in ["log", "bodies"] {
            open(&segments.join(name), true).unwrap();
        }
        make(&root.join("state")).unwrap();
        assert_eq!((mode(&root), mode(&segments), mode(&segments.join("log"))), (0o700, 0o700, 0o600));
        assert_eq!(narrow(&root).0.len(), 0);

        let beside = root.join("not ours");
        fs::write(&beside, "").unwrap();
        for (path, wide, narrowed) in [
            (root.clone(), 0o755, 0o700),
            (root.join("pieces"), 0o777, 0o700),
            (segments.clone(), 0o750, 0o700),
            (segments.join("log"), 0o644, 0o600),
            (segments.join("bodies"), 0o660, 0o600),
            (root.join("state"), 0o604, 0o600),
            (beside, 0o644, 0o644),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(wide)).unwrap();
            let (told, failed) = narrow(&root);
            assert_eq!((told.contains(&path), failed.len()), (wide != narrowed, 0), "{}", path.display());
            assert_eq!(mode(&path), narrowed, "{}", path.display());
        }
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let link = Link::of(&path, &make(&path).unwrap()).unwrap();
        assert_eq!(link.check(), Ok(()));
        fs::rename(&path, directory.path().join("away")).unwrap();
        assert!(link.check().unwrap_err().contains("is gone"));
        make(&path).unwrap();
        assert!(link.check().unwrap_err().contains("was replaced"));
        fs::rename(directory.path().join("away"), &path).unwrap();
        assert_eq!(link.check(), Ok(()), "put back");
    }
}
