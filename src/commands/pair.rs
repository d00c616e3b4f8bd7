//! `diskferry pair`: the key and certificate of this site, and the certificates of others.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mirror::net::tls::{self, CERTIFICATE_FILE, KEY_FILE, PEERS};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use serde::Serialize;

use crate::args::{IdentityArgs, PairForgetArgs, PairNewArgs, PairTrustArgs, PairVerb};
use crate::failure::{Exit, Failure, Result};
use crate::identity;
use crate::report::Report;

/// A site as people are told of it.
#[derive(Serialize)]
struct Site {
    /// What it is called here; none for this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    certificate: PathBuf,
    fingerprint: String,
}

pub(crate) fn run(verb: &PairVerb, report: Report) -> Result<()> {
    match verb {
        PairVerb::New(args) => new(args, report),
        PairVerb::Show(args) => {
            let site = site(None, folder(args).join(CERTIFICATE_FILE))?;
            report.result("identity", &site, people)
        }
        PairVerb::Trust(args) => trust(args, report),
        PairVerb::Forget(args) => forget(args, report),
        PairVerb::List(args) => list(args, report),
    }
}

fn folder(args: &IdentityArgs) -> PathBuf {
    identity::folder(args.identity.as_deref())
}

fn people(site: &Site) -> String {
    let name = site.name.as_deref().unwrap_or("this site");
    format!(
        "{name}: {}\n    {}",
        site.certificate.display(),
        site.fingerprint
    )
}

fn site(name: Option<String>, certificate: PathBuf) -> Result<Site> {
    let fingerprint = tls::fingerprint(&certificate);
    let fingerprint = fingerprint.map_err(|e| {
        Failure::new(Exit::Failed, e.to_string()).hint("`diskferry pair new` makes a certificate")
    })?;
    Ok(Site {
        name,
        certificate,
        fingerprint,
    })
}

fn cannot(path: &Path, doing: &str, error: &io::Error) -> Failure {
    Failure::io(format!("{}: cannot be {doing}", path.display()), error)
}

fn make_folder(folder: &Path) -> Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder);
    made.map_err(|e| cannot(folder, "made", &e))
}

/// A file that is not there yet.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|e| cannot(path, "written", &e))
}

fn new(args: &PairNewArgs, report: Report) -> Result<()> {
    let folder = folder(&args.identity);
    let certificate = folder.join(CERTIFICATE_FILE);
    for path in [&certificate, &folder.join(KEY_FILE)] {
        if path.exists() {
            let what = format!("{}: exists already", path.display());
            return Err(Failure::usage(what).hint("others trust it; name another folder"));
        }
    }
    let host = || {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    };
    let name = args.name.clone().unwrap_or_else(host);
    let failed = |e: rcgen::Error| Failure::new(Exit::Failed, format!("no certificate: {e}"));
    let key = KeyPair::generate().map_err(failed)?;
    // For programs that look at names and authorities, which this one does not.
    let host = |name: &String| {
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
    };
    let names: Vec<String> = Some(name.clone()).filter(host).into_iter().collect();
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, name);
    let made = params.self_signed(&key).map_err(failed)?;
    make_folder(&folder)?;
    make_folder(&folder.join(PEERS))?;
    write_new(&folder.join(KEY_FILE), &key.serialize_pem(), 0o600)?;
    write_new(&certificate, &made.pem(), 0o644)?;
    report.result("identity", &site(None, certificate)?, people)
}

/// Where the certificate of a site lies that is called `name` here.
fn place(folder: &Path, name: &str) -> Result<PathBuf> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let what = format!("`{name}`: a site's name has letters, digits, `-`, `_` and `.` only");
        return Err(Failure::usage(what));
    }
    Ok(folder.join(PEERS).join(format!("{name}.pem")))
}

fn trust(args: &PairTrustArgs, report: Report) -> Result<()> {
    let folder = folder(&args.identity);
    let place = place(&folder, &args.name)?;
    // It is one, before it is put among the others.
    site(None, args.certificate.clone())?;
    let text = fs::read_to_string(&args.certificate);
    let text = text.map_err(|e| cannot(&args.certificate, "read", &e))?;
    make_folder(&folder.join(PEERS))?;
    write_new(&place, &text, 0o644)?;
    let trusted = site(Some(args.name.clone()), place)?;
    report.result("trusted", &trusted, people)
}

fn forget(args: &PairForgetArgs, report: Report) -> Result<()> {
    let place = place(&folder(&args.identity), &args.name)?;
    let forgotten = site(Some(args.name.clone()), place)?;
    let removed = fs::remove_file(&forgotten.certificate);
    removed.map_err(|e| cannot(&forgotten.certificate, "removed", &e))?;
    report.result("forgotten", &forgotten, |site| {
        let name = site.name.as_deref().unwrap_or_default();
        format!("{name} is trusted no more; a connection that it has goes on until it ends")
    })
}

fn list(args: &IdentityArgs, report: Report) -> Result<()> {
    let peers = folder(args).join(PEERS);
    let mut names = Vec::new();
    match fs::read_dir(&peers) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(cannot(&peers, "listed", &e)),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|e| cannot(&peers, "listed", &e))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                names.extend(name.strip_suffix(".pem").map(str::to_owned));
            }
        }
    }
    names.sort();
    for name in names {
        // As it lies there: also what was put there otherwise is trusted.
        let certificate = peers.join(format!("{name}.pem"));
        report.result("trusted", &site(Some(name), certificate)?, people)?;
    }
    Ok(())
}
