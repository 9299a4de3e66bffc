//! A text becomes parts of at most so many tokens, cut before headings, else at paragraphs, else at
//! sentences, else between characters; neighbours may share some text.

use std::ops::Range;

/// Ends of sentences in Japanese: the next one follows at once.
const FULL_WIDTH_ENDS: [char; 3] = ['。', '！', '？'];
/// Belongs to the sentence that it closes.
const CLOSERS: [char; 5] = ['」', '』', '）', '】', '”'];
/// Ends of sentences where white space follows.
const ENDS: [char; 3] = ['.', '!', '?'];

/// How a text is cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The most tokens of a part.
    pub tokens: usize,
    /// The most tokens of a part that are repeated at the start of the next.
    pub overlap: usize,
    /// Whether lines that begin with `#` are Markdown's headings.
    pub headings: bool,
}

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub text: String,
    /// The headings that its own text stands under, outermost first, joined by ` > `.
    pub heading: String,
}

/// What is never cut any further.
struct Piece {
    at: Range<usize>,
    tokens: usize,
    /// Of a heading, from 1.
    level: Option<usize>,
}

/// Cuts `text`; without overlap, joining the parts gives it back whole. `count` counts tokens.
pub fn split(text: &str, cut: Cut, count: &dyn Fn(&str) -> usize) -> Vec<Part> {
    let pieces = pieces(text, cut, count);
    let mut parts: Vec<Part> = Vec::new();
    let (mut start, mut fresh) = (0, 0);
    let mut trail = Vec::new();
    while fresh < pieces.len() {
        let rest = &text[pieces[fresh].at.start..];
        if let (true, Some(last)) = (rest.trim().is_empty(), parts.last_mut()) {
            last.text.push_str(rest);
            break;
        }
        let end = end_of_part(&pieces, start, fresh, cut.tokens);
        enter(&mut trail, &pieces[fresh], text);
        parts.push(Part {
            text: text[pieces[start].at.start..pieces[end - 1].at.end].to_owned(),
            heading: trail.iter().map(|(_, title)| *title).collect::<Vec<_>>().join(" > "),
        });
        pieces[fresh + 1..end].iter().for_each(|piece| enter(&mut trail, piece, text));
        start = start_of_next(&pieces, fresh, end, cut);
        fresh = end;
    }
    parts
}

/// The first piece that is not in the part which begins with `start` and has `fresh` as its first
/// piece of its own.
fn end_of_part(pieces: &[Piece], start: usize, fresh: usize, most: usize) -> usize {
    let mut tokens = pieces[start..=fresh].iter().map(|piece| piece.tokens).sum::<usize>();
    let mut end = fresh + 1;
    let mut border = None;
    while end < pieces.len() && tokens + pieces[end].tokens <= most {
        // A part that is half full may as well end where a section does.
        if pieces[end].level.is_some() && tokens >= most / 2 {
            border = Some(end);
        }
        tokens += pieces[end].tokens;
        end += 1;
    }
    if end == pieces.len() || pieces[end].level.is_some() {
        return end;
    }
    // A heading goes with what it heads.
    let headed = (fresh + 1..=end).rev().find(|&at| pieces[at - 1].level.is_none());
    border.or(headed).unwrap_or(end)
}

/// Where the part after `end` begins: as far back as the overlap allows and the next piece leaves room.
/// A new section has nothing to repeat.
fn start_of_next(pieces: &[Piece], fresh: usize, end: usize, cut: Cut) -> usize {
    let Some(next) = pieces.get(end).filter(|next| next.level.is_none()) else { return end };
    let room = cut.overlap.min(cut.tokens.saturating_sub(next.tokens));
    let mut start = end;
    let mut repeated = 0;
    while start > fresh && repeated + pieces[start - 1].tokens <= room {
        start -= 1;
        repeated += pieces[start].tokens;
    }
    start
}

/// Keeps the trail of headings true when a piece is passed.
fn enter<'a>(trail: &mut Vec<(usize, &'a str)>, piece: &Piece, text: &'a str) {
    if let Some(level) = piece.level {
        trail.retain(|(outer, _)| *outer < level);
        let title = text[piece.at.clone()].lines().next().unwrap_or_default();
        trail.push((level, title.trim_start_matches('#').trim()));
    }
}

/// The largest pieces that have no border which might be wanted within.
fn pieces(text: &str, cut: Cut, count: &dyn Fn(&str) -> usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut push = |piece: &str, tokens, level| {
        pieces.push(Piece { at: at..at + piece.len(), tokens, level });
        at += piece.len();
    };
    for (block, level) in blocks(text, cut.headings) {
        let tokens = count(block);
        if tokens <= cut.tokens {
            push(block, tokens, level);
            continue;
        }
        for sentence in sentences(block) {
            halve(sentence, cut.tokens, count, &mut |piece, tokens| push(piece, tokens, None));
        }
    }
    pieces
}

/// Paragraphs, and headings with their levels, each with the empty lines after it.
fn blocks(text: &str, headings: bool) -> Vec<(&str, Option<usize>)> {
    let mut blocks = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut level = None;
    let (mut fenced, mut blank) = (false, false);
    for line in text.split_inclusive('\n') {
        let empty = line.trim().is_empty();
        let heads = heading(line).filter(|_| headings && !fenced);
        let border = heads.is_some() || (level.is_some() || blank) && !empty;
        if border && at > start {
            blocks.push((&text[start..at], level));
            start = at;
            level = None;
        }
        level = heads.or(level);
        blank = empty;
        fenced ^= line.trim_start().starts_with("```");
        at += line.len();
    }
    if at > start {
        blocks.push((&text[start..], level));
    }
    blocks
}

fn heading(line: &str) -> Option<usize> {
    let level = line.bytes().take_while(|byte| *byte == b'#').count();
    ((1..=6).contains(&level) && line[level..].starts_with([' ', '\t'])).then_some(level)
}

fn sentences(text: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut start = 0;
    let mut ended = false;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        let full_width = FULL_WIDTH_ENDS.contains(&c);
        let closes = ended && CLOSERS.contains(&c);
        if ended && !full_width && !closes {
            sentences.push(&text[start..at]);
            start = at;
        }
        ended = full_width || closes || c == '\n' || c.is_whitespace() && ENDS.contains(&before);
        before = c;
    }
    sentences.push(&text[start..]);
    sentences
}

/// Halves a piece between characters until all fit.
fn halve(
    piece: &str,
    most: usize,
    count: &dyn Fn(&str) -> usize,
    push: &mut dyn FnMut(&str, usize),
) {
    let tokens = count(piece);
    let middle = piece.floor_char_boundary(piece.len() / 2);
    if middle == 0 || tokens <= most {
        return push(piece, tokens);
    }
    let (left, right) = piece.split_at(middle);
    halve(left, most, count, push);
    halve(right, most, count, push);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(text: &str) -> usize {
        text.chars().count()
    }

    fn cut(text: &str, tokens: usize, overlap: usize) -> Vec<Part> {
        split(text, Cut { tokens, overlap, headings: true }, &letters)
    }

    fn texts(parts: &[Part]) -> Vec<&str> {
        parts.iter().map(|part| part.text.as_str()).collect()
    }

    #[test]
    fn parts_end_where_sentences_do_and_lose_nothing() {
        let text =
            "一つ目の文。「二つ目の文です。」三つ目の文！\n\nVersion 1.2 is out. And more.\n";
        let parts = cut(text, 20, 0);
        assert_eq!(texts(&parts).concat(), text);
        assert!(parts.iter().all(|part| letters(&part.text) <= 20), "{parts:?}");
        assert_eq!(texts(&parts)[0], "一つ目の文。「二つ目の文です。」");
        assert!(texts(&parts).contains(&"Version 1.2 is out. "), "{parts:?}");
    }

    #[test]
    fn a_sentence_without_an_end_is_cut_between_characters() {
        let text = "あ".repeat(100);
        let parts = cut(&text, 30, 0);
        assert_eq!(texts(&parts).concat(), text);
        assert!(parts.iter().all(|part| letters(&part.text) <= 30));
    }

    #[test]
    fn neighbours_share_whole_sentences() {
        let parts = cut("One two. Three. Four five. Six.", 20, 8);
        assert_eq!(texts(&parts), ["One two. Three. ", "Three. Four five. ", "Six."]);
        let parts = cut("One two. Three. Four five. Six.", 20, 0);
        assert_eq!(texts(&parts), ["One two. Three. ", "Four five. Six."]);
    }

    #[test]
    fn a_section_begins_a_part_and_heads_what_follows() {
        let text =
            "# A\n\nfirst words\n\n## B\n\nsecond words\n\n```\n# no heading\n```\n\n# C\n\nlast\n";
        let parts = cut(text, 36, 10);
        assert_eq!(
            texts(&parts),
            [
                "# A\n\nfirst words\n\n",
                "## B\n\nsecond words\n\n",
                "```\n# no heading\n```\n\n# C\n\nlast\n"
            ]
        );
        let headings: Vec<_> = parts.iter().map(|part| part.heading.as_str()).collect();
        assert_eq!(headings, ["A", "A > B", "A > B"]);
    }

    #[test]
    fn a_text_without_headings_keeps_its_hashes() {
        let text = "# a comment\n# another\n";
        let parts = split(text, Cut { tokens: 90, overlap: 0, headings: false }, &letters);
        assert_eq!(parts, [Part { text: text.into(), heading: String::new() }]);
        assert_eq!(cut(" \n", 9, 0).len(), 1, "what is not empty stays");
    }
}
