//! The packs in the binary.

/// Active where `[policy] packs` says nothing.
pub(super) const DEFAULT_PACKS: [&str; 2] = ["ngrok", "dns-bypass"];

/// A built-in pack's text, by name.
pub(super) fn pack(name: &str) -> Option<(&'static str, &'static str)> {
    PACKS.into_iter().find(|&(known, _)| known == name)
}

macro_rules! packs {
    ($($name:literal)+) => {
        /// Name and text of each pack in `policies/`.
        pub(super) const PACKS: [(&str, &str); [$($name),+].len()] =
            [$(($name, include_str!(concat!("../../policies/", $name, ".toml")))),+];
    };
}

packs! {
    "bore"
    "btunnel"
    "cloudflared"
    "dev-tunnels"
    "dns-bypass"
    "expose"
    "localhost-run"
    "localtonet"
    "localtunnel"
    "localxpose"
    "loophole"
    "ngrok"
    "ngrok-endpoints"
    "ngrok-strict"
    "pagekite"
    "pinggy"
    "playit"
    "portmap"
    "serveo"
    "tailscale"
    "telebit"
    "tunnelmole"
    "zrok"
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Arc};

    use super::*;
    use crate::{
        policy::pack::{Origin, parse},
        problem::{Problems, SourceFile},
    };

    #[test]
    fn every_pack_of_the_folder_is_built_in() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let packs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
        let mut names: Vec<_> = packs.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        assert_eq!(names, PACKS.map(|(name, _)| name));
    }

    #[test]
    fn every_built_in_pack_is_sound_and_named_like_its_file() {
        for (name, text) in PACKS {
            let file = Arc::new(SourceFile { path: format!("{name}.toml").into(), text: text.into() });
            let mut problems = Problems::default();
            let pack = parse(&file, Origin::BuiltIn, &mut problems, &mut |_| None);
            assert!(problems.is_empty(), "{problems}");
            assert_eq!(pack.unwrap().name.value, name);
        }
    }
}
