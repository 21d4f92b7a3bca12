//! MIME types, by which the forms of a value are named.

use crate::limits::MAX_MIME_BYTES;

/// Whether `name` may stand for one: visible ASCII characters, for people and programs to read, with a `/`.
pub fn is_mime_type(name: &str) -> bool {
    name.len() <= MAX_MIME_BYTES && name.contains('/') && name.bytes().all(|byte| byte.is_ascii_graphic())
}
