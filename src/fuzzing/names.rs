//! Names, on the wire and as text.

use hickory_proto::{
    rr::Name,
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use crate::name::{DomainName, InvalidName, MAX_LABEL, MAX_NAME, NameBuffer, NameRef};

/// The bytes as a name on the wire with something behind it, and as a text.
pub fn name(bytes: &[u8]) {
    on_the_wire(bytes);
    if let Ok(text) = str::from_utf8(bytes) {
        as_text(text);
    }
}

fn on_the_wire(bytes: &[u8]) {
    let mut buffer = NameBuffer::new();
    let Ok(length) = buffer.take_wire(bytes) else {
        assert!(buffer.name().is_root(), "what the buffer held stays");
        assert!(DomainName::from_wire(bytes).is_err());
        return;
    };
    let own = &bytes[..length];
    assert_eq!(buffer.name().as_wire(), own.to_ascii_lowercase());
    assert_eq!(DomainName::from_wire(own).unwrap().as_name(), buffer.name());
    assert_eq!(DomainName::from_wire(bytes).is_ok(), length == bytes.len());
    is_sound(buffer.name());
    // A plain name has no pointer, so what stands in front of it does not matter.
    let theirs = Name::read(&mut BinDecoder::new(own)).expect("hickory reads it too");
    assert!(theirs.iter().map(<[u8]>::to_ascii_lowercase).eq(buffer.name().labels().map(<[u8]>::to_vec)));
}

fn as_text(text: &str) {
    let Ok(name) = text.parse::<DomainName>() else { return };
    is_sound(name.as_name());
    // Beyond ASCII there are letters with two capitals, and other dots.
    if text.is_ascii() {
        assert_eq!(text.to_ascii_uppercase().parse().as_ref(), Ok(&name), "case does not matter");
        if !text.ends_with(['.', '\\']) {
            assert_eq!(format!("{text}.").parse().as_ref(), Ok(&name), "nor does the last dot");
        }
    }
}

/// What holds of every name, wherever it is from.
pub(super) fn is_sound(name: NameRef<'_>) {
    let wire = name.as_wire();
    assert!(wire.len() <= MAX_NAME && wire.last() == Some(&0));
    assert!(!wire.iter().any(u8::is_ascii_uppercase));
    assert!(name.labels().all(|label| (1..=MAX_LABEL).contains(&label.len())));
    assert_eq!(wire.len(), 1 + name.labels().map(|label| 1 + label.len()).sum::<usize>());
    assert_eq!((name.label_count(), name.suffixes().count()), (name.labels().count(), name.labels().count()));
    assert!(name.suffixes().all(|zone| name.is_within(zone)) && name.is_within(DomainName::root().as_name()));
    let shown = name.to_string();
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()), "nothing that could harm a terminal: {shown:?}");
    match shown.parse::<DomainName>() {
        Ok(again) => assert_eq!(again.as_name(), name, "{shown}"),
        // Anybody can ask for a name that only looks like IDNA; nobody can write one into a configuration.
        Err(error) => {
            assert_eq!(error, InvalidName::BadIdn, "{shown}");
            assert!(name.labels().any(|label| label.starts_with(b"xn--")), "{shown}");
        }
    }
}
