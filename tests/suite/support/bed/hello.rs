//! A ClientHello as no library here writes it: with the extension of an encrypted one (RFC 9849), filled with noise.

/// The content type of TLS alerts (RFC 8446 section 5.1).
pub const ALERT: u8 = 21;

const ENCRYPTED_CLIENT_HELLO: [u8; 2] = [0xfe, 0x0d];

/// `record` with that extension at its end. It holds one whole ClientHello.
pub fn with_encrypted_hello(mut record: Vec<u8>) -> Vec<u8> {
    let extensions = start_of_extensions(&record);
    // Outer; HKDF-SHA256 and AES-128-GCM; a config; a key; what is encrypted.
    let mut body = vec![0, 0, 1, 0, 1, 7];
    for (part, length) in [(0x42, 32_u16), (0x17, 160)] {
        body.extend(length.to_be_bytes());
        body.extend(vec![part; usize::from(length)]);
    }
    let mut extension = ENCRYPTED_CLIENT_HELLO.to_vec();
    extension.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    extension.extend(body);
    // The lengths of the record, of the handshake message (its upper byte stays 0) and of the extensions.
    for at in [3, 7, extensions - 2] {
        let length = u16::from_be_bytes([record[at], record[at + 1]]) + u16::try_from(extension.len()).unwrap();
        record[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    record.extend(extension);
    record
}

/// Behind headers, version and random come the session, the cipher suites and the compression methods, each behind its
/// length, and the length of the extensions (RFC 8446 section 4.1.2).
fn start_of_extensions(record: &[u8]) -> usize {
    let session = 5 + 4 + 2 + 32;
    let suites = session + 1 + usize::from(record[session]);
    let methods = suites + 2 + usize::from(u16::from_be_bytes([record[suites], record[suites + 1]]));
    methods + 1 + usize::from(record[methods]) + 2
}
