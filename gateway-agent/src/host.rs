//! What this host is made of, as its kernel tells it: shared by the collectors and the built-in commands.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

pub mod disks;
pub mod interfaces;
pub mod look;
pub mod mounts;
mod ownership;
pub mod processor;

/// A name from the system as text on one line: what is no UTF-8, and what could drive a terminal, is written `\xNN`.
#[must_use]
pub fn printable(name: &OsStr) -> String {
    let mut text = String::new();
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            write!(text, "\\x{byte:02x}").expect("writing to a string succeeds");
        }
    };
    for chunk in name.as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                escape(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(character);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_escaped_and_nothing_is_lost() {
        let name = OsStr::from_bytes(b"/mnt/\xffgr\xc3\xbc\xc3\x1b[31m\n");
        assert_eq!(printable(name), r"/mnt/\xffgrü\xc3\x1b[31m\x0a");
    }
}
