//! What the keeper, the kernel and the control socket say.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    audit::Record,
    control, keeper,
    keeper::{DENIED_AT_ONCE, LONGEST, PERMITTED_AT_ONCE},
    sys::netlink,
};

/// A message between forwarder and keeper, in either direction: there is one way to write each, it has an end, and it
/// is short.
pub fn keeper_message(bytes: &[u8]) {
    if let Ok((number, request)) = keeper::Request::decode(bytes) {
        assert_eq!(request.encode(number), bytes);
        is_bounded(&request);
        has_an_end(bytes, keeper::Request::decode);
    }
    if let Ok((number, reply)) = keeper::Reply::decode(bytes) {
        assert_eq!(reply.encode(number), bytes);
        has_an_end(bytes, keeper::Reply::decode);
    }
    if let Ok(notice) = keeper::Notice::decode(bytes) {
        assert_eq!(notice.encode(), bytes);
        has_an_end(bytes, keeper::Notice::decode);
    }
}

fn has_an_end<T: Debug>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, keeper::Malformed>) {
    assert!(bytes.len() <= LONGEST);
    assert!((0..bytes.len()).all(|end| decode(&bytes[..end]).is_err()), "a piece of a message is none");
    assert!(decode(&[bytes, &[0]].concat()).is_err(), "nor is one with more behind it");
}

fn is_bounded(request: &keeper::Request) {
    use keeper::Request::{Bye, Count, Cut, Deny, Forget, Mark, Permit, PermitPort, Process, Release, Reload, Remove};
    match request {
        Permit { addresses, .. } | PermitPort { addresses, .. } => assert!(addresses.len() <= PERMITTED_AT_ONCE),
        Deny { addresses, .. } | Forget { addresses } => assert!(addresses.len() <= DENIED_AT_ONCE),
        Bye | Count | Cut { .. } | Mark | Process { .. } | Release { .. } | Reload | Remove => {}
    }
}

/// A line of the control socket, in either direction, or of the record that is followed there: what is written of it is
/// one line, and is read and written as the same. (What was read may have said more than is kept: a time to the
/// nanosecond.)
pub fn control_message(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    is_read_as_written::<control::Request>(text);
    is_read_as_written::<control::Reply>(text);
    is_read_as_written::<Record>(text);
}

fn is_read_as_written<T: DeserializeOwned + Serialize>(text: &str) {
    let Ok(message) = serde_json::from_str::<T>(text) else { return };
    let line = serde_json::to_string(&message).expect("a message is JSON");
    assert!(!line.contains('\n'), "one line each");
    let again = serde_json::from_str::<T>(&line).expect("what we write");
    assert_eq!(serde_json::to_string(&again).expect("a message is JSON"), line);
}

/// A datagram of the kernel's: whatever lengths stand in it, nothing is read past it, and the walk ends.
pub fn netlink_message(bytes: &[u8]) {
    netlink::walk(bytes);
}
