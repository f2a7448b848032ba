//! Where the state folder is: the record, the control socket, the latest time seen.

use std::{
    env::split_paths,
    ffi::OsString,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Nobody says where state may be kept.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("there is no place for the state folder; name one with --state-dir")]
pub struct NoStateFolder;

/// The state folder: `flag`, else `$STATE_DIRECTORY` (systemd.exec(5)), else `tunnelwarden` in `$XDG_STATE_HOME`, else
/// in `$HOME/.local/state` (XDG Base Directory Specification 0.8). It need not exist. `variable` looks up the environment.
///
/// # Errors
/// [`NoStateFolder`] when none of them is set to an absolute path.
pub fn state_dir(flag: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, NoStateFolder> {
    if let Some(flag) = flag {
        return Ok(flag.to_owned());
    }
    // systemd gives a list where a unit has several.
    let first = variable("STATE_DIRECTORY").and_then(|list| split_paths(&list).next());
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let folder = first
        .and_then(absolute)
        .or_else(|| {
            variable("XDG_STATE_HOME").map(PathBuf::from).and_then(absolute).map(|home| home.join("tunnelwarden"))
        })
        .or_else(|| {
            variable("HOME").map(PathBuf::from).and_then(absolute).map(|home| home.join(".local/state/tunnelwarden"))
        });
    folder.ok_or(NoStateFolder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_then_systemd_then_xdg_then_home() {
        type Variables = &'static [(&'static str, &'static str)];
        #[rustfmt::skip]
        let cases: [(Option<&str>, Variables, Result<&str, NoStateFolder>); 6] = [
            (Some("here"), &[("STATE_DIRECTORY", "/s"), ("HOME", "/h")],                     Ok("here")),
            (None,         &[("STATE_DIRECTORY", "/s:/t"), ("XDG_STATE_HOME", "/x")],        Ok("/s")),
            (None,         &[("STATE_DIRECTORY", ""), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")], Ok("/x/tunnelwarden")),
            (None,         &[("XDG_STATE_HOME", "relative"), ("HOME", "/h")],                Ok("/h/.local/state/tunnelwarden")),
            (None,         &[("HOME", "")],                                                  Err(NoStateFolder)),
            (None,         &[],                                                              Err(NoStateFolder)),
        ];
        for (flag, environment, expected) in cases {
            let variable =
                |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            let folder = state_dir(flag.map(Path::new), variable);
            assert_eq!(folder, expected.map(PathBuf::from), "{flag:?} {environment:?}");
        }
    }
}
