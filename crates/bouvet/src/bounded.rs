//! The length of errors. They echo what was typed or sent, whose size nobody has limited.

/// Bytes of one word in an error: the longest names and most paths are shorter.
const MAX_WORD_BYTES: usize = 512;
/// Bytes of an error.
const MAX_ERROR_BYTES: usize = 8192;

/// `text` without the middle of words that are too long, and of itself.
pub(crate) fn bounded(text: &str) -> String {
    let mut short = String::with_capacity(text.len().min(MAX_ERROR_BYTES));
    // Words with the white space after them.
    for word in text.split_inclusive(char::is_whitespace) {
        short.push_str(&without_middle(word, MAX_WORD_BYTES));
    }
    without_middle(&short, MAX_ERROR_BYTES)
}

/// At most `max` bytes of `text` from its two ends, and between them the number of bytes that are left out.
fn without_middle(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let (head, tail) = (text.floor_char_boundary(max / 2), text.ceil_char_boundary(text.len() - max / 2));
    format!("{}[{} bytes left out]{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_and_texts_lose_their_middle() {
        let fine = format!("the name `{}` is taken\n  try: another", "a".repeat(MAX_WORD_BYTES - 3));
        assert_eq!(bounded(&fine), fine);
        let long = format!("the name `{}` is taken", "a".repeat(100_000));
        let short = bounded(&long);
        assert!(short.starts_with("the name `aaa") && short.ends_with("aaa` is taken"), "{short}");
        assert!(short.contains("[99491 bytes left out]"), "{short}");
        let words = "ab ".repeat(MAX_ERROR_BYTES / 3);
        assert_eq!(bounded(&words), words);
        let short = bounded(&"é ".repeat(MAX_ERROR_BYTES));
        assert!(short.len() < MAX_ERROR_BYTES + 40 && short.contains(" bytes left out]"), "{short}");
    }
}
