//! What becomes of an upload that is ended while parts of it are on their way. In S3 it is not found from then on, and
//! nothing of it stays; of the files that `s3s-fs` keeps, a part that arrives after the end would stay for ever, and what
//! is asked of an upload that is gone would be forbidden.

use std::fs;
use std::path::{Path, PathBuf};

use hyper::{Method, StatusCode, Uri};

/// The uploads of a server.
pub(super) struct Uploads {
    /// The folder with the buckets, where the parts are kept too.
    root: PathBuf,
}

/// A request that goes on with an upload, or ends it.
pub(super) struct Step {
    upload: String,
    /// It brings a part.
    part: bool,
}

impl Step {
    /// What a request has to do with an upload.
    pub(super) fn of(method: &Method, uri: &Uri) -> Option<Self> {
        let mut words = uri.query()?.split('&');
        let upload = words.find_map(|word| word.strip_prefix("uploadId="))?;
        Some(Self {
            upload: upload.to_owned(),
            part: method == Method::PUT,
        })
    }
}

impl Uploads {
    pub(super) fn new(root: &Path) -> Self {
        let root = root.to_owned();
        Self { root }
    }

    /// After the request: whether there is no such upload, and then nothing stays of it.
    ///
    /// Who ends an upload looks for its parts after that, and who brings one looks after that whether the upload is
    /// still there: one of them sees the other.
    pub(super) fn is_gone(&self, step: &Step, status: StatusCode) -> bool {
        let begun = self.root.join(format!(".upload-{}.json", step.upload));
        if begun.exists() {
            return false;
        }
        self.sweep(&step.upload);
        // That it is gone is no news to the one who ended it, as a whole or not.
        step.part || !status.is_success()
    }

    fn sweep(&self, upload: &str) {
        let prefixes = [".upload_id-", ".upload_part_info-"].map(|kind| format!("{kind}{upload}."));
        let files = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for file in files {
            let name = file.file_name().to_string_lossy().into_owned();
            if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                // Another one may sweep as well.
                let _ = fs::remove_file(file.path());
            }
        }
    }
}
