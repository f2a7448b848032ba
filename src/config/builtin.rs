//! What is in the binary: packs, and networks that are never learned as an ingress.

use std::time::Duration;

use ipnet::IpNet;

use crate::{firewall, ingress};

/// Active where `[policy] packs` says nothing.
pub(super) const DEFAULT_PACKS: [&str; 2] = ["ngrok", "dns-bypass"];

/// A built-in pack's text, by name.
pub(super) fn built_in(name: &str) -> Option<(&'static str, &'static str)> {
    PACKS.into_iter().find(|&(known, _)| known == name)
}

/// One network a line; `#` begins a comment.
const SHARED: &str = include_str!("../../policies/never-learned.txt");

/// How addresses are learned beside these packet filter rules.
pub(super) fn ingress_options(remember: Option<Duration>, firewall: &firewall::Options) -> ingress::Options {
    ingress::Options {
        remember: remember.unwrap_or(ingress::REMEMBER),
        organization: firewall.own.clone(),
        fixed: firewall.fixed.clone(),
        exempt: firewall.exempt.clone(),
        shared: shared().collect(),
    }
}

fn shared() -> impl Iterator<Item = IpNet> {
    let networks = SHARED.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    networks.filter_map(|text| text.parse().ok())
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
    use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

    use super::*;
    use crate::{
        policy::{
            list::List,
            pack::{Files, Origin, parse},
            plan::AddressList,
        },
        problem::{Located, Problems, SourceFile},
    };

    /// There are none.
    struct NoFiles;

    impl Files for NoFiles {
        fn names(&mut self, _: &Located<String>) -> Option<List> {
            None
        }

        fn addresses(&mut self, _: &Located<String>) -> Option<AddressList> {
            None
        }
    }

    #[test]
    fn every_line_of_what_is_never_learned_is_a_comment_or_a_network_that_is_there_once() {
        let lines = SHARED.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        let networks: BTreeSet<_> = shared().collect();
        assert_eq!((lines, shared().count()), (networks.len(), networks.len()));
        assert!(networks.iter().all(|network| network.trunc() == *network), "{networks:?}");
        for address in ["8.8.8.8", "1.1.1.1", "9.9.9.9", "198.41.0.4", "2001:4860:4860::8888", "104.16.1.1"] {
            let address: std::net::IpAddr = address.parse().unwrap();
            assert!(networks.iter().any(|network| network.contains(&address)), "{address}");
        }
    }

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
            let pack = parse(&file, Origin::BuiltIn, &mut problems, &mut NoFiles);
            assert!(problems.is_empty(), "{problems}");
            assert_eq!(pack.unwrap().name.value, name);
        }
    }
}
