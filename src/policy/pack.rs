//! A policy pack's text: which keys there are, and what each must look like.
//!
//! Patterns and names stay text; whether they make sense, alone and beside each other, is for the compiler.
//! The files named under `lists` are read by the caller: nothing here opens one.

use std::sync::Arc;

use super::{
    list::List,
    plan::{AddressList, Pack, PackRule},
};
use crate::{
    document::{self, Table, Value},
    problem::{Located, Problems, SourceFile},
};

/// Where a pack is from, which decides what it owes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Shipped in the binary: each rule names its source and the day it was read; there are no list files.
    BuiltIn,
    /// A file of the operator.
    File,
}

/// Reads the files that a pack names; says itself what is wrong with them.
pub trait Files {
    /// A file of names, an entry of `lists`.
    fn names(&mut self, entry: &Located<String>) -> Option<List>;
    /// A file of addresses, an entry of `address-lists`.
    fn addresses(&mut self, entry: &Located<String>) -> Option<AddressList>;
}

/// Most entries of `address-lists` in a rule.
const MAX_ADDRESS_LISTS: usize = 16;

/// Reads a pack; adds what is wrong to `problems`. `None` when it has no usable name, version or rules list; the
/// caller must not use a pack of which an error was told.
pub fn parse(file: &Arc<SourceFile>, origin: Origin, problems: &mut Problems, files: &mut dyn Files) -> Option<Pack> {
    document::read(file, problems, |root| {
        let name = root.require("name", "name = \"ngrok\"", Value::word);
        let version = root.require("version", "version = \"2026-11-23\"", Value::line);
        let description = root.take("description", Value::line);
        let rules = root.tables("rules", |table| read_rule(table, origin, files));
        Some(Pack { name: name?, version: version?, description, rules })
    })?
}

fn read_rule(table: &mut Table<'_>, origin: Origin, files: &mut dyn Files) -> Option<PackRule> {
    let id = table.require("id", "id = \"connect\"", Value::word);
    let reason = table.require("reason", "reason = \"where agents of any account connect to\"", Value::line);
    let block = table.list("block", Value::located_text);
    let allow = table.list("allow", Value::located_text);
    let networks = table.list("networks", Value::network);
    let lists = table.list("lists", |value| match origin {
        Origin::File => Some(files.names(&value.located_text()?)),
        Origin::BuiltIn => value.wrong("a built-in pack has no list files", None),
    });
    let mut count = 0;
    let address_lists = table.list("address-lists", |value| {
        count += 1;
        match origin {
            Origin::BuiltIn => value.wrong("a built-in pack has no list files", None),
            Origin::File if count > MAX_ADDRESS_LISTS => {
                value.wrong(format!("more than {MAX_ADDRESS_LISTS} lists of addresses in a rule"), None)
            }
            Origin::File => Some(files.addresses(&value.located_text()?)),
        }
    });
    if block.is_none() && allow.is_none() && networks.is_none() && lists.is_none() && address_lists.is_none() {
        let hint = "give it block, allow, networks, lists or address-lists".to_owned();
        table.wrong("the rule says nothing: it neither blocks nor allows", Some(hint));
    }
    let regions = table.list("regions", |value| value.word());
    let resolve = table.list("resolve", Value::located_text);
    let ports = table.list("ports", |value| value.integer(1..=u16::MAX));
    let source = read_source(table, origin);
    Some(PackRule {
        id: id?,
        reason: reason?,
        block: block.unwrap_or_default(),
        allow: allow.unwrap_or_default(),
        lists: lists.unwrap_or_default().into_iter().flatten().collect(),
        networks: networks.unwrap_or_default(),
        regions: regions.unwrap_or_default(),
        resolve: resolve.unwrap_or_default(),
        address_lists: address_lists.unwrap_or_default().into_iter().flatten().collect(),
        ports: ports.unwrap_or_default(),
        source,
    })
}

/// `source`, and the day it was read, which is for people who read the file.
fn read_source(table: &mut Table<'_>, origin: Origin) -> Option<String> {
    match origin {
        Origin::BuiltIn => {
            table.require("read", "read = 2026-11-23", Value::date);
            table.require("source", "source = \"https://ngrok.com/docs\"", Value::line)
        }
        Origin::File => {
            table.take("read", Value::date);
            table.take("source", Value::line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: &str = r#"
        name = "ngrok"
        version = "2026-11-23"
        description = "where ngrok agents of any account connect to"
        [[rules]]
        id = "connect"
        reason = "agent ingress"
        block = ["connect.ngrok-agent.com", "connect.*.ngrok-agent.com"]
        regions = ["us", "us-cal-1"]
        resolve = ["connect.{region}.ngrok-agent.com"]
        networks = ["192.0.2.0/24"]
        lists = ["more.txt"]
        address-lists = ["tunnel.json"]
        source = "https://ngrok.com/docs/agent/connect-url"
        read = 2026-11-23
        [[rules]]
        id = "support"
        reason = "needed by own agents"
        allow = ["crl.ngrok-agent.com"]
        ports = [80, 443]
    "#;

    /// Every file is there and empty.
    struct Empty;

    impl Files for Empty {
        fn names(&mut self, entry: &Located<String>) -> Option<List> {
            Some(List::new(&entry.value))
        }

        fn addresses(&mut self, entry: &Located<String>) -> Option<AddressList> {
            Some(AddressList { path: entry.value.clone(), ..AddressList::default() })
        }
    }

    fn parsed(text: &str, origin: Origin) -> (Option<Pack>, Vec<String>) {
        let file = Arc::new(SourceFile { path: "ngrok.toml".into(), text: text.into() });
        let mut problems = Problems::default();
        let pack = parse(&file, origin, &mut problems, &mut Empty);
        let told =
            problems.iter().map(|problem| format!("{}: {}", problem.place.as_ref().unwrap().line(), problem.message));
        (pack, told.collect())
    }

    #[test]
    fn a_pack_is_read_whole() {
        let (pack, problems) = parsed(PACK, Origin::File);
        assert_eq!(problems, [""; 0]);
        let pack = pack.unwrap();
        assert_eq!((pack.name.value.as_str(), pack.version.as_str(), pack.rules.len()), ("ngrok", "2026-11-23", 2));
        let rule = &pack.rules[0];
        assert_eq!((rule.id.value.as_str(), rule.id.place.line()), ("connect", 6));
        assert_eq!((rule.block.len(), rule.regions.len(), rule.resolve.len(), rule.networks.len()), (2, 2, 1, 1));
        assert_eq!((&*rule.lists[0].path, &*rule.address_lists[0].path), ("more.txt", "tunnel.json"));
        assert_eq!(pack.rules[1].ports, [80, 443]);
    }

    #[test]
    fn a_built_in_pack_owes_source_and_day_for_every_rule_and_has_no_files() {
        let (_, problems) = parsed(PACK, Origin::BuiltIn);
        #[rustfmt::skip]
        assert_eq!(problems, [
            "12: a built-in pack has no list files",
            "13: a built-in pack has no list files",
            "16: [[rules]] needs \"read\"",
            "16: [[rules]] needs \"source\"",
        ]);
    }

    #[test]
    fn what_a_pack_lacks_is_told_all_at_once() {
        let (pack, problems) =
            parsed("title = 'x'\n[[rules]]\nport = 1\n[[rules]]\nid = 'a b'\nports = [0]\n", Origin::File);
        assert!(pack.is_none());
        #[rustfmt::skip]
        assert_eq!(problems, [
            "1: the file needs \"name\"",
            "1: the file needs \"version\"",
            "1: unknown key \"title\"",
            "2: [[rules]] needs \"id\"",
            "2: [[rules]] needs \"reason\"",
            "2: the rule says nothing: it neither blocks nor allows",
            "3: unknown key \"port\" in [[rules]]",
            "4: [[rules]] needs \"reason\"",
            "4: the rule says nothing: it neither blocks nor allows",
            "5: \"id\" is \"a b\", which cannot be a name here",
            "6: an entry of \"ports\" is 0; it must be from 1 to 65535",
        ]);
    }
}
