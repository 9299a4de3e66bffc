//! A text becomes parts of at most so many tokens, cut at paragraphs, else sentences, else lines.

/// Ends of sentences, Japanese ones too.
const SENTENCE_ENDS: [char; 7] = ['。', '！', '？', '.', '!', '?', '\n'];

/// Cuts `text` so that joining the parts gives it back whole. `count` counts tokens; a single
/// sentence that is longer than a part is cut between characters.
pub fn split(text: &str, most: usize, count: &dyn Fn(&str) -> usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut tokens = 0;
    for piece in pieces(text, most, count) {
        // Tokens may join over a border, so the sum is never too small by more than it saves.
        let more = count(piece);
        if tokens + more > most && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            tokens = 0;
        }
        part.push_str(piece);
        tokens += more;
    }
    if !part.trim().is_empty() {
        parts.push(part);
    } else if let Some(last) = parts.last_mut() {
        last.push_str(&part);
    }
    parts
}

/// The largest borders that give pieces of no more than `most` tokens.
fn pieces<'a>(text: &'a str, most: usize, count: &dyn Fn(&str) -> usize) -> Vec<&'a str> {
    let paragraphs = text.split_inclusive("\n\n");
    let fits = |piece: &str| count(piece) <= most;
    let mut pieces = Vec::new();
    for paragraph in paragraphs {
        if fits(paragraph) {
            pieces.push(paragraph);
            continue;
        }
        for sentence in paragraph.split_inclusive(SENTENCE_ENDS) {
            if fits(sentence) {
                pieces.push(sentence);
            } else {
                cut(sentence, &fits, &mut pieces);
            }
        }
    }
    pieces
}

/// Halves a piece between characters until all fit.
fn cut<'a>(piece: &'a str, fits: &dyn Fn(&str) -> bool, into: &mut Vec<&'a str>) {
    let middle = piece.floor_char_boundary(piece.len() / 2);
    if middle == 0 || fits(piece) {
        return into.push(piece);
    }
    let (left, right) = piece.split_at(middle);
    cut(left, fits, into);
    cut(right, fits, into);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_where_sentences_do_and_lose_nothing() {
        let count = |text: &str| text.chars().count();
        let text = "一つ目の文。二つ目の文です。三つ目！\n\nNext paragraph. And more.\n";
        let parts = split(text, 16, &count);
        assert_eq!(parts.concat(), text);
        assert!(parts.iter().all(|part| count(part) <= 16), "{parts:?}");
        assert_eq!(parts[0], "一つ目の文。二つ目の文です。");
    }

    #[test]
    fn a_sentence_without_an_end_is_cut_between_characters() {
        let text = "あ".repeat(100);
        let parts = split(&text, 30, &|text| text.chars().count());
        assert_eq!(parts.concat(), text);
        assert!(parts.iter().all(|part| part.chars().count() <= 30));
    }
}
