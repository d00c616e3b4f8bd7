//! Which exports of other servers `serve` is to serve.

use std::path::{Path, PathBuf};

use super::Served;
use crate::args::ElsewhereArgs;
use crate::failure::{Failure, Result};
use crate::site::elsewhere::{Behind, SUFFIX, name_of};
use crate::site::foreign;

/// `ADDRESS` or `NAME=ADDRESS`, if what was typed is one.
pub(super) fn typed(disk: &Path) -> Option<(Option<&str>, &str)> {
    let text = disk.to_str()?;
    let is_address = |text: &str| {
        let scheme = text.split("://").next().unwrap_or_default();
        foreign::is_written(text) && !scheme.contains('=')
    };
    if is_address(text) {
        return Some((None, text));
    }
    let (name, at) = text.split_once('=')?;
    is_address(at).then_some((Some(name), at))
}

/// The disk that is an export of another server, with the file that stands for it.
pub(super) fn served(
    (name, at): (Option<&str>, &str),
    state: Option<&PathBuf>,
    plain: bool,
) -> Result<Served> {
    let Some(file) = state else {
        let what = format!("{at}: a file has to stand for it here");
        let hint = "--state NAME.nbd: it is made if there is none, and says from then on whose the disk is";
        return Err(Failure::usage(what).hint(hint));
    };
    let Some(moves_as) = name_of(file) else {
        let what = format!("{}: does not end with {SUFFIX}", file.display());
        let hint = "--state disk.vhdx.nbd for a disk that moves as disk.vhdx";
        return Err(Failure::usage(what).hint(hint));
    };
    let address = foreign::address(at, plain)?;
    let stem = Path::new(moves_as)
        .file_stem()
        .and_then(|stem| stem.to_str());
    let name = name.or(stem).unwrap_or(moves_as).to_owned();
    if name.is_empty() || name.len() > 255 {
        let what = format!("{at}: `{name}` is no name for an export");
        return Err(Failure::usage(what).hint("give it one: NAME=ADDRESS"));
    }
    Ok(Served {
        name,
        path: file.clone(),
        format: None,
        behind: Some(Behind {
            address,
            file: file.clone(),
        }),
    })
}

/// All that was typed has a meaning: a file for each export, and an export for each file.
pub(super) fn refuse_spare(args: &ElsewhereArgs, exports: usize) -> Result<()> {
    match args.state.get(exports) {
        None => Ok(()),
        Some(spare) => {
            let what = format!(
                "--state {}: there is no NBD address for it",
                spare.display()
            );
            Err(Failure::usage(what).hint("each NBD address takes one --state, in their order"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_from_a_file_and_may_have_a_name() {
        let of = |text: &'static str| typed(Path::new(text));
        let unix = "nbd+unix:///a?socket=/run/s";
        assert_eq!(of(unix), Some((None, unix)));
        assert_eq!(of("root=nbd://h/a"), Some((Some("root"), "nbd://h/a")));
        assert_eq!(of("nbd=nbd://h/a"), Some((Some("nbd"), "nbd://h/a")));
        for file in ["disk.vhdx", "root=disk.vhdx", "nbd", "nbd:/x"] {
            assert_eq!(of(file), None, "{file}");
        }
    }

    #[test]
    fn an_export_needs_a_file_of_the_right_name() {
        let at = (None, "nbd://127.0.0.1/x");
        assert!(served(at, None, false).is_err());
        let of = |file: &str| served(at, Some(&PathBuf::from(file)), false);
        assert!(of("disk.vhdx").is_err() && of(".nbd").is_err());
        assert_eq!(of("in/disk.vhdx.nbd").unwrap().name, "disk");
        let far = (Some("x"), "nbd://10.0.0.2/x");
        let file = PathBuf::from("a.img.nbd");
        assert!(served(far, Some(&file), false).is_err());
        assert_eq!(served(far, Some(&file), true).unwrap().name, "x");
    }
}
