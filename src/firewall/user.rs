//! Whose sockets are the forwarder's own: the rules know them by the user's number.

use nix::{errno::Errno, unistd::User};
use thiserror::Error;

use super::options::{Mode, Options, OwnSockets};

/// Why a user cannot be the forwarder's.
#[derive(Debug, Error)]
pub enum NoUser {
    /// There is none of this name.
    #[error("there is no user {0:?}; make it: useradd --system --no-create-home --shell /usr/sbin/nologin {0}")]
    Unknown(String),
    /// It is root by another name.
    #[error(
        "user {0:?} is root, and all of root's programs would be let out; name another under [firewall] user, or set \
             own-sockets = \"mark\""
    )]
    Root(String),
    /// The system does not tell.
    #[error("cannot look up user {name:?}")]
    Lookup {
        /// Who.
        name: String,
        /// Why.
        source: Errno,
    },
}

/// The forwarder's user. It may be root on a gateway, where no program of the machine's own is held, and where a mark
/// tells its sockets from theirs.
///
/// # Errors
/// [`NoUser`].
pub fn user_of(options: &Options) -> Result<User, NoUser> {
    let name = options.user.as_str();
    let found = User::from_name(name).map_err(|source| NoUser::Lookup { name: name.to_owned(), source })?;
    let user = found.ok_or_else(|| NoUser::Unknown(name.to_owned()))?;
    if user.uid.is_root() && options.mode == Mode::Host && options.own_sockets == OwnSockets::User {
        return Err(NoUser::Root(name.to_owned()));
    }
    Ok(user)
}
