//! Cuts text to a size: providers count the bytes of the JSON.

use std::borrow::Cow;

use unicode_segmentation::UnicodeSegmentation;

/// Stands for the text that was cut off.
const ELLIPSIS: &str = "…";

/// As much of a text as takes `max` bytes as JSON (without its quotes), cut between two characters as a reader sees them (an
/// emoji of a family is one), with an ellipsis where text is missing. Empty when not even that fits.
pub(crate) fn fit(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max && escaped(text) <= max {
        return Cow::Borrowed(text);
    }
    let Some(max) = max.checked_sub(ELLIPSIS.len()) else { return Cow::Borrowed("") };
    let mut length = 0;
    let kept = text.grapheme_indices(true).find(|(_, character)| {
        length += escaped(character);
        length > max
    });
    let end = kept.map_or(text.len(), |(start, _)| start);
    Cow::Owned(format!("{}{ELLIPSIS}", &text[..end]))
}

/// How many bytes a text takes as JSON, without its quotes: as `serde_json` writes it.
fn escaped(text: &str) -> usize {
    text.bytes()
        .map(|byte| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
            0..0x20 => 6,
            _ => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn as_json(text: &str) -> usize {
        serde_json::to_string(text).unwrap().len() - 2
    }

    #[test]
    fn a_text_that_fits_stays_as_it_is() {
        assert_eq!(fit("안녕", 6), "안녕");
        assert_eq!(fit("", 0), "");
    }

    #[test]
    fn a_cut_is_between_characters() {
        assert_eq!(fit("안녕하세요", 9), "안녕…");
        assert_eq!(fit("안녕하세요", 8), "안…");
        // A family is four people and three joiners: 25 bytes.
        let families = "👨‍👩‍👧‍👦👨‍👩‍👧‍👦";
        assert_eq!(fit(families, 49), "👨‍👩‍👧‍👦…");
        assert_eq!(fit(families, 27), "…");
        assert_eq!(fit(families, 2), "");
        assert_eq!(fit("\u{0}\u{0}\u{0}", 15), "\u{0}\u{0}…");
    }

    proptest! {
        #[test]
        fn what_fits_is_the_beginning_and_no_longer_than_asked(text in any::<String>(), max in 0_usize..200) {
            let fitted = fit(&text, max);
            prop_assert!(as_json(&fitted) <= max);
            prop_assert_eq!(escaped(&text), as_json(&text));
            if as_json(&text) <= max {
                prop_assert_eq!(&*fitted, &text);
            } else if let Some(beginning) = fitted.strip_suffix(ELLIPSIS) {
                prop_assert!(text.starts_with(beginning));
            } else {
                prop_assert!(fitted.is_empty() && max < ELLIPSIS.len());
            }
        }
    }
}
