//! The small state beside the segments: suspensions, first publications, the list's token, and what tells this store
//! and its key from others. One file, written anew and renamed at each change, which are few.

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::files;
use super::frame::{self, Frame, FrameKind};
use super::segment::{FORMAT, sync_directory};
use crate::send::{SendId, TenantId};
use crate::store::wire::{decode, encode, nanoseconds, timestamp};
use crate::store::{Published, StoreError, Suspension, SuspensionScope, Why};

/// Lifted suspensions that are remembered; the oldest go first.
const LIFTED_KEPT: usize = 10_000;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub key_check: [u8; 16],
    /// Oldest first.
    pub suspensions: Vec<Suspension>,
    pub published: Published,
    pub digest: Option<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct StateForm {
    key_check: [u8; 16],
    suspensions: Vec<SuspensionForm>,
    first: Vec<(IpAddr, i64)>,
    first_start: i64,
    sync_token: u64,
    digest: Option<[u8; 32]>,
    /// Earlier versions end before it.
    #[serde(deserialize_with = "some_or_none")]
    left: Vec<(IpAddr, i64)>,
}

fn some_or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<(IpAddr, i64)>, D::Error> {
    Ok(Vec::deserialize(from).unwrap_or_default())
}

#[derive(Serialize, Deserialize)]
struct SuspensionForm {
    id: [u8; 16],
    tenant: Option<String>,
    workflow: Option<String>,
    host: Option<String>,
    reason: String,
    by: String,
    at: i64,
    lifted: Option<(i64, String)>,
}

impl State {
    fn form(&self) -> StateForm {
        let suspension = |suspension: &Suspension| {
            let (tenant, workflow, host) = match &suspension.scope {
                SuspensionScope::Tenant { tenant, workflow } => {
                    (Some(tenant.as_str().to_owned()), workflow.clone(), None)
                }
                SuspensionScope::Host { host } => (None, None, Some(host.clone())),
            };
            SuspensionForm {
                id: *suspension.id.0.as_bytes(),
                tenant,
                workflow,
                host,
                reason: suspension.reason.clone(),
                by: suspension.by.clone(),
                at: nanoseconds(suspension.at),
                lifted: suspension.lifted.as_ref().map(|(at, by)| (nanoseconds(*at), by.clone())),
            }
        };
        StateForm {
            key_check: self.key_check,
            suspensions: self.suspensions.iter().map(suspension).collect(),
            first: self.published.first.iter().map(|(&address, &at)| (address, nanoseconds(at))).collect(),
            first_start: nanoseconds(self.published.first_start),
            sync_token: self.published.sync_token,
            digest: self.digest,
            left: self.published.left.iter().map(|(&address, &at)| (address, nanoseconds(at))).collect(),
        }
    }

    fn of(form: StateForm) -> Self {
        let suspension = |form: SuspensionForm| Suspension {
            id: SendId(uuid::Uuid::from_bytes(form.id)),
            scope: match (form.tenant, form.host) {
                (_, Some(host)) => SuspensionScope::Host { host },
                (tenant, None) => SuspensionScope::Tenant {
                    tenant: TenantId::new(tenant.unwrap_or_default()),
                    workflow: form.workflow,
                },
            },
            reason: form.reason,
            by: form.by,
            at: timestamp(form.at),
            lifted: form.lifted.map(|(at, by)| (timestamp(at), by)),
        };
        Self {
            key_check: form.key_check,
            suspensions: form.suspensions.into_iter().map(suspension).collect(),
            published: Published {
                first: form.first.into_iter().map(|(address, at)| (address, timestamp(at))).collect(),
                left: form.left.into_iter().map(|(address, at)| (address, timestamp(at))).collect(),
                sync_token: form.sync_token,
                first_start: timestamp(form.first_start),
            },
            digest: form.digest,
        }
    }

    /// Drops lifted suspensions beyond those that are remembered.
    pub fn trim(&mut self) {
        let lifted = self.suspensions.iter().filter(|suspension| suspension.lifted.is_some()).count();
        let mut surplus = lifted.saturating_sub(LIFTED_KEPT);
        self.suspensions.retain(|suspension| {
            let goes = surplus > 0 && suspension.lifted.is_some();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Durable when it returns; on an error the file is what it was.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, FrameKind::State, &[&encode(&self.form(), Vec::new())], None);
        write_whole(path, &bytes)
    }

    /// `None`: there is none yet.
    pub fn load(path: &Path) -> Result<Option<Self>, StoreError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::CannotRead(Why::by(format!("{}: {error}", path.display()), error))),
        };
        let form = match frame::parse(&bytes) {
            Some(Frame { kind: FrameKind::State, payload, .. }) => decode(payload).ok(),
            _ => None,
        };
        form.map(|form| Some(Self::of(form))).ok_or_else(|| {
            StoreError::Damaged(format!(
                "{} fails its checksum: suspensions and the dates of first publication stood in it; restore it from a \
                 copy",
                path.display()
            ).into())
        })
    }
}

/// Writes a file so that after a crash it is the old one or the new one, whole.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let making: PathBuf = path.with_extension("new");
    let mut file = files::make(&making)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&making, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Refuses a store of a later format; a new one gets its mark.
pub fn check_format(root: &Path) -> Result<(), StoreError> {
    let path = root.join("format");
    let mark = || {
        write_whole(&path, format!("egressd store, format {FORMAT}\n").as_bytes())
            .map_err(|error| StoreError::CannotWrite(Why::by(format!("making {}: {error}", path.display()), error)))
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return mark();
        }
        Err(error) => return Err(StoreError::CannotRead(Why::by(format!("{}: {error}", path.display()), error))),
    };
    match text.trim().rsplit(' ').next().and_then(|number| number.parse().ok()) {
        Some(found) if found > FORMAT => {
            Err(StoreError::TooNew { path: root.display().to_string(), found, known: FORMAT })
        }
        // What is written from here on is not for the versions before. A full disk is no reason not to open.
        Some(found) if found < FORMAT => mark().or(Ok(())),
        Some(_) => Ok(()),
        None => Err(StoreError::Damaged(
            format!(
                "{} does not say the store's format but {text:?}: restore it; this egressd writes format {FORMAT}",
                path.display()
            )
            .into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_an_address_left_is_remembered_and_a_file_from_before_that_was_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state");
        let at = |second| jiff::Timestamp::from_second(second).expect("a time");
        let address = |last| IpAddr::from([198, 51, 100, last]);
        let mut state = State { digest: Some([7; 32]), ..State::default() };
        state.published.add(vec![address(1), address(2)], at(1));
        // Its last byte says that none has left.
        let earlier = encode(&state.form(), Vec::new());
        let mut bytes = Vec::new();
        frame::append(&mut bytes, FrameKind::State, &[&earlier[..earlier.len() - 1]], None);
        write_whole(&path, &bytes).expect("written");
        assert_eq!(State::load(&path), Ok(Some(state.clone())));
        state.published.add(vec![address(1)], at(2));
        state.save(&path).expect("saved");
        assert_eq!(State::load(&path), Ok(Some(state)));
    }
}
