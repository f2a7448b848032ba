//! `[cache]`.

use std::time::Duration;

use super::set;
use crate::{cache::Options, document::Table};

/// Longest time anything may be kept: RFC 8767 section 4 caps a TTL at a week.
const MAX_TTL: Duration = Duration::from_hours(24 * 7);

pub(super) fn read(root: &mut Table<'_>) -> Options {
    let mut options = Options::default();
    root.table("cache", |table| {
        table.not_in_this_version(&["prefetch"]);
        set(&mut options.size, table.take("size", |value| value.size(0)));
        set(&mut options.min_ttl, table.take("min-ttl", |value| value.duration(Duration::ZERO..=MAX_TTL)));
        set(&mut options.max_ttl, table.take("max-ttl", |value| value.duration(Duration::ZERO..=MAX_TTL)));
        set(
            &mut options.max_negative_ttl,
            table.take("max-negative-ttl", |value| value.duration(Duration::ZERO..=MAX_TTL)),
        );
        set(&mut options.serve_stale, table.take("serve-stale", |value| value.duration(Duration::ZERO..=MAX_TTL)));
        if options.min_ttl > options.max_ttl {
            table.wrong("min-ttl is longer than max-ttl", None);
        }
    });
    options
}
