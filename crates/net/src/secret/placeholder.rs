//! Placeholders in the values of headers, replaced. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use zeroize::Zeroizing;

use super::{PREFIX, RANDOM_BYTES, Secret};

const PLACEHOLDER_BYTES: usize = PREFIX.len() + 2 * RANDOM_BYTES;
/// The scheme of HTTP whose credentials are written in Base64 (RFC 7617).
const BASIC: &[u8] = b"basic ";
/// These say where and how a message goes, not what: no placeholder in them is meant.
const STEERING: [HeaderName; 6] = [CONNECTION, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// Headers that have more bytes than they may, with the secrets in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oversized;

/// Puts `secrets` where their placeholders are in the values of `headers`, which may have `limit_bytes` in all then.
pub(crate) fn reveal(
    headers: &mut HeaderMap,
    secrets: &[&Secret],
    limit_bytes: usize,
) -> Result<(), Oversized> {
    let mut left = limit_bytes;
    for (name, value) in headers.iter_mut() {
        left = left.checked_sub(name.as_str().len()).ok_or(Oversized)?;
        if !STEERING.contains(name)
            && let Some(revealed) = credentials(value.as_bytes(), secrets, left)?
            && let Ok(mut revealed) = HeaderValue::from_bytes(&revealed)
        {
            // Kept out of logs, and out of HTTP/2's tables of headers (RFC 7541, 7.1.3).
            revealed.set_sensitive(true);
            *value = revealed;
        }
        left = left.checked_sub(value.len()).ok_or(Oversized)?;
    }
    Ok(())
}

/// A value with secrets in it, if there was any to put.
type Revealed = Result<Option<Zeroizing<Vec<u8>>>, Oversized>;

/// `value` with its placeholders replaced: also in what `Basic` wraps.
fn credentials(value: &[u8], secrets: &[&Secret], limit_bytes: usize) -> Revealed {
    let basic = value.split_at_checked(BASIC.len()).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BASIC));
    if let Some((scheme, wrapped)) = basic
        && let Ok(plain) = STANDARD.decode(wrapped.trim_ascii())
        && let Some(revealed) = replaced(&plain, secrets, limit_bytes)?
    {
        let encoded = Zeroizing::new(STANDARD.encode(&*revealed));
        return Ok(Some(Zeroizing::new([scheme, encoded.as_bytes()].concat())));
    }
    replaced(value, secrets, limit_bytes)
}

fn replaced(text: &[u8], secrets: &[&Secret], limit_bytes: usize) -> Revealed {
    let mut result: Option<Zeroizing<Vec<u8>>> = None;
    // Until where `text` is in the result, and from where a placeholder is looked for.
    let (mut copied, mut from) = (0, 0);
    while let Some(at) = find(text, from) {
        let end = at + PLACEHOLDER_BYTES;
        let Some(secret) = secrets.iter().find(|secret| secret.placeholder.as_bytes() == &text[at..end])
        else {
            // Another's, or none: the next may begin behind its first letters.
            from = at + PREFIX.len();
            continue;
        };
        // Room for all that there may be: growing would leave parts of secrets behind.
        let result = result.get_or_insert_with(|| Zeroizing::new(Vec::with_capacity(limit_bytes)));
        append(result, &text[copied..at], limit_bytes)?;
        append(result, secret.value(), limit_bytes)?;
        (copied, from) = (end, end);
    }
    if let Some(result) = &mut result {
        append(result, &text[copied..], limit_bytes)?;
    }
    Ok(result)
}

/// Where the next text in the form of a placeholder begins.
fn find(text: &[u8], from: usize) -> Option<usize> {
    let mut windows = text[from..].windows(PLACEHOLDER_BYTES);
    windows.position(|window| window.starts_with(PREFIX.as_bytes())).map(|at| from + at)
}

fn append(result: &mut Vec<u8>, bytes: &[u8], limit_bytes: usize) -> Result<(), Oversized> {
    if bytes.len() > limit_bytes - result.len() {
        return Err(Oversized);
    }
    result.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT_BYTES: usize = 1000;

    fn secret(name: &str, value: &str) -> Secret {
        Secret::new(name, value.to_owned().into(), vec!["example.com".parse().expect("a domain")])
            .expect("a secret")
    }

    fn revealed(name: HeaderName, value: &str, secrets: &[&Secret]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        headers.insert(name.clone(), value.parse().expect("a value"));
        reveal(&mut headers, secrets, LIMIT_BYTES).expect("within limits");
        headers.remove(name).expect("still there")
    }

    #[test]
    fn placeholders_of_bound_secrets_are_replaced_and_no_others() {
        let (one, two, other) = (secret("A", "first"), secret("B", "second"), secret("C", "third"));
        let [a, b, c] = [&one, &two, &other].map(|secret| secret.placeholder().to_owned());
        let bound = [&one, &two];
        let is = |given: String, expected: String| {
            let value = revealed(hyper::header::AUTHORIZATION, &given, &bound);
            assert_eq!(value.as_bytes(), expected.as_bytes(), "{given}");
            assert_eq!(value.is_sensitive(), given != expected);
        };
        is(format!("Bearer {a}"), "Bearer first".into());
        is(format!("{a}{b}, {a}"), "firstsecond, first".into());
        is(format!("x={c}; y={a}; z={c}"), format!("x={c}; y=first; z={c}"));
        is(format!("bouvet-secret-{a}"), "bouvet-secret-first".into());
        is(format!("{a}0"), "first0".into());
        for unchanged in [
            c.clone(),
            a[..a.len() - 1].to_owned(),
            a.to_uppercase(),
            "bouvet-secret-".into(),
            "plain".into(),
        ] {
            is(unchanged.clone(), unchanged);
        }
    }

    #[test]
    fn placeholders_in_basic_credentials_are_replaced() {
        let secret = secret("A", "pass:word");
        let basic = |scheme: &str, text: &str| format!("{scheme}{}", STANDARD.encode(text));
        let user = format!("user:{}", secret.placeholder());
        for scheme in ["Basic ", "basic ", "BASIC "] {
            let value = revealed(hyper::header::AUTHORIZATION, &basic(scheme, &user), &[&secret]);
            assert_eq!(value, basic(scheme, "user:pass:word"));
            assert!(value.is_sensitive());
        }
        for unchanged in [basic("Basic ", "user:other"), basic("Bearer ", &user), "Basic ???".into()] {
            let value = revealed(hyper::header::AUTHORIZATION, &unchanged, &[&secret]);
            assert_eq!(value, unchanged);
        }
    }

    #[test]
    fn headers_that_steer_a_message_keep_what_they_have() {
        let secret = secret("A", "close");
        for name in STEERING {
            assert_eq!(revealed(name, secret.placeholder(), &[&secret]), secret.placeholder());
        }
    }

    #[test]
    fn headers_may_have_so_many_bytes_and_no_more() {
        let name = "a";
        for (value_bytes, expected) in [(LIMIT_BYTES - 1, Ok(())), (LIMIT_BYTES, Err(Oversized))] {
            let secret = secret("A", &"v".repeat(value_bytes));
            let mut headers = HeaderMap::new();
            headers.insert(name, secret.placeholder().parse().expect("a value"));
            assert_eq!(reveal(&mut headers, &[&secret], LIMIT_BYTES), expected);
            let plain = "v".repeat(value_bytes).parse().expect("a value");
            let mut headers = HeaderMap::from_iter([(HeaderName::from_static(name), plain)]);
            assert_eq!(reveal(&mut headers, &[&secret], LIMIT_BYTES), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_between_placeholders_stays(parts in proptest::collection::vec("[ -~]{0,60}", 1..6)) {
            let secret = secret("A", "value");
            // A part may end like a placeholder begins.
            let given = parts.join(secret.placeholder());
            let expected = parts.join("value");
            let result = replaced(given.as_bytes(), &[&secret], LIMIT_BYTES).expect("within limits");
            prop_assert_eq!(result.is_some(), parts.len() > 1);
            if let Some(result) = result {
                prop_assert_eq!(&*result, expected.as_bytes());
            }
        }
    }
}
