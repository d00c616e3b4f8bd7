//! The line to a store: what is asked of it, each answer bounded, and waited for until it comes or somebody interrupts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use object_store::aws::AmazonS3;
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResult, ObjectStore as _, UpdateVersion};
use tokio::runtime::Runtime;

use super::trouble::Trouble;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::plan::StoreName;

/// How often it is looked whether somebody interrupts.
const LOOK: Duration = Duration::from_millis(100);
/// How long an upload that came to nothing may take to be ended.
const ENDING: Duration = Duration::from_secs(30);
/// Most objects that are listed.
const MOST_NAMES: usize = 100_000;

/// A store, and what waits for its answers.
pub(super) struct Line {
    pub(super) s3: Arc<AmazonS3>,
    pub(super) name: StoreName,
    pub(super) runtime: Runtime,
}

impl Line {
    /// The object of a file.
    pub(super) fn path(&self, file: &str) -> Result<Path> {
        let prefix = &self.name.prefix;
        let text = if prefix.is_empty() {
            file.to_owned()
        } else {
            format!("{prefix}/{file}")
        };
        Path::parse(text).map_err(|_| Failure::usage("that is no name of an object"))
    }

    /// Waits for an answer, unless somebody interrupts.
    pub(super) fn wait<T>(
        &self,
        answer: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Trouble> {
        self.runtime.block_on(async {
            let mut answer = std::pin::pin!(answer);
            loop {
                match tokio::time::timeout(LOOK, &mut answer).await {
                    Ok(answer) => return answer.map_err(Trouble::Store),
                    Err(_) if interrupt::requested() => return Err(Trouble::Interrupted),
                    Err(_) => {}
                }
            }
        })
    }

    /// Waits before something is tried again.
    pub(super) fn pause(&self, pause: Duration) -> Result<()> {
        let waited = self.wait(async {
            tokio::time::sleep(pause).await;
            Ok(())
        });
        waited.map_err(|trouble| trouble.told(""))
    }

    /// The names of the objects of the place, without those of places below it.
    pub(super) async fn names(&self) -> object_store::Result<Vec<String>> {
        let prefix = Path::from(self.name.prefix.as_str());
        let depth = prefix.parts_count();
        let mut listed = self.s3.list(Some(&prefix));
        let mut names = Vec::new();
        let mut seen = 0;
        while let Some(found) = listed.next().await {
            let found = found?.location;
            seen += 1;
            if seen > MOST_NAMES {
                return Err(broken(
                    "it lists too many objects; --name says which package",
                ));
            }
            if found.parts_count() == depth + 1 {
                names.extend(found.filename().map(str::to_owned));
            }
        }
        Ok(names)
    }

    /// The whole of an object of at most `most` bytes, and its version.
    pub(super) async fn get_small(
        &self,
        path: Path,
        most: u64,
    ) -> object_store::Result<(Vec<u8>, UpdateVersion)> {
        let found = self.s3.get_opts(&path, GetOptions::default()).await?;
        let version = UpdateVersion {
            e_tag: found.meta.e_tag.clone(),
            version: found.meta.version.clone(),
        };
        let length = found.meta.size;
        if length > most {
            return Err(broken("it is longer than such a file can be"));
        }
        Ok((exactly(found, length).await?, version))
    }

    /// Ends an upload that nobody goes on with.
    pub(super) async fn end_upload(&self, path: Path, upload: String) -> object_store::Result<()> {
        self.s3.abort_multipart(&path, &upload).await
    }

    /// The same for one that is dropped: nobody is told if it fails, and an interruption does not stop it.
    pub(super) fn drop_upload(&self, path: Path, upload: String) {
        let ended = async { tokio::time::timeout(ENDING, self.end_upload(path, upload)).await };
        let _ = self.runtime.block_on(ended);
    }
}

/// The bytes of an answer, which must be so many: a store may send more than it was asked for.
pub(super) async fn exactly(found: GetResult, length: u64) -> object_store::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0).min(16 << 20));
    let mut stream = found.into_stream();
    while let Some(more) = stream.next().await {
        bytes.extend_from_slice(&more?);
        if bytes.len() as u64 > length {
            return Err(broken("it sends more bytes than it was asked for"));
        }
    }
    if bytes.len() as u64 != length {
        return Err(broken("it sends fewer bytes than it was asked for"));
    }
    Ok(bytes)
}

/// The store does what no store does.
pub(super) fn broken(what: &'static str) -> Error {
    Error::Generic {
        store: "S3",
        source: what.into(),
    }
}
