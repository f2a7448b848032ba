//! Landlock: which files may be written, and whether any is run (landlock(7)).

use std::path::PathBuf;

use landlock::{
    ABI, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetError, RulesetStatus, Scope, make_bitflags,
};

use super::Programs;

/// What a folder to write in is for: files, folders and sockets; no devices, no links.
fn in_folders() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{WriteFile | Truncate | MakeReg | RemoveFile | MakeDir | RemoveDir | MakeSock | Refer})
}

/// Lets files be written at and below these paths alone, and says with which version of Landlock. What is open stays open.
///
/// Reading is not restricted: a reload may name files anywhere, and modes say what it may read.
pub(super) fn confine(writable: &[PathBuf], programs: Programs) -> Result<i32, String> {
    match restrict(writable, programs).map_err(|error| error.to_string())? {
        (_, LandlockStatus::NotImplemented) => Err("this kernel has none".to_owned()),
        (_, LandlockStatus::NotEnabled) => Err("it is not enabled at boot".to_owned()),
        (RulesetStatus::NotEnforced, _) => Err("the kernel does not enforce it".to_owned()),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(effective_abi as i32),
    }
}

fn restrict(writable: &[PathBuf], programs: Programs) -> Result<(RulesetStatus, LandlockStatus), RulesetError> {
    // Signals go to nobody outside either: the keeper may be of the same user.
    let handled = match programs {
        Programs::None => AccessFs::from_write(ABI::V5) | AccessFs::Execute,
        Programs::Confined => AccessFs::from_write(ABI::V5),
    };
    let ruleset = Ruleset::default().handle_access(handled)?.scope(Scope::Signal)?;
    let mut ruleset = ruleset.create()?;
    for path in writable {
        // What is not there cannot be written; what is no part of a file system, a pipe say, is not restricted.
        let Ok(place) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { in_folders() } else { in_folders() & AccessFs::from_file(ABI::V5) };
        let _ = (&mut ruleset).add_rule(PathBeneath::new(place, access));
    }
    let status = ruleset.restrict_self()?;
    Ok((status.ruleset, status.landlock))
}
